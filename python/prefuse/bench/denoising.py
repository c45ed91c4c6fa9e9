"""Squared errors of diffusion models' predictions, one number per sample, by several hands."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from prefuse.denoising import squared_errors

PREFUSE, EAGER, MSE_LOSS, COMPILED = "prefuse", "eager", "mse_loss", "torch.compile"
FORWARD, BOTH = "forward", "forward+backward"
VISITS = {FORWARD: 2, BOTH: 5}
"""Tensors of the samples' size read or written at least: both forward; both again, and the gradient, backward."""

Hand = Callable[[Tensor, Tensor], Tensor]


def eager(predicted: Tensor, target: Tensor) -> Tensor:
    """As it is written."""
    return (predicted.float() - target.float()).square().flatten(1).mean(1)


def with_mse_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """As diffusion trainers write it."""
    return mse_loss(predicted.float(), target.float(), reduction="none").flatten(1).mean(1)


def hands() -> dict[str, Hand]:
    """All hands by name."""
    return {
        PREFUSE: squared_errors,
        EAGER: eager,
        MSE_LOSS: with_mse_loss,
        COMPILED: torch.compile(eager, dynamic=False),
    }


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """A prediction and noise."""
    generator = torch.Generator().manual_seed(0)
    predicted, target = (torch.empty(shape).normal_(generator=generator).to(device, dtype) for _ in range(2))
    return predicted, target


def cases(predicted: Tensor, target: Tensor, task: str) -> dict[str, Callable[[], object]]:
    """The calls by hand, after checking that they agree; with the way back, which makes and drops the gradient."""
    agreed, calls = eager(predicted, target), hands()
    for hand in calls.values():
        torch.testing.assert_close(hand(predicted, target), agreed, rtol=1e-5, atol=0)
    if task == FORWARD:
        return {name: lambda hand=hand: hand(predicted, target) for name, hand in calls.items()}  # type: ignore[misc]
    leaf = predicted.detach().requires_grad_()
    return {
        name: lambda hand=hand: torch.autograd.grad(hand(leaf, target).sum(), leaf)  # type: ignore[misc]
        for name, hand in calls.items()
    }


def least_bytes(predicted: Tensor, task: str) -> int:
    """The least traffic of a task, with a target of the prediction's dtype."""
    return VISITS[task] * predicted.numel() * predicted.element_size()
