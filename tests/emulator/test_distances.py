"""The kernels of squared distances on the CPU: values, gradients, layouts, bits."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.dlpack import to_dlpack as capsule

from prefuse import _prefuse
from tests.emulator import emulator
from tests.emulator.backend import Emulated

pytestmark = pytest.mark.needs("compiler")

NARROW = (torch.float16, torch.bfloat16, torch.float32)
PAIRS = [*itertools.product(NARROW, NARROW), (torch.float64, torch.float64)]
SIZES = [1, 7, 8, 1000, 8192, 8193, 20_011]
"""Less than a unit, a unit, a part of a chunk, a chunk, more than one chunk, odd rows of every alignment."""


def draw(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def forward(first: torch.Tensor, second: torch.Tensor, order: int = emulator.ASCENDING) -> torch.Tensor:
    dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    out = torch.full((len(first),), 777.0, dtype=dtype)
    Emulated(order=order).distance_forward(first, second, out)
    return out


def backward(
    first: torch.Tensor, second: torch.Tensor, grads: torch.Tensor, order: int = emulator.ASCENDING
) -> torch.Tensor:
    gradient = torch.full(first.shape, 777.0, dtype=first.dtype)
    Emulated(order=order).distance_backward(first, second, grads, gradient)
    return gradient


def on_cpu(first: torch.Tensor, second: torch.Tensor, grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums and gradient by the CPU backend."""
    out, gradient = torch.empty_like(grads), torch.empty_like(first, memory_format=torch.contiguous_format)
    _prefuse.distance_forward(capsule(first), capsule(second), capsule(out), 1)
    _prefuse.distance_backward(capsule(first), capsule(second), capsule(grads), capsule(gradient), 1)
    return out, gradient


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("one", "other"), PAIRS, ids=str)
def test_values_and_gradients(size: int, one: torch.dtype, other: torch.dtype) -> None:
    first, second = draw((3, size), one, 0), draw((3, size), other, 1)
    differences = first.double() - second.double()
    exact = differences.square().sum(1)
    wide = torch.float64 if one == torch.float64 else torch.float32
    grads = torch.tensor([0.5, -2.0, 0.0], dtype=wide)
    out, gradient = forward(first, second), backward(first, second, grads)
    assert torch.allclose(out.double(), exact, rtol=16 * torch.finfo(wide).eps)
    expected = (2 * grads[:, None] * (first.to(wide) - second.to(wide))).to(one)
    assert torch.equal(gradient, expected)
    of_cpu = on_cpu(first, second, grads)
    assert torch.allclose(out, of_cpu[0], rtol=16 * torch.finfo(wide).eps)
    assert torch.equal(gradient, of_cpu[1])


@pytest.mark.parametrize("order", [emulator.DESCENDING, emulator.SHUFFLED])
def test_the_order_of_threads_does_not_matter(order: int) -> None:
    first, second = draw((2, 20_000), torch.bfloat16, 0), draw((2, 20_000), torch.float32, 1)
    grads = torch.tensor([0.5, -2.0])
    assert torch.equal(forward(first, second, order), forward(first, second))
    assert torch.equal(backward(first, second, grads, order), backward(first, second, grads))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shift", [0, 1, 3])
def test_addresses_and_strides_do_not_change_a_bit(dtype: torch.dtype, shift: int) -> None:
    base, other = draw((3, 9000), dtype, 0), draw((3, 9001 + shift), dtype, 1)
    second = other[:, shift : shift + 9000]
    grads = torch.tensor([0.5, -2.0, 1.0])
    assert torch.equal(forward(base, second), forward(base, second.contiguous()))
    assert torch.equal(backward(base, second, grads), backward(base, second.contiguous(), grads))
    assert torch.equal(backward(second, base, grads), backward(second.contiguous(), base, grads))
    assert torch.equal(forward(base, second)[1:2], forward(base[1:2], second[1:2]))


def test_one_sample_for_all() -> None:
    first, second = draw((3, 50), torch.float32, 0), draw((1, 50), torch.float32, 1).expand(3, 50)
    assert torch.equal(forward(first, second), forward(first, second.contiguous()))


def test_hostile_numbers() -> None:
    first = torch.tensor([[1e15, 0.0], [float("inf"), 0.0], [float("nan"), 0.0], [0.0, 0.0]])
    second = torch.tensor([[-1e15, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    out = forward(first, second)
    assert out[0] == pytest.approx(4e30)
    assert out[1] == float("inf")
    assert out[2].isnan()
    assert out[3] == 0
    gradient = backward(first, second, torch.ones(4))
    assert gradient[0].tolist() == pytest.approx([4e15, 0.0])
    assert gradient[2, 1] == 0


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_nothing(shape: tuple[int, int]) -> None:
    empty = torch.empty(shape)
    assert forward(empty, empty).tolist() == [0.0] * shape[0]
    assert backward(empty, empty, torch.ones(shape[0])).shape == shape
