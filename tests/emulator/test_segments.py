"""The segment kernels on the CPU."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from tests.emulator import emulator
from tests.emulator.backend import Emulated

pytestmark = pytest.mark.needs("compiler")

OFFSETS = torch.tensor([0, 0, 5, 6, 6, 1306, 2000])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("order", [emulator.ASCENDING, emulator.DESCENDING, emulator.SHUFFLED])
def test_sum_and_expand(dtype: torch.dtype, order: int) -> None:
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0), dtype=dtype)
    sums, expanded = torch.full((6,), 777.0, dtype=dtype), torch.full((2000,), 777.0, dtype=dtype)
    device = Emulated(order=order)
    device.segment_sum(values, OFFSETS, sums)
    exact = torch.stack([values[a:b].double().sum() for a, b in pairwise(OFFSETS.tolist())])
    assert torch.allclose(sums.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-13)
    device.segment_expand(sums, OFFSETS, expanded)
    assert torch.equal(expanded, torch.repeat_interleave(sums, OFFSETS.diff()))


def test_a_segment_gives_the_same_bits_in_any_company() -> None:
    values = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    together, alone = torch.empty(3), torch.empty(1)
    Emulated().segment_sum(values, torch.tensor([0, 1001, 1500, 3000]), together)
    Emulated().segment_sum(values[1500:], torch.tensor([0, 1500]), alone)
    assert torch.equal(together[2:], alone)


def test_offsets_that_leave_the_array_give_nan() -> None:
    sums = torch.empty(4)
    Emulated().segment_sum(torch.ones(10), torch.tensor([-1, 3, 2, 11, 11]), sums)
    assert sums.isnan().all()
    out = torch.full((10,), 777.0)
    Emulated().segment_expand(torch.ones(2), torch.tensor([0, 4, 11]), out)
    assert out.tolist() == [1.0] * 4 + [777.0] * 6
