"""Statistics and gradient in one visit have the bits of the two calls: the CPU backend, the CUDA kernels emulated."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prefuse._backends import cpu
from prefuse._backends.rows import Rows
from tests.emulator import emulator
from tests.emulator.backend import Emulated
from tests.emulator.test_agreement import hostile
from tests.emulator.test_blocks import needs_compiler
from tests.emulator.test_rows import BF16, F16, F32, F64, ONE, TWO, bits, misaligned, peaked, rows, upstream

BACKENDS = [
    pytest.param(cpu, id="cpu"),
    pytest.param(Emulated(), id="emulated", marks=needs_compiler),
    pytest.param(Emulated(order=emulator.SHUFFLED, capability=120), id="little-shared-memory", marks=needs_compiler),
    pytest.param(Emulated(order=emulator.DESCENDING, capability=89), id="no-clusters", marks=needs_compiler),
]


def one_after_the_other(backend: Any, case: Rows, grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    out, gradient = torch.full_like(grads, 777.0), torch.full_like(case.logits, 777.0)
    backend.rows_forward(case, out)
    backend.rows_backward(case, grads, out, gradient)
    return out, gradient


def in_one_visit(
    backend: Any, case: Rows, grads: torch.Tensor, gradient: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.full_like(grads, 777.0)
    gradient = torch.full_like(case.logits, 777.0) if gradient is None else gradient
    backend.rows_both(case, grads, out, gradient)
    return out, gradient


def assert_same_bits(backend: Any, case: Rows) -> None:
    """Into a gradient of its own, then over the logits."""
    grads = upstream(case)
    expected = one_after_the_other(backend, case, grads)
    # Strides are part of the case.
    logits = torch.empty_strided(case.logits.shape, case.logits.stride(), dtype=case.logits.dtype).copy_(case.logits)
    for got in (
        in_one_visit(backend, case, grads),
        in_one_visit(backend, case._replace(logits=logits), grads, gradient=logits),
    ):
        for mine, theirs in zip(got, expected, strict=True):
            assert torch.equal(mine.nan_to_num(nan=777.0), theirs.nan_to_num(nan=777.0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
@pytest.mark.parametrize("stats", [ONE, TWO, None])
def test_hostile_rows(backend: Any, dtype: torch.dtype, stats: str | None) -> None:
    case = hostile(dtype)
    case = (
        case if stats is None else case._replace(stats=bits(stats), reference=case.reference if stats == TWO else None)
    )
    assert_same_bits(backend, case)
    assert_same_bits(backend, case._replace(softcap=5.0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
@pytest.mark.parametrize("width", [1, 7, 8, 40, 4096, 4099, 40000])
def test_widths(backend: Any, dtype: torch.dtype, width: int) -> None:
    case = rows(peaked(3, width, dtype=dtype), labels=torch.tensor([width - 1, -100, width // 2]))
    assert_same_bits(backend, case)
    assert_same_bits(backend, case._replace(stats=bits("logp,lse")))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [3, 50])
def test_few_rows_and_many_on_the_cpu(count: int, threads: int) -> None:
    """Three rows are shared among threads, fifty are dealt out whole."""
    case = rows(peaked(count, 9001, dtype=BF16), mask=torch.arange(count) % 7 != 3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert_same_bits(cpu, case)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_layouts(backend: Any, dtype: torch.dtype) -> None:
    labels = torch.arange(6).view(2, 3)
    padded = peaked(2, 3, 344, dtype=dtype)[..., :333]
    assert_same_bits(backend, rows(padded, labels=labels))
    assert_same_bits(backend, rows(padded.transpose(0, 1), labels=labels.t()))
    for offset in (1, 3, 8):
        assert_same_bits(backend, rows(misaligned(padded[0], offset), labels=labels[0]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_options(backend: Any) -> None:
    x = peaked(4, 1000, dtype=F32)
    temperatures = torch.tensor([0.5, 1.0, 2.0, 3.0])
    assert_same_bits(backend, rows(x, temperatures=temperatures, scale=0.7))
    assert_same_bits(backend, rows(x, first_class=300, classes=2000, labels=torch.tensor([0, 300, 1299, 1999])))
    case = rows(x, "logp,lse")
    _, gradient = in_one_visit(backend, case, torch.zeros(2, 4))
    assert not gradient.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_the_gradients_need_must_be_among_the_statistics(backend: Any) -> None:
    case = rows(torch.zeros(2, 5), "logp")
    with pytest.raises(ValueError, match=r'^stats: the gradient of "logp" needs "lse" among the saved values$'):
        in_one_visit(backend, case, torch.ones(1, 2))


@needs_compiler
@pytest.mark.parametrize("order", [emulator.ASCENDING, emulator.DESCENDING, emulator.SHUFFLED])
def test_several_chunks_to_a_block(order: int) -> None:
    """Nine chunks on clusters of at most eight blocks; more rows than a grid has clusters take turns."""
    case = rows(
        peaked(3, 8 * 8192 + 4, dtype=F64), "logp,lse,entropy,mean_logit,top1", labels=torch.tensor([3, -100, 65539])
    )
    device = Emulated(order=order)
    launch = plan(case, device)[0]
    assert (launch["cluster"], dict(launch["defines"])["PARTS"]) == (5, "2")
    assert_same_bits(device, case)
    device.blocks = (0, 5)  # the first cluster alone: one of the rows
    grads = torch.ones(5, 3, dtype=F64)
    out, gradient = in_one_visit(device, case, grads)
    assert (out[:, 0] != 777.0).all()
    assert (out[:, 1:] == 777.0).all()
    assert (gradient[0] != 777.0).all()
    assert (gradient[1:] == 777.0).all()


def plan(case: Rows, device: Emulated) -> list[dict[str, Any]]:
    grads = torch.empty((len(case.statistics), *case.labels.shape), dtype=F64 if case.logits.dtype == F64 else F32)
    return device.both_launches(case, grads, torch.empty_like(grads), case.logits)


def shape(*size: int, dtype: torch.dtype) -> torch.Tensor:
    """Logits that nobody reads, at a 16-byte boundary."""
    return torch.empty(size, dtype=dtype)


@pytest.mark.parametrize(
    ("dtype", "width", "capability", "blocks", "kibibytes"),
    [
        (BF16, 128256, 90, 4, 64),
        (F16, 151936, 100, 5, 64),
        (F32, 128256, 120, 8, 64),
        (F32, 151936, 90, 5, 128),
        (F32, 8 * 3 * 16384, 90, 8, 192),
        (F64, 8 * 3 * 8192, 100, 8, 192),
        (BF16, 4096, 90, 1, 64),
        (BF16, 1024, 90, 1, 16),
        (BF16, 8192, 90, 1, 16),
    ],
)
def test_a_row_is_held_by_as_many_blocks_as_it_has_chunks(
    dtype: torch.dtype, width: int, capability: int, blocks: int, kibibytes: int
) -> None:
    case = rows(shape(2, width, dtype=dtype), "logp,lse", labels=torch.zeros(2, dtype=torch.int64))
    (launch,) = plan(case, Emulated(capability=capability))
    assert launch["kernel"] == "rows_both"
    assert (launch["cluster"], launch["shared"]) == (blocks, kibibytes * 1024)
    assert launch["grid"] == blocks * (2 if width > 4096 else 1)


@pytest.mark.parametrize(
    ("case", "capability"),
    [
        (rows(shape(2, 128256, dtype=BF16), "logp,lse"), 80),
        (rows(shape(2, 151936, dtype=F32), "logp,lse"), 120),
        (rows(shape(2, 8 * 3 * 16384 + 4, dtype=F32), "logp,lse"), 90),
        (rows(shape(2, 1001, dtype=BF16), "logp,lse"), 90),
        (rows(shape(2, 1008, dtype=BF16)[:, 1:], "logp,lse"), 90),
        (rows(shape(2, 1000, dtype=BF16), "logp,topk_mass,lse"), 90),
        (rows(shape(2, 1000, dtype=BF16), TWO, reference=shape(2, 1000, dtype=BF16)), 90),
    ],
    ids=["no clusters", "little shared memory", "too wide", "odd stride", "odd address", "top-k", "reference"],
)
def test_what_cannot_be_held_takes_the_launches_of_the_two_calls(case: Rows, capability: int) -> None:
    kernels = [launch["kernel"] for launch in plan(case, Emulated(capability=capability))]
    assert kernels in (["rows_forward", "rows_backward"], ["rows_forward", "rows_combine", "rows_backward"])


def test_rows_at_any_stride_of_sixteen_bytes_are_held() -> None:
    logits = shape(3, 2, 1008, dtype=BF16)[..., :1001].transpose(0, 1)
    case = rows(logits, "logp,lse", labels=torch.zeros(2, 3, dtype=torch.int64))
    assert [launch["kernel"] for launch in plan(case, Emulated())] == ["rows_both"]
    assert plan(rows(shape(1, 7, dtype=BF16), "logp,lse"), Emulated())[0]["kernel"] == "rows_both"
    assert plan(rows(shape(0, 7, dtype=BF16), "logp,lse"), Emulated()) == []
