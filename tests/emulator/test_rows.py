"""The row kernels on the CPU, by the launches that the device would get, against float64 and against themselves."""

from __future__ import annotations

import math

import pytest
import torch

from prefuse._backends.rows import Rows, bits_of
from tests.emulator import emulator, reference
from tests.emulator.backend import MANY, Emulated
from tests.reserved import reserve

pytestmark = pytest.mark.needs("compiler")

ONE = "logp,lse,entropy,log_sum_sq,mean_logit,top1"
TOP = "logp,topk_mass,topk_entropy"
TWO = "logp,lse,entropy,ref_logp,ref_lse,kl,rkl"
WITH_GRADIENT = ("logp", "lse", "entropy", "mean_logit", "kl", "rkl")
F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
WARP_ROW = {F16: 4096, BF16: 4096, F32: 2048, F64: 1024}
"""The longest row that a warp takes; its chunk. A block's is eight times as long."""


def bits(names: str) -> int:
    """The set of the statistics whose names stand between commas."""
    return bits_of(names.split(","))


def rows(logits: torch.Tensor, stats: str = ONE, *, labels: torch.Tensor | None = None, **options: object) -> Rows:
    """Checked rows; random labels unless given."""
    if labels is None:
        labels = torch.randint(logits.shape[-1], logits.shape[:-1], generator=torch.Generator().manual_seed(3))
    fields = {"mask": None, "reference": None, "temperatures": None, "temperature": 1.0, "scale": 1.0, "softcap": 0.0}
    fields |= {"ignore_index": -100, "k": 10, **options}
    return Rows(logits=logits, labels=labels, stats=bits(stats), **fields)


def peaked(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Logits, a few of them large: with small ones only, every probability is about 1/V and hides mistakes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=F64)
    return torch.where(torch.rand(shape, generator=generator) < 0.05, 8 * x, x).to(dtype)


def misaligned(x: torch.Tensor, by: int) -> torch.Tensor:
    """A copy of `x` [N, V] whose first element lies `by` elements behind a 16-byte boundary; rows at an odd stride."""
    width = x.shape[-1] + (1 - x.shape[-1] % 2)
    store = torch.full((x.shape[0] * width + 16,), float("nan"), dtype=x.dtype)
    start = by + (-store.data_ptr() % 16) // x.element_size()
    return store[start:].as_strided(x.shape, (width, 1)).copy_(x)


def forward(case: Rows, device: Emulated | None = None) -> torch.Tensor:
    dtype = F64 if case.logits.dtype == F64 else F32
    out = torch.full((len(case.statistics), *case.labels.shape), 777.0, dtype=dtype)
    (device or Emulated()).rows_forward(case, out)
    return out


def backward(
    case: Rows, grads: torch.Tensor, gradient: torch.Tensor | None = None, device: Emulated | None = None
) -> torch.Tensor:
    gradient = torch.full_like(case.logits, 777.0).contiguous() if gradient is None else gradient
    (device or Emulated()).rows_backward(case, grads, forward(case), gradient)
    return gradient


def upstream(case: Rows) -> torch.Tensor:
    dtype = F64 if case.logits.dtype == F64 else F32
    grads = torch.randn(
        (len(case.statistics), *case.labels.shape), generator=torch.Generator().manual_seed(5), dtype=dtype
    )
    for row, name in enumerate(case.statistics):
        grads[row] *= name in WITH_GRADIENT
    return grads


def assert_statistics(case: Rows, device: Emulated | None = None) -> None:
    """Within a few roundings of what is summed: relative to lse, whose error each difference inherits."""
    expected, got = reference.statistics(case), forward(case, device).double()
    eps = 2e-15 if case.logits.dtype == F64 else 1e-6
    finite = expected.isfinite()
    assert torch.equal(got.where(~finite, torch.zeros(())), expected.where(~finite, torch.zeros(())).double())
    size = torch.where(finite, expected, 0.0).abs().amax(0).clamp(min=1.0)
    error = torch.where(finite, got - expected, 0.0).abs()
    assert (error <= 8 * eps * size).all(), {n: float(e.max()) for n, e in zip(case.statistics, error, strict=True)}


