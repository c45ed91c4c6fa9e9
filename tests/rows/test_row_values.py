"""Every statistic against the float64 definition: dtypes, vocabulary sizes, transforms, layouts, options."""

import itertools

import mpmath
import numpy as np
import pytest
import torch
from row_oracle import EPS, assert_as_good_as_oracle, peaked, some_labels, statistics, transform

from prefuse.functional import STATISTICS, sequence_logps, token_logps, token_stats

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
# One class, below and off every vector width, across the chunks a row is cut into, and a real vocabulary.
VOCABULARIES = [1, 2, 3, 7, 17, 63, 64, 65, 1000, 4096, 4097, 32003]
TRANSFORMS = [
    {},
    {"temperature": 0.7},
    {"scale": 0.5},
    {"softcap": 2.0},
    {"temperature": 0.7, "scale": 0.5, "softcap": 30.0},
]


def check_all(x, labels, reference, **transforms):
    got = token_stats(x, labels, STATISTICS, reference_logits=reference, **transforms)
    exact = statistics(x, labels, reference, **transforms)
    precision = torch.float64 if x.dtype == torch.float64 else torch.float32
    own = statistics(x, labels, reference, precision=precision, **transforms)
    largest = 2 * transform(x.double(), **transforms).abs().max().item()
    for name in STATISTICS:
        rounded = bool(transforms) or precision == torch.float64 or name == "mean_logit"
        assert got[name].dtype == precision
        assert_as_good_as_oracle(got[name], exact[name], own[name], name, largest=largest if rounded else 0.0)
    assert_bounds(got)


def assert_bounds(got):
    """What no rounding may break: the logarithm of 1 − p is taken of these."""
    bounds = {"logp": (None, 0), "ref_logp": (None, 0), "entropy": (0, None), "log_sum_sq": (None, 0)}
    bounds |= {"topk_mass": (0, 1), "topk_entropy": (0, None), "kl": (0, None), "rkl": (0, None)}
    for name, (low, high) in bounds.items():
        if name in got:
            assert low is None or (got[name] >= low).all(), f"{name} below {low}"
            assert high is None or (got[name] <= high).all(), f"{name} above {high}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_every_statistic(dtype, vocabulary):
    x = peaked((3, 4, vocabulary), seed=vocabulary, dtype=dtype)
    reference = peaked((3, 4, vocabulary), seed=vocabulary + 1, dtype=dtype)
    check_all(x, some_labels((3, 4), vocabulary, vocabulary), reference)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transforms", TRANSFORMS, ids=str)
def test_transforms(dtype, transforms):
    x, reference = (peaked((5, 301), seed=seed, dtype=dtype) for seed in (3, 4))
    check_all(x, some_labels((5,), 301, 3), reference, **transforms)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (3, 4), (3, 1)])
def test_temperature_per_token(dtype, shape):
    x = peaked((3, 4, 65), seed=5)
    temperature = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(dtype) + 0.5
    labels = some_labels((3, 4), 65, 5)
    got = token_stats(x, labels, ("logp", "entropy"), temperature=temperature)
    for name in got:
        exact, own = (
            statistics(x, labels, temperature=temperature.expand(3, 4), precision=precision)[name]
            for precision in (torch.float64, torch.float32)
        )
        assert_as_good_as_oracle(got[name], exact, own, name, largest=2 * x.abs().max().item())
    assert_bounds(got)


@pytest.mark.parametrize("softcap", [None, 30.0, 0.9])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_certainty_is_zero_and_never_positive(dtype, softcap):
    """A label of probability 1 has log-probability 0 up to the rounding of its logit, and never more than 0."""
    x, labels = peaked((500, 1), seed=19, dtype=dtype), torch.zeros(500, dtype=torch.int64)
    sure = torch.cat([x.abs() + 60, torch.full((500, 20), -60, dtype=dtype)], -1)
    for scale, temperature in itertools.product((1.0, 0.3), (1.0, 0.7, 0.8, 3.0)):
        transforms = {"softcap": softcap, "temperature": temperature, "scale": scale}
        rounding = EPS * (1 if softcap is None else 4 * transform(x.double(), **transforms).abs().max())
        only = token_logps(x, labels, **transforms)
        assert (only <= 0).all()
        assert (only >= -rounding).all()
        assert_bounds(token_stats(sure, labels, STATISTICS, reference_logits=sure / 2, **transforms))
    assert not token_logps(x, labels).any()
    assert not token_logps(sure, labels).any()


