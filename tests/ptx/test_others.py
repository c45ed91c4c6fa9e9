"""What NVRTC makes of segments, distances and the kernels generated from objectives, executed."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from prefuse import objectives
from tests.codegen import emulated
from tests.emulator.backend import Emulated
from tests.emulator.test_columns import drawn, found, gathered, products
from tests.ptx.backend import Interpreted, run
from tests.ptx.machine import MachineError

pytestmark = pytest.mark.needs("nvrtc")

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


def draw(*shape, dtype=F64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_segments(dtype):
    offsets = torch.tensor([0, 0, 5, 6, 6, 1306, 2000])
    values = draw(2000, dtype=dtype)
    sums, expanded = torch.full((6,), 777.0, dtype=dtype), torch.full((2000,), 777.0, dtype=dtype)
    Interpreted().segment_sum(values, offsets, sums)
    exact = torch.stack([values[a:b].double().sum() for a, b in pairwise(offsets.tolist())])
    assert torch.allclose(sums.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-13)
    Interpreted().segment_expand(sums, offsets, expanded)
    assert torch.equal(expanded, torch.repeat_interleave(sums, offsets.diff()))


@pytest.mark.parametrize(("one", "other"), [(BF16, BF16), (F16, F32), (F32, F32), (F64, F64)])
def test_distances(one, other):
    first, second = draw(2, 8197, dtype=one), draw(2, 8197, dtype=other, seed=1)
    wide = F64 if one == F64 else F32
    out, gradient, grads = torch.full((2,), 777.0, dtype=wide), torch.full_like(first, 777.0), draw(2, dtype=wide)
    Interpreted().distance_forward(first, second, out)
    Interpreted().distance_backward(first, second, grads, gradient)
    difference = first.double() - second.double()
    assert torch.allclose(out.double(), difference.square().sum(1), rtol=16 * torch.finfo(wide).eps)
    expected = (2 * grads[:, None] * (first.to(wide) - second.to(wide))).to(one)
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize(("name", "dtype"), [("dpo", F32), ("dpo", BF16), ("ipo", F64), ("aot", F32)])
def test_objectives(name, dtype):
    """One launch for all of it, to the rounding of what the CPU computes."""
    names = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    columns = {column: draw(300, dtype=dtype, seed=seed) for seed, column in enumerate(names)}
    for column in names[:2]:
        columns[column].requires_grad_()
    objective = objectives.get(name)
    expected = objective.value_and_grad(**columns)
    with emulated.device_that(lambda launch, ranges: run(launch, ranges, 90)) as runs:
        got = objective.value_and_grad(**columns)
    assert runs == [1]
    torch.testing.assert_close(got.loss, expected.loss)
    for column, gradient in expected.gradients.items():
        torch.testing.assert_close(got.gradients[column], gradient)


@pytest.mark.parametrize("dtype", [BF16, F32, F64])
def test_columns(dtype):
    """To the bit what the emulator makes of the same sources, but for the rounding of 2^x."""
    strips = drawn(70, 300, dtype, 40, pad=4)
    results = []
    for device in (Emulated(), Interpreted()):
        active, tails = found(strips, 2.0**-6, device)
        lists = [row.nonzero()[:, 0] for row in active]
        lists[1] = torch.cat([lists[1], lists[1].new_full((3,), -1)])
        made = gathered(strips, lists, device)
        sums = torch.zeros(300, 70, dtype=F64 if dtype == F64 else F32)
        device.columns_add(sums, draw(len(lists[1]), 70, dtype=dtype), lists[1])
        results.append((active, tails, made.values[: 40 * len(lists[0])], made.sums, sums))
    for one, other in zip(*results, strict=True):
        tolerance = 2 * torch.finfo(one.dtype).eps + 1e-6 if one.is_floating_point() else 0
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    assert torch.equal(results[0][0], results[1][0])


def test_a_race_in_columns_is_seen():
    """Without the barrier before rows' factors are read."""
    strips = drawn(70, 300, F32, 70)
    missing = "factors[threadIdx.x] = row_factors(a, begin + threadIdx.x, end);\n            __syncthreads();"
    device = Interpreted(changes={missing: missing.removesuffix("\n            __syncthreads();")})
    with pytest.raises(MachineError):
        found(strips, 2.0**-6, device)


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("dtype", [BF16, F16])
def test_products_of_columns(dtype, architecture):
    (call, lists, values), device = products(dtype, [140, 60], [72, 136], 136), Interpreted(capability=architecture)
    Emulated().columns_to_input(call)
    again = call._replace(out=torch.full_like(call.out, 777.0))
    device.columns_to_input(again)
    torch.testing.assert_close(again.out, call.out, rtol=1e-5, atol=1e-4)
    totals = [torch.zeros(500, 136), torch.zeros(500, 136)]
    for total, one in zip(totals, (Emulated(), device), strict=True):
        one.columns_to_weight(total, values[1], lists[1], draw(60, 136, dtype=dtype))
    torch.testing.assert_close(*totals, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "missing",
    [
        "        __syncthreads();  // all have come, and the stage before is free\n",
        "    __syncthreads();  // nobody reads what is there\n",
    ],
)
def test_a_race_in_products_is_seen(missing):
    """Two steps a block, three blocks' work in one: all stages are used again."""
    call = products(BF16, [300], [64], 72).call
    with pytest.raises(MachineError, match="race"):
        Interpreted(changes={missing: ""}, clusters=1).columns_to_input(call)
