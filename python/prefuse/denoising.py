"""What diffusion models give in the place of log-probabilities: one number per sample, without temporaries of its size.

`squared_errors` and `gaussian_logps` are to predicted noise and to denoising steps what a gather is to logits: a kernel
reads both tensors once and keeps nothing for the backward pass that is not there anyway; another writes the gradient
once, in the dtype and layout of what it is the gradient of. Plain PyTorch holds the difference and its square, and
saves the difference in float32.

Arithmetic is float32 for float16, bfloat16 and float32 and float64 for float64; sums of 8192 elements are added in
float64, in order: a sample gives the same bits regardless of the rest of the batch.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

import torch
from torch import Tensor

from prefuse._arguments.checks import FLOATS, check_device, check_tensor
from prefuse._arguments.transforms import refuse_transforms, refuse_vmap
from prefuse._backends import DEVICES, backend

__all__ = ["gaussian_logps", "squared_errors"]

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
    _check(("predicted", predicted), ("target", target))
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
    _check(("sample", sample), ("mean", mean))
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


def _check(one: tuple[str, Tensor], other: tuple[str, Tensor]) -> None:
    (name, first), (second_name, second) = one, other
    check_tensor(name, first, FLOATS, "a float16, bfloat16, float32 or float64")
    check_device(name, first, DEVICES)
    check_tensor(second_name, second, FLOATS, "a float16, bfloat16, float32 or float64", like=first)
    if first.dim() == 0:
        raise ValueError(f"{name}: expected [B, …], got a tensor without dimensions")
    if first.shape != second.shape:
        raise ValueError(f"{second_name}: expected shape {tuple(first.shape)} like {name}, got {tuple(second.shape)}")
    refuse_transforms((first, second))


@torch.library.custom_op("prefuse::squared_errors", mutates_args=())
def _squared_errors(predicted: Tensor, target: Tensor) -> Tensor:
    """Sum of squared differences of every sample, [B]."""
    first, second = _matrices(predicted, target)
    sums = first.new_empty(len(first), dtype=_result(first, second))
    backend(first.device).distance_forward(first, second, sums)
    return sums


@_squared_errors.register_fake
def _(predicted: Tensor, target: Tensor) -> Tensor:
    return predicted.new_empty(predicted.shape[0], dtype=_result(predicted, target))


@torch.library.custom_op("prefuse::squared_errors_backward", mutates_args=())
def _squared_errors_backward(grads: Tensor, predicted: Tensor, target: Tensor) -> Tensor:
    """``2 grads (predicted - target)`` as a new tensor of predicted's dtype, laid out like it without gaps."""
    first, second = _matrices(predicted, target)
    gradient = torch.empty_like(first, memory_format=torch.contiguous_format)
    backend(first.device).distance_backward(first, second, grads.to(_result(first, second)).contiguous(), gradient)
    order = _order(predicted)
    return gradient.to(predicted.dtype).view([predicted.shape[d] for d in order]).permute(_inverse(order))


@_squared_errors_backward.register_fake
def _(grads: Tensor, predicted: Tensor, target: Tensor) -> Tensor:
    order = _order(predicted)
    return predicted.new_empty([predicted.shape[d] for d in order]).permute(_inverse(order))


def _result(predicted: Tensor, target: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (predicted.dtype, target.dtype) else torch.float32


def _matrices(predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both as [B, D] of dense rows, elements in predicted's order in memory; copied only where that is not possible."""
    order = _order(predicted)
    wide = _result(predicted, target) is torch.float64
    pair = []
    for tensor in (predicted, target):
        matrix = tensor.permute(order).flatten(1) if tensor.dim() > 1 else tensor[:, None]
        dense = matrix if matrix.stride(1) == 1 or matrix.shape[1] <= 1 else matrix.contiguous()
        pair.append(dense.double() if wide else dense)
    return pair[0], pair[1]


def _order(tensor: Tensor) -> list[int]:
    """Dimensions as they lie in memory, the slowest first; samples before everything."""
    strides = tensor.stride()
    return [0, *sorted(range(1, tensor.dim()), key=lambda dimension: -strides[dimension])]


def _inverse(order: list[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, grads: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    predicted, target = ctx.saved_tensors
    towards = [
        _squared_errors_backward(grads, x, other) if grads is not None and needed else None
        for needed, x, other in zip(ctx.needs_input_grad, (predicted, target), (target, predicted), strict=True)
    ]
    return towards[0], towards[1]


def _refuse_second_derivative(ctx: Any, *grads: Tensor | None) -> NoReturn:
    raise RuntimeError(ONCE_DIFFERENTIABLE)


_squared_errors.register_autograd(_gradient, setup_context=_save)
_squared_errors_backward.register_autograd(_refuse_second_derivative)
for _operator in (_squared_errors, _squared_errors_backward):
    _operator.register_vmap(refuse_vmap)