@pytest.mark.parametrize("name", STATISTICS)
def test_a_statistic_alone_has_the_bits_it_has_among_others(name):
    x, reference = peaked((6, 4097), seed=6, dtype=torch.bfloat16), peaked((6, 4097), seed=7, dtype=torch.float32)
    labels = some_labels((6,), 4097, 6)
    together = token_stats(x, labels, STATISTICS, reference_logits=reference, temperature=0.9)
    alone = token_stats(x, labels, name, reference_logits=reference, temperature=0.9)
    assert list(alone) == [name]
    assert torch.equal(alone[name], together[name])


@pytest.mark.parametrize("k", [1, 2, 5, 63, 64])
@pytest.mark.parametrize("vocabulary", [5, 64, 70, 5000])
def test_topk(k, vocabulary):
    x = peaked((4, vocabulary), seed=k, sharpness=2.0)
    labels = some_labels((4,), vocabulary, k)
    got = token_stats(x, labels, ("topk_mass", "topk_entropy"), k=k)
    exact, own = (statistics(x, labels, k=k, precision=p) for p in (torch.float64, torch.float32))
    for name in got:
        assert_as_good_as_oracle(got[name], exact[name], own[name], name)


def test_topk_takes_each_of_equal_logits():
    x = torch.tensor([[2.0, 2.0, 2.0, 0.0]])
    got = token_stats(x, torch.tensor([0]), ("topk_mass", "topk_entropy"), k=2)
    mass = 2 * np.exp(2) / (3 * np.exp(2) + 1)
    np.testing.assert_allclose([got.topk_mass, got.topk_entropy], [[mass], [np.log(2)]], rtol=2 * EPS)


def test_top1_is_the_first_of_equal_logits():
    x = torch.zeros(4, 2000)
    x[:, [700, 1500]] = 1.0
    assert token_stats(x, torch.tensor([700, 1500, 0, 1999]), "top1").top1.tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_policy_and_reference_are_equal_to_the_bit(dtype):
    x = peaked((8, 5003), seed=8, dtype=dtype)
    labels = some_labels((8,), 5003, 8)
    got = token_stats(x, labels, ("logp", "lse", "ref_logp", "ref_lse", "kl", "rkl"), reference_logits=x.clone())
    assert torch.equal(got.logp, got.ref_logp)
    assert torch.equal(got.lse, got.ref_lse)
    assert torch.equal(token_logps(x, labels), got.ref_logp)
    assert not got.kl.any()
    assert not got.rkl.any()


def test_reference_of_another_dtype_and_layout():
    x = peaked((4, 6, 130), seed=9, dtype=torch.bfloat16)
    reference = peaked((6, 4, 130), seed=10, dtype=torch.float16).transpose(0, 1)
    check_all(x, some_labels((4, 6), 130, 9), reference)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 1, 3)])
def test_any_leading_shape(shape):
    x = peaked((*shape, 33), seed=11)
    check_all(x, some_labels(shape, 33, 11), peaked((*shape, 33), seed=12))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_empty_batch(shape):
    x = torch.zeros(*shape, 7, requires_grad=True)
    got = token_stats(x, torch.zeros(shape, dtype=torch.int64), ("logp", "entropy"))
    assert got.logp.shape == got.entropy.shape == shape
    got.logp.sum().backward()
    assert x.grad.shape == x.shape


LAYOUTS = {
    "rows of a wider matrix": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    "every other row": lambda x: x.repeat_interleave(2, 0)[::2],
    "transposed leading dimensions": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "classes apart (copied)": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "offset": lambda x: torch.cat([torch.zeros(1, *x.shape[1:], dtype=x.dtype), x])[1:],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_layout_does_not_change_a_bit(layout, dtype):
    x = peaked((3, 4, 517), seed=13, dtype=dtype)
    labels = some_labels((3, 4), 517, 13)
    moved = LAYOUTS[layout](x)
    assert torch.equal(moved, x)
    assert torch.equal(
        torch.stack(list(token_stats(moved, labels.t().contiguous().t(), ("logp", "entropy")).values())),
        torch.stack(list(token_stats(x, labels, ("logp", "entropy")).values())),
    )


def test_expanded_logits_and_labels():
    x = peaked((1, 4, 517), seed=14)
    labels = some_labels((1, 4), 517, 14)
    assert torch.equal(token_logps(x.expand(3, 4, 517), labels.expand(3, 4)), token_logps(x, labels).expand(3, 4))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.uint16, torch.uint32])
def test_label_dtypes(dtype):
    x, labels = peaked((5, 100), seed=15), some_labels((5,), 100, 15)
    assert torch.equal(token_logps(x, labels.to(dtype)), token_logps(x, labels))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
