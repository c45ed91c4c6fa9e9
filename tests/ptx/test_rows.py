"""What NVRTC makes of the row kernels, executed: against float64 and each other, and with planted mistakes."""

from __future__ import annotations

import pytest
import torch

from tests.emulator import reference
from tests.emulator.test_rows import (
    BF16,
    F16,
    F32,
    F64,
    ONE,
    TOP,
    TWO,
    assert_statistics,
    forward,
    misaligned,
    peaked,
    rows,
    upstream,
)
from tests.ptx.backend import Interpreted
from tests.ptx.machine import MachineError

pytestmark = pytest.mark.needs("nvrtc")


def both(case, device):
    grads = upstream(case)
    out = torch.full((len(case.statistics), *case.labels.shape), 777.0, dtype=grads.dtype)
    gradient = torch.full_like(case.logits, 777.0)
    device.rows_both(case, grads, out, gradient)
    return out, gradient


def two_calls(case, device):
    grads = upstream(case)
    out = forward(case, device)
    gradient = torch.full_like(case.logits, 777.0)
    device.rows_backward(case, grads, out, gradient)
    return out, gradient


def assert_near(gradient, case):
    """Within the roundings of the dtype and of the saved lse."""
    expected = reference.gradient(case, upstream(case))
    eps = torch.finfo(case.logits.dtype).eps
    scale = upstream(case).double().abs().sum(0).unsqueeze(-1)
    error = (gradient.double() - expected).abs()
    assert (error <= eps * expected.abs() + scale * (1e-13 if case.logits.dtype == F64 else 2e-5)).all(), float(
        error.max()
    )


@pytest.mark.parametrize(("dtype", "width"), [(BF16, 1000), (BF16, 5000), (F16, 1000), (F32, 5000), (F64, 1000)])
def test_both_are_the_two_calls_to_the_bit(dtype, width):
    case = rows(peaked(2, width, dtype=dtype), "logp,lse,entropy,mean_logit")
    out, gradient = both(case, Interpreted())
    assert_near(gradient, case)
    other, other_gradient = two_calls(case, Interpreted())
    assert torch.equal(out, other) and torch.equal(gradient, other_gradient)


@pytest.mark.parametrize("names", ["logp,lse", "logp,lse,log_sum_sq,mean_logit,top1"])
def test_b200_computes_one_exponential_in_eight_on_the_fma_pipes(names):
    """The same bits by one visit and by two, whatever other statistics there are."""
    case = rows(peaked(2, 5000, dtype=BF16), names)
    out, gradient = both(case, Interpreted(capability=100))
    assert_near(gradient, case)
    assert_statistics(case, Interpreted(capability=100))
    other, other_gradient = two_calls(case, Interpreted(capability=100))
    assert torch.equal(out, other) and torch.equal(gradient, other_gradient)


@pytest.mark.parametrize(
    ("value", "at"), [(torch.nan, 7), (torch.inf, 7), (torch.nan, 8), (-torch.inf, slice(7, None, 8))]
)
def test_nan_and_infinite_logits_mean_the_same_on_those_pipes(value, at):
    x = peaked(2, 1000, dtype=BF16)
    x[0, at] = value
    case = rows(x, "logp,lse", labels=torch.tensor([3, 4]))
    for capability in (90, 100):
        out, gradient = both(case, Interpreted(capability=capability))
        if value == -torch.inf:
            assert_near(gradient, case)
            assert (gradient[0, at] == 0).all() and out.isfinite().all()
        else:
            assert out[:, 0].isnan().all() and gradient[0].isnan().all() and out[:, 1].isfinite().all()


@pytest.mark.parametrize(("dtype", "width"), [(BF16, 40_000), (F32, 40_000)])
def test_clusters(dtype, width):
    """Rows of two and three blocks: partials by distributed shared memory. One cluster does all rows."""
    case = rows(peaked(3, width, dtype=dtype), "logp,lse")
    assert_near(both(case, Interpreted(clusters=1))[1], case)


@pytest.mark.parametrize(("dtype", "stats"), [(BF16, ONE), (F32, TOP), (F16, TWO), (F64, TWO)])
def test_statistics(dtype, stats):
    case = rows(peaked(2, 4099, dtype=dtype), stats)
    assert_statistics(
        case._replace(reference=peaked(2, 4099, dtype=dtype, seed=1) if "kl" in stats else None), Interpreted()
    )


def test_rows_off_boundaries_and_banned_tokens():
    x = peaked(2, 9001, dtype=BF16)
    x[:, ::7] = -torch.inf
    case = rows(misaligned(x, 3), ONE.replace(",mean_logit", ""))
    assert_statistics(case, Interpreted())
    assert torch.equal(forward(case, Interpreted()), forward(case._replace(logits=x), Interpreted()))


def test_soft_cap():
    case = rows(peaked(1, 5000, dtype=F32), "logp,lse,entropy", softcap=30.0)
    assert_statistics(case, Interpreted())
    assert_near(two_calls(case, Interpreted())[1], case)


WIDE = rows(peaked(2, 40_000, dtype=BF16), "logp,lse")


def test_a_swapped_pair_is_seen():
    right = 'cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low)'
    with pytest.raises(AssertionError):
        assert_near(both(WIDE, Interpreted(changes={right: right.replace("%1, %2", "%2, %1")}))[1], WIDE)


def test_a_wrong_rank_is_seen():
    with pytest.raises(AssertionError):
        assert_near(both(WIDE, Interpreted(changes={'"l"(p), "r"(rank));': '"l"(p), "r"(0));'}))[1], WIDE)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("    if (CLUSTER > 1) cluster_barrier();\n    else", "    if (CLUSTER > 1) __syncthreads();\n    else"),
        (
            "    if (lane == 0) warps[buffer][warp] = p;\n    __syncthreads();",
            "    if (lane == 0) warps[buffer][warp] = p;",
        ),
        ("        place = kept.place ^ 1;\n", ""),
    ],
    ids=["no barrier of the cluster", "no barrier between warps", "rows use the same places"],
)
def test_races_are_seen(right, wrong):
    with pytest.raises(MachineError, match="race in shared memory"):
        both(WIDE, Interpreted(changes={right: wrong}, clusters=1))


def test_a_read_behind_a_row_is_seen():
    case = rows(peaked(1, 1000, dtype=BF16), "logp,lse")
    wrong = {"return first >= 0 && first + N <= size;": "return first >= 0 && first + N <= size + 256;"}
    with pytest.raises(MachineError, match="outside of every buffer"):
        forward(case, Interpreted(changes=wrong))
