"""What diffusion models give in the place of log-probabilities: one number per sample, without temporaries of its size.

`squared_errors` and `gaussian_logps` are to predicted noise and to denoising steps what a gather is to logits: they
read both tensors once, tile by tile, and keep nothing for the backward pass that is not there anyway. Its gradient is
written once, in the dtype of the prediction. Plain PyTorch would hold the difference and its square, and save the
difference in float32.

Arithmetic is float32 for float16, bfloat16 and float32 and float64 for float64; the sums of tiles are added in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor

__all__ = ["gaussian_logps", "squared_errors"]

TILE = {"cpu": 1 << 16, "cuda": 1 << 24}
"""Elements of a tile: what a processor's cache holds, and what keeps a GPU busy."""

ONCE_DIFFERENTIABLE = (
    "prefuse.squared_errors is differentiable once: its gradient has no derivative of its own; "
    "take second derivatives of the same sum written in PyTorch, (predicted - target).square().flatten(1).sum(1)"
)


def squared_errors(predicted: Tensor, target: Tensor, *, mean: bool = True) -> Tensor:
    """Squared error of each sample, [B] from [B, …]: what `diffusion_dpo` and `seppo` read as errors.

    ``‖predicted - target‖²`` over all dimensions but the first, divided by their size if `mean`. The gradient reaches
    both.

    Args:
        predicted: what the model predicts, e.g. the noise ε_θ(x_t, t); floating point, [B, …].
        target: what it should have, e.g. ε; of the same shape and device, of any floating dtype.
        mean: average over a sample's dimensions, as the authors of Diffusion-DPO do, rather than sum.

    Returns:
        [B] in float32, or float64 where a dtype is.

    Raises:
        ValueError: the two differ in shape or device.
        TypeError: one is not floating point.
    """
    _check("target", predicted, target)
    total: Tensor = _squared_errors(predicted, target)
    return total / max(math.prod(predicted.shape[1:]), 1) if mean else total


def gaussian_logps(sample: Tensor, mean: Tensor, std: Tensor | float, *, average: bool = False) -> Tensor:
    """Log-density of a denoising step, [B] from [B, …], in nats: what `d3po` reads as log-probabilities.

    ``Σ_d [ -(x - μ)²/(2σ²) - log σ - ½ log 2π ]`` over all dimensions d but the first. The gradient reaches all three.

    Args:
        sample: x_{t-1}, floating point, [B, …].
        mean: μ, what the model predicts for it; of the same shape and device.
        std: σ > 0, a number or one per sample: [B], or [B, 1, …].
        average: take the mean over dimensions, as D3PO's code does, rather than the sum.

    Returns:
        [B] in float32, or float64 where a dtype is.

    Raises:
        ValueError: shapes or devices do not fit, or σ is a number that is not above 0.
        TypeError: sample or mean is not floating point.
    """
    _check("mean", sample, mean)
    dimensions, error = math.prod(sample.shape[1:]), squared_errors(mean, sample, mean=False)
    if isinstance(std, Tensor):
        if std.numel() != 1 and (std.shape[:1] != sample.shape[:1] or std.numel() != sample.shape[0]):
            raise ValueError(f"std: expected a number or one per sample, [{sample.shape[0]}], got {list(std.shape)}")
        sigma = std.reshape(-1).to(error.dtype)
        log_sigma: Tensor | float = sigma.log()
    elif std > 0:
        sigma, log_sigma = torch.as_tensor(std, dtype=error.dtype, device=error.device), math.log(std)
    else:
        raise ValueError(f"std: expected a value above 0, got {std!r}")
    density = -error / (2.0 * sigma.square()) - dimensions * (log_sigma + 0.5 * math.log(2.0 * math.pi))
    return density / max(dimensions, 1) if average else density


def _check(name: str, first: Tensor, other: Tensor) -> None:
    if first.dim() == 0 or first.shape != other.shape:
        raise ValueError(f"{name}: expected [B, …] like the other, {tuple(first.shape)}, got {tuple(other.shape)}")
    if first.device != other.device:
        raise ValueError(f"{name}: expected to be on {first.device} like the other, got {other.device}")
    for tensor in (first, other):
        if not tensor.is_floating_point():
            raise TypeError(f"{name}: expected floating-point tensors, got {tensor.dtype}")


@torch.library.custom_op("prefuse::squared_errors", mutates_args=())
def _squared_errors(predicted: Tensor, target: Tensor) -> Tensor:
    """Sum of squared differences of every sample, [B]."""
    dtype = _result(predicted, target)
    first, second = _flat(predicted), _flat(target)
    sums = torch.zeros(len(first), dtype=torch.float64, device=first.device)
    for rows, columns in _tiles(first):
        difference = first[rows, columns].to(dtype) - second[rows, columns].to(dtype)
        sums[rows] += torch.linalg.vecdot(difference, difference)
    return sums.to(dtype)


@_squared_errors.register_fake
def _(predicted: Tensor, target: Tensor) -> Tensor:
    return predicted.new_empty(predicted.shape[0], dtype=_result(predicted, target))


@torch.library.custom_op("prefuse::squared_errors_backward", mutates_args=())
def _squared_errors_backward(grads: Tensor, predicted: Tensor, target: Tensor) -> Tensor:
    """``2 grads (predicted - target)`` as a new contiguous tensor of predicted's dtype."""
    gradient = torch.empty_like(predicted, memory_format=torch.contiguous_format)
    whole, first, second, dtype = _flat(gradient), _flat(predicted), _flat(target), _result(predicted, target)
    for rows, columns in _tiles(whole):
        difference = first[rows, columns].to(dtype) - second[rows, columns].to(dtype)
        torch.mul(difference, 2.0 * grads[rows, None], out=difference)
        whole[rows, columns] = difference
    return gradient


@_squared_errors_backward.register_fake
def _(grads: Tensor, predicted: Tensor, target: Tensor) -> Tensor:
    return torch.empty_like(predicted, memory_format=torch.contiguous_format)


def _result(predicted: Tensor, target: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (predicted.dtype, target.dtype) else torch.float32


def _flat(x: Tensor) -> Tensor:
    """[B, D]: a view where the layout allows one."""
    return x.flatten(1) if x.dim() > 1 else x[:, None]


def _tiles(matrix: Tensor) -> Iterator[tuple[slice, slice]]:
    """Tiles of [B, D]: several samples, or a part of one."""
    samples, dimensions = matrix.shape
    size = TILE.get(matrix.device.type, TILE["cuda"])
    rows, columns = max(size // max(dimensions, 1), 1), max(min(size, dimensions), 1)
    for row in range(0, samples, rows):
        for column in range(0, dimensions, columns):
            yield slice(row, row + rows), slice(column, column + columns)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, grads: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    predicted, target = ctx.saved_tensors
    towards = [None, None]
    if grads is not None and any(ctx.needs_input_grad):
        first = _squared_errors_backward(grads, predicted, target)
        towards = [first, -first.to(target.dtype)] if ctx.needs_input_grad[1] else [first, None]
    return (towards[0] if ctx.needs_input_grad[0] else None), towards[1]


def _refuse_second_derivative(ctx: Any, *grads: Tensor | None) -> NoReturn:
    raise RuntimeError(ONCE_DIFFERENTIABLE)


_squared_errors.register_autograd(_gradient, setup_context=_save)
_squared_errors_backward.register_autograd(_refuse_second_derivative)