def assert_gradient(case: Rows, gradient: torch.Tensor | None = None) -> None:
    grads = upstream(case)
    expected = reference.gradient(case, grads)
    got = backward(case, grads, gradient).double()
    lse = reference.statistics(case._replace(stats=bits("lse"))).squeeze(0).abs().clamp(min=8.0).unsqueeze(-1)
    lse_error = (
        torch.finfo(F64 if case.logits.dtype == F64 else F32).eps * 8 * lse
    )  # every p inherits the rounding of the saved lse
    rounding = torch.finfo(case.logits.dtype).eps
    bound = expected.abs() * rounding + lse_error * grads.abs().sum(0).unsqueeze(-1) * case.scale / _temperature(case)
    if case.logits.dtype == F16:
        bound = bound + 2.0**-24
    assert ((got - expected).abs() <= bound).all(), float(((got - expected).abs() - bound).max())


def _temperature(case: Rows) -> torch.Tensor | float:
    return case.temperature if case.temperatures is None else case.temperatures.double().unsqueeze(-1)


WIDTHS = [1, 2, 3, 7, 8, 9, 31, 257, 1000]


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
@pytest.mark.parametrize("width", WIDTHS)
def test_short_rows(dtype: torch.dtype, width: int) -> None:
    case = rows(peaked(11, width, dtype=dtype))
    assert_statistics(case)
    assert_gradient(case)


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
@pytest.mark.parametrize("extra", [0, 1, 8 * 7 + 3])
def test_rows_of_one_block(dtype: torch.dtype, extra: int) -> None:
    case = rows(peaked(2, 9 * WARP_ROW[dtype] + extra, dtype=dtype))
    assert_statistics(case)
    assert_gradient(case)


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("offset", range(8))
def test_every_alignment_gives_the_same_bits(dtype: torch.dtype, offset: int) -> None:
    for width in (37, WARP_ROW[dtype] + 301):
        x, other = peaked(3, width, dtype=dtype), peaked(3, width, dtype=dtype, seed=1)
        plain = rows(x, TWO, reference=other)
        moved = rows(misaligned(x, offset), TWO, reference=misaligned(other, 7 - offset))
        assert torch.equal(forward(plain), forward(moved))
        grads = upstream(plain)
        assert torch.equal(backward(plain, grads), backward(moved, grads))
        target = misaligned(torch.zeros_like(x), (3 * offset) % 8)
        assert torch.equal(backward(plain, grads), backward(moved, grads, target))


@pytest.mark.parametrize("dtype", [BF16, F32, F64])
def test_a_row_split_over_blocks_gives_the_same_bits(dtype: torch.dtype) -> None:
    case = rows(peaked(3, 17 * WARP_ROW[dtype] + 5, dtype=dtype), labels=torch.tensor([5, -100, 9 * WARP_ROW[dtype]]))
    split = Emulated(multiprocessors=MANY)
    assert torch.equal(forward(case), forward(case, split))
    assert split.workspace is not None and split.workspace.numel() == 3 * 3 * 12


def test_a_row_gives_the_same_bits_in_any_company() -> None:
    x = peaked(9, 4099, dtype=BF16)
    together = forward(rows(x, labels=torch.arange(9)))
    for row in range(9):
        assert torch.equal(forward(rows(x[row : row + 1], labels=torch.tensor([row])))[:, 0], together[:, row])


@pytest.mark.parametrize("order", [emulator.DESCENDING, emulator.SHUFFLED])
@pytest.mark.parametrize("stats", [ONE, TOP, TWO])
def test_the_order_of_threads_does_not_matter(order: int, stats: str) -> None:
    for width in (300, WARP_ROW[F32] * 9):
        x = peaked(3, width, dtype=F32)
        case = rows(x, stats, reference=peaked(3, width, dtype=F32, seed=1) if stats == TWO else None)
        assert torch.equal(forward(case), forward(case, Emulated(order=order)))
        if stats != TOP:
            grads = upstream(case)
            assert torch.equal(backward(case, grads), backward(case, grads, device=Emulated(order=order)))


@pytest.mark.parametrize("pair", [(BF16, BF16), (F16, F32), (F32, BF16), (F32, F32), (F64, F64)])
@pytest.mark.parametrize("width", [1, 13, 4500])
def test_two_sets_of_logits(pair: tuple[torch.dtype, torch.dtype], width: int) -> None:
    case = rows(peaked(5, width, dtype=pair[0]), TWO, reference=peaked(5, width, dtype=pair[1], seed=1))
    assert_statistics(case)
    assert_gradient(case)