def test_mask_and_ignore_index(dtype):
    x, labels = peaked((2, 5, 100), seed=16), some_labels((2, 5), 100, 16)
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0]])
    labels[0, 0] = 7
    got = token_stats(x, labels, ("logp", "lse", "top1"), mask=mask.to(dtype), ignore_index=7)
    scored = (mask == 1) & (labels != 7)
    assert scored.sum() == 2
    for name, value in token_stats(x, labels, ("logp", "lse", "top1"), ignore_index=-1).items():
        assert torch.equal(got[name], torch.where(scored, value, 0.0))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy(dtype):
    x = peaked((2, 3, 65), seed=17).numpy().astype(dtype)
    labels = some_labels((2, 3), 65, 17)
    got = token_stats(x, labels.numpy(), ("logp", "entropy"), mask=np.array([[1, 1, 0], [1, 1, 1]]), temperature=0.5)
    expected = token_stats(
        torch.from_numpy(x), labels, ("logp", "entropy"), mask=torch.tensor([[1, 1, 0], [1, 1, 1]]), temperature=0.5
    )
    for name in expected:
        assert isinstance(got[name], np.ndarray)
        np.testing.assert_array_equal(got[name], expected[name].numpy())


@pytest.mark.parametrize("average", [False, True])
def test_numpy_sequences(average):
    x, labels = peaked((3, 4, 65), seed=20), some_labels((3, 4), 65, 20)
    got = sequence_logps(x.numpy(), labels.numpy(), average=average, shift=True)
    assert isinstance(got, np.ndarray)
    expected = token_logps(x[:, :-1], labels[:, 1:]).double().sum(-1) / (3 if average else 1)
    np.testing.assert_allclose(got, expected.numpy(), rtol=2 * EPS)
    offsets = np.array([0, 4, 8, 12])
    packed = sequence_logps(
        x.view(12, 65).numpy(), labels.view(12).numpy(), cu_seqlens=offsets, average=average, shift=True
    )
    np.testing.assert_array_equal(packed, got)


NUMPY_LAYOUTS = {
    "read-only": lambda x: np.broadcast_to(x, x.shape),
    "broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
    "reversed": lambda x: x[::-1],
    "reversed classes": lambda x: x[:, ::-1],
    "big-endian": lambda x: x.astype(">f4"),
    "field of a record": lambda x: np.rec.fromarrays([x, x.astype("i2")], names="x,y")["x"],
    "fortran order": lambda x: np.asfortranarray(x),
}


@pytest.mark.parametrize("layout", NUMPY_LAYOUTS)
def test_numpy_layouts(layout, recwarn):
    x = NUMPY_LAYOUTS[layout](peaked((4, 65), seed=18).numpy())
    labels = some_labels((4,), 65, 18).numpy()
    got = token_logps(x, labels)
    expected = token_logps(torch.tensor(np.ascontiguousarray(x, dtype="f4")), torch.tensor(labels))
    np.testing.assert_array_equal(got, expected.numpy())
    assert not recwarn.list


@pytest.mark.parametrize("magnitude", [1.0, 30.0, 1e4, 1e30])
def test_against_fifty_digits(magnitude):
    """The float64 oracle itself could be wrong; fifty digits are not."""
    x = torch.tensor([0.3, -1.2, 0.7, 0.7, -0.1], dtype=torch.float64) * magnitude
    reference = torch.tensor([-0.2, 0.4, 0.1, -0.9, 0.35], dtype=torch.float64) * magnitude
    with mpmath.workdps(50):
        z, r = ([mpmath.mpf(v) for v in t.tolist()] for t in (x, reference))
        lse, ref_lse = (mpmath.log(mpmath.fsum(mpmath.exp(v) for v in row)) for row in (z, r))
        p, q = [mpmath.exp(v - lse) for v in z], [mpmath.exp(v - ref_lse) for v in r]
        exact = {
            "logp": z[2] - lse,
            "lse": lse,
            "entropy": lse - mpmath.fsum(a * v for a, v in zip(p, z, strict=True)),
            "log_sum_sq": mpmath.log(mpmath.fsum(a * a for a in p)),
            "mean_logit": mpmath.fsum(z) / 5,
            "kl": mpmath.fsum(a * (v - lse - u + ref_lse) for a, v, u in zip(p, z, r, strict=True)),
            "rkl": mpmath.fsum(b * (u - ref_lse - v + lse) for b, v, u in zip(q, z, r, strict=True)),
        }
        exact = {name: float(value) for name, value in exact.items()}
    got = token_stats(x, torch.tensor(2), tuple(exact), reference_logits=reference)
    for name, value in exact.items():
        assert got[name].item() == pytest.approx(value, rel=1e-15, abs=4e-16 * max(1.0, magnitude)), name
