"""The emulated CUDA kernels against the CPU backend: same calls, same special cases, same numbers up to rounding."""

from __future__ import annotations

import pytest
import torch

from prefuse._backends import cpu
from prefuse._backends.rows import Rows
from tests.emulator.backend import Emulated
from tests.emulator.test_rows import BF16, F16, F32, F64, ONE, TWO, peaked, rows, upstream

pytestmark = pytest.mark.needs("compiler")

STATS = f"{ONE},topk_mass,topk_entropy,{','.join(name for name in TWO.split(',') if name not in ONE.split(','))}"


def both(case: Rows) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Statistics and gradients of `case`, by each backend."""
    results = []
    for backend in (cpu, Emulated()):
        out = torch.empty((len(case.statistics), *case.labels.shape), dtype=F64 if case.logits.dtype == F64 else F32)
        gradient = torch.empty_like(case.logits)
        backend.rows_forward(case, out)
        backend.rows_backward(case, upstream(case), out, gradient)
        results.append((out, gradient))
    return results


def hostile(dtype: torch.dtype) -> Rows:
    """Ties, banned tokens, rows of nothing else, an ignored row of NaN, NaN and infinity, peaked and flat rows."""
    x, other = peaked(10, 333, dtype=dtype), peaked(10, 333, dtype=dtype, seed=1)
    labels = torch.arange(10) * 7
    x[1], x[2, ::2], x[3] = 0.0, -torch.inf, -torch.inf
    x[4], x[5, 9], x[6, 300] = torch.nan, torch.nan, torch.inf
    x[7, 49], x[8, 1:] = 60.0, -torch.inf
    other[9, ::3] = -torch.inf
    x[9, ::3] = -torch.inf
    labels[4] = -100
    return rows(x, STATS, labels=labels, reference=other, temperature=0.9, scale=1.1)


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
def test_hostile_rows(dtype: torch.dtype) -> None:
    case = hostile(dtype)
    (cpu_values, cpu_gradient), (values, gradient) = both(case)
    for name, expected, got in zip(case.statistics, cpu_values, values, strict=True):
        tolerance = 1e-12 if dtype == F64 else 2e-5
        torch.testing.assert_close(
            got, expected, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )
    rounding = max(torch.finfo(dtype).eps, 1e-12 if dtype == F64 else 2e-5)
    torch.testing.assert_close(gradient, cpu_gradient, rtol=rounding, atol=rounding, equal_nan=True)