def test_equal_logits_have_equal_log_probabilities_to_the_bit() -> None:
    x = peaked(6, 5000, dtype=BF16)
    logp, ref_logp, kl, rkl = forward(rows(x, "logp,ref_logp,kl,rkl", reference=x.clone()))
    assert torch.equal(logp, ref_logp)
    assert torch.equal(logp, forward(rows(x, "logp"))[0])
    assert (kl == 0).all() and (rkl == 0).all()


@pytest.mark.parametrize("dtype", [BF16, F32, F64])
@pytest.mark.parametrize("k", [1, 10, 33, 64])
def test_top_k(dtype: torch.dtype, k: int) -> None:
    for width in (5, 64, 3000, WARP_ROW[dtype] + 1000):
        assert_statistics(rows(peaked(3, width, dtype=dtype), TOP, k=k))
    ascending = torch.linspace(-5, 5, 2000).to(dtype).expand(2, -1)
    assert_statistics(rows(ascending, TOP, k=k))
    assert_statistics(rows(torch.zeros(2, 500, dtype=dtype), TOP, k=k))


def test_the_first_argmax_wins_ties() -> None:
    x = torch.zeros(4, 3000)
    x[:, [17, 40, 2999]] = 3.0
    assert forward(rows(x, "top1", labels=torch.tensor([17, 40, 2999, 0])))[0].tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("dtype", [BF16, F32, F64])
@pytest.mark.parametrize("softcap", [0.0, 30.0])
def test_transform(dtype: torch.dtype, softcap: float) -> None:
    x, lead = peaked(2, 3, 301, dtype=dtype), (2, 3)
    temperatures = torch.linspace(0.5, 2.0, 6).view(lead)
    for kind in (F16, BF16, F32, F64):
        case = rows(x, scale=0.7, softcap=softcap, temperatures=temperatures.to(kind))
        assert_statistics(case)
        assert_gradient(case)
    same = rows(x, scale=0.7, softcap=softcap, temperature=1.25)
    per_row = rows(x, scale=0.7, softcap=softcap, temperatures=torch.full(lead, 1.25))
    assert_statistics(same)
    assert torch.equal(forward(same), forward(per_row))


@pytest.mark.parametrize("dtype", [BF16, F32, F64])
def test_strides(dtype: torch.dtype) -> None:
    store = peaked(4, 6, 5, 40, dtype=dtype)
    x = store[::2, 1::2].transpose(0, 1)[..., :33]
    labels = torch.randint(33, (5, 2, 3), generator=torch.Generator().manual_seed(0)).permute(2, 1, 0)
    mask = torch.rand(5, generator=torch.Generator().manual_seed(1)).gt(0.3).expand(x.shape[:-1])
    temperatures = torch.tensor([0.5, 1.0]).view(1, 2, 1).expand(x.shape[:-1])
    other = peaked(1, 1, 5, 33, dtype=dtype, seed=2).expand(x.shape)
    case = rows(x, TWO, labels=labels, mask=mask, temperatures=temperatures, reference=other)
    assert_statistics(case)
    assert_gradient(case)
    assert_gradient(case, torch.empty(5, 2, 3, 33, dtype=dtype).permute(2, 1, 0, 3))


def test_ignored_rows_are_not_read() -> None:
    x = peaked(6, 700, dtype=BF16)
    labels, mask = torch.tensor([1, -100, 3, 4, -7, 699]), torch.tensor([True, True, False, True, True, True])
    x[1], x[2] = float("nan"), float("nan")
    case = rows(x, labels=torch.where(labels == -7, 5, labels), mask=mask)
    assert_statistics(case)
    gradient = backward(case, upstream(case))
    assert (gradient[1:3] == 0).all() and gradient.isfinite().all()
    unreadable = case._replace(logits=x[3:])  # the emulator knows only the last rows
    with pytest.raises(emulator.EmulationError, match="read outside every buffer"):
        _forward_with_shorter_buffer(unreadable, case)


def _forward_with_shorter_buffer(known: Rows, case: Rows) -> None:
    class Shorter(Emulated):
        def _run(self, launches: list[emulator.Launch], rows: Rows, *written: torch.Tensor, **more: object) -> None:
            super()._run(launches, known._replace(labels=rows.labels, mask=rows.mask), *written)

    forward(case, Shorter())


@pytest.mark.parametrize("dtype", [BF16, F32])
def test_a_label_out_of_range_makes_its_row_nan(dtype: torch.dtype) -> None:
    for width in (50, WARP_ROW[dtype] * 9):
        x = peaked(4, width, dtype=dtype)
        case = rows(x, labels=torch.tensor([0, width, -1, width - 1]))
        for device in (Emulated(), Emulated(multiprocessors=MANY)):
            values = forward(case, device)
            assert values[:, [1, 2]].isnan().all() and values[:, [0, 3]].isfinite().all()
        gradient = backward(case, upstream(case))
        assert gradient[[1, 2]].isnan().all() and gradient[[0, 3]].isfinite().all()


@pytest.mark.parametrize("width", [20, 5000])
def test_banned_tokens(width: int) -> None:
    x = peaked(4, width, dtype=F32)
    x[0, ::2], x[1, 1:], x[2, :] = -torch.inf, -torch.inf, -torch.inf
    labels = torch.tensor([1, 5, 0, 2])
    case = rows(x, labels=labels)
    logp, lse, entropy, log_sum_sq = forward(case)[:4]
    assert_statistics(rows(x[[0, 3]], labels=labels[[0, 3]]))
    assert logp[1] == -torch.inf and lse[1] == x[1, 0] and abs(entropy[1]) < 1e-6 and abs(log_sum_sq[1]) < 1e-6
    assert (logp[2], lse[2], log_sum_sq[2], entropy[2]) == (-torch.inf, -torch.inf, -torch.inf, 0)
    gradient = backward(case, upstream(case))
    assert gradient.isfinite().all() and (gradient[2] == 0).all()
    assert_gradient(rows(x[[0, 3]], labels=labels[[0, 3]]))


def test_nan_and_infinite_logits_make_their_row_nan() -> None:
    x = peaked(4, 900, dtype=F32)
    x[1, 17], x[2, 899] = torch.nan, torch.inf
    for stats in (ONE, TOP):
        values = forward(rows(x, stats))
        assert values[:, 1:3].isnan().all() and values[:, [0, 3]].isfinite().all()


def test_huge_logits() -> None:
    x = peaked(4, 3000, dtype=F32) * 1000 + torch.tensor([0.0, 1e5, -1e5, 3e6]).view(4, 1)
    assert_statistics(rows(x, "logp,lse,mean_logit"))
    assert_gradient(rows(x, "logp,lse"))


def test_a_confident_token_keeps_its_gradient() -> None:
    x = torch.zeros(1, 2000, dtype=BF16)
    x[0, 7] = 19.0
    case = rows(x, "logp,lse", labels=torch.tensor([7]))
    grads = torch.tensor([[1.0], [0.0]])
    exact = reference.gradient(case, grads)[0, 7]
    assert abs(backward(case, grads)[0, 7].double() / exact - 1) < 0.05


def test_a_temperature_that_is_no_positive_number_makes_its_row_nan() -> None:
    case = rows(peaked(5, 40, dtype=BF16), temperatures=torch.tensor([1.0, 0.0, -1.0, torch.inf, torch.nan]))
    values = forward(case)
    assert values[:, 0].isfinite().all() and values[:, 1:].isnan().all()
    gradient = backward(case, upstream(case))
    assert gradient[0].isfinite().all() and gradient[1:].isnan().all()


@pytest.mark.needs("sparse_memory")
class TestBeyond32Bits:
    """Element offsets above 2³¹ and 2³²."""

    def test_strides(self) -> None:
        stride, width = 2**32 + 24, 700
        x = reserve(2 * stride + width).as_strided((3, width), (stride, 1)).copy_(peaked(3, width, dtype=BF16))
        near = rows(x.clone())
        far = near._replace(logits=x)
        assert torch.equal(forward(far), forward(near))
        grads = upstream(near)
        expected = backward(near, grads)
        Emulated().rows_backward(far, grads, forward(near), x)
        assert torch.equal(x, expected)

    def test_the_end_of_a_very_long_row(self) -> None:
        width = 2**32 + 1000
        x = reserve(width).view(1, width)
        x[0, -1000:] = peaked(1000, dtype=BF16)
        case = rows(x, "logp,lse", labels=torch.tensor([width - 7]))
        chunks = -(-width // (8 * WARP_ROW[BF16]))
        last = Emulated(multiprocessors=MANY, blocks=(chunks - 1, chunks))
        out = torch.empty(2, 1)
        _without_combining(last).rows_forward(case, out)
        assert last.workspace is not None
        peak, total = last.workspace.view(chunks, 12)[-1, :2].double()
        tail = x[0, (chunks - 1) * 8 * WARP_ROW[BF16] :].double()
        assert torch.isclose((peak * math.log(2)).exp() * total, tail.exp().sum(), rtol=1e-5)
        grads, saved = torch.tensor([[1.0], [0.0]]), torch.tensor([[-3.0], [25.0]])
        Emulated(blocks=(chunks - 1, chunks)).rows_backward(case, grads, saved, x)
        expected = -(tail - 25.0).exp()
        expected[-7] = 1 - math.exp(-3.0)
        assert torch.allclose(x[0, -len(tail) :].double(), expected, rtol=2**-8)


def _without_combining(device: Emulated) -> Emulated:
    """Runs the first launch only."""
    run = device._run
    device._run = lambda launches, *rest, **more: run(launches[:1], *rest, **more)  # type: ignore[method-assign]
    return device


def test_no_upstream_gradient_means_zeros_unread() -> None:
    x = torch.full((3, 600), torch.nan, dtype=BF16)
    case = rows(x, "logp,lse,entropy")
    assert (backward(case, torch.zeros(3, 3)) == 0).all()


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
def test_in_place(dtype: torch.dtype) -> None:
    for width in (1, 45, 4100, WARP_ROW[dtype] * 9 + 3):
        x = misaligned(peaked(3, width, dtype=dtype), 3)
        case, grads = rows(x, "logp,lse,entropy", labels=torch.tensor([0, -100, width - 1])), torch.ones(3, 3).to(dtype)
        grads = grads.to(F64 if dtype == F64 else F32)
        expected, saved = backward(case, grads), forward(case)
        Emulated().rows_backward(case, grads, saved, case.logits)
        assert torch.equal(case.logits, expected)


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("stats", ["logp,lse", "logp,lse,entropy,mean_logit", "logp,entropy,ref_lse,kl,rkl"])
def test_a_large_upstream_gradient_scales_the_gradient(dtype: torch.dtype, stats: str) -> None:
    """Above 1e8 a row's factors are no longer folded: the formula itself gives the same."""
    reference_logits = peaked(2, 4099, dtype=dtype, seed=7) if "kl" in stats else None
    case = rows(peaked(2, 4099, dtype=dtype), stats + ("" if "lse" in stats.split(",") else ",lse"))._replace(
        reference=reference_logits
    )
    grads = upstream(case)
    small, large = backward(case, grads), backward(case, grads * 2.0**40)
    assert large.isfinite().all()
    error = (large.double() / 2.0**40 - small.double()).abs()
    bound = 2 * torch.finfo(dtype).eps * small.double().abs() + 2e-5 * small.double().abs().amax(1, keepdim=True)
    assert (error <= bound).all(), float((error - bound).max())


def test_infinite_upstream_gradients_reach_every_token_with_mass() -> None:
    """A banned token, whose p is 0, keeps a gradient of 0."""
    x = peaked(1, 5000, dtype=F32)
    x[0, 100:200] = -math.inf
    case = rows(x, "lse", labels=torch.tensor([7]))
    gradient = backward(case, torch.tensor([[math.inf]]))
    assert (gradient[0, 100:200] == 0).all()
    assert gradient[0, 0] == math.inf


@pytest.mark.parametrize("width", [4096 + 8, 8192 + 5, 32768 + 2056])
def test_banned_tokens_in_every_place_of_a_unit(width: int) -> None:
    """Units with a −inf are added up with care; entropy, KL and their gradients stay those of float64."""
    for place in range(8):
        x, ref = peaked(1, width, dtype=BF16, seed=place), peaked(1, width, dtype=BF16, seed=9 + place)
        x[0, place::97] = -math.inf
        ref[0, place::97] = -math.inf
        case = rows(x, TWO, labels=torch.tensor([width - 1 - (place == (width - 1) % 97)]))._replace(reference=ref)
        assert_statistics(case)


@pytest.mark.parametrize("label", [0, 7, 8, 8191, 8192, 12_344])
def test_the_label_is_found_wherever_it_is(label: int) -> None:
    case = rows(peaked(1, 12_345, dtype=BF16), "logp,lse", labels=torch.tensor([label]))
    assert_gradient(case)
    shifted = misaligned(case.logits, 3)
    assert torch.equal(backward(case, upstream(case)), backward(case._replace(logits=shifted), upstream(case), shifted))
