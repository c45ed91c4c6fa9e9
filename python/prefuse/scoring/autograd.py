"""Eager torch: one autograd node per result that is differentiated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prefuse._prefuse import is_one, versions_of

from .call import Call
from .plain import PlainCall
from .score import Score

Made = tuple[torch.Tensor, Sequence[torch.Tensor]]
"""The loss and its gradients, in a tuple so that autograd takes neither for an input of the node."""

_keeps_graph = torch._C._autograd._get_current_graph_task_keep_graph


@dataclass(slots=True)
class Recorded:
    """What was scored with gradients.

    Args:
        call: the call.
        wrt: the names of the columns it is differentiated by.
        leaves: these columns.
        versions: `versions_of` all columns.
        scored: the losses, or how many at the head of the extras they are.
        extras: what came out beside.
    """

    call: Call | PlainCall
    wrt: tuple[str, ...]
    leaves: Sequence[torch.Tensor]
    versions: tuple[int | None, ...]
    scored: torch.Tensor | int
    extras: torch.Tensor

    def losses(self) -> torch.Tensor:
        """Return the losses with gradients, whenever they are asked for."""
        with torch.enable_grad():
            losses: torch.Tensor = _Losses.apply(self, *self.leaves)
        return losses


def score_with_grad(call: Call, reduction: str, wrt: tuple[str, ...]) -> Score:
    """Return a score whose loss and losses carry gradients to the columns in `wrt`."""
    loss, losses, extras, gradients = call.score(reduction, () if reduction == "none" else wrt)
    leaves = [call.columns[name] for name in wrt]
    recorded = Recorded(call, wrt, leaves, versions_of(call.columns), losses, extras)
    return record(recorded, loss, gradients, reduction)


def record(recorded: Recorded, loss: torch.Tensor, gradients: Sequence[torch.Tensor], reduction: str) -> Score:
    """Return what was scored, with a node for the reduced loss, whose gradients were made together with it.

    The losses get their node when they are asked for, as few look at them.
    """
    if reduction == "none":
        losses = recorded.losses()
        return Score(losses, losses, recorded.call, recorded.extras)
    loss = _Loss.apply((loss, gradients), recorded.call.traced.trace.name, *recorded.leaves)
    return Score(loss, recorded.losses, recorded.call, recorded.extras)


class _Loss(torch.autograd.Function):
    """The node between columns and a loss whose gradient is known: it is only scaled here."""

    @staticmethod
    def forward(ctx: Any, made: Made, name: str, *columns: torch.Tensor) -> torch.Tensor:
        loss, gradients = made
        ctx.save_for_backward(*gradients)
        ctx.name = name
        return loss

    @staticmethod
    def backward(ctx: Any, loss: torch.Tensor) -> Any:
        """The engine rounds the gradients of f16 and bf16 columns."""
        if not torch.is_grad_enabled():
            return None, None, *_scaled(ctx.saved_tensors, loss)
        with torch.no_grad():
            gradients = _scaled(ctx.saved_tensors, loss)
        return None, None, *first_order_only(gradients, _message(ctx.name))


def _scaled(gradients: Sequence[torch.Tensor], loss: torch.Tensor) -> Sequence[torch.Tensor]:
    """Return the gradients times that of the loss.

    Where it is the loss that is differentiated, and only this once, they are given away as they are.
    """
    if not torch.compiler.is_compiling() and not _keeps_graph() and is_one(loss):
        return gradients
    return [gradient * loss for gradient in gradients]


class _Losses(torch.autograd.Function):
    """The node between columns and the losses: the objective is pulled back anew."""

    @staticmethod
    def forward(ctx: Any, recorded: Recorded, *columns: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*columns)
        ctx.recorded = recorded
        scored = recorded.scored
        return recorded.extras[:scored].clone() if isinstance(scored, int) else scored

    @staticmethod
    def backward(ctx: Any, losses: torch.Tensor) -> Any:
        if not torch.is_grad_enabled():
            return None, *_pull_back(ctx, losses)
        with torch.no_grad():
            gradients = _pull_back(ctx, losses)
        return None, *first_order_only(gradients, _message(ctx.recorded.call.traced.trace.name))


def _pull_back(ctx: Any, losses: torch.Tensor) -> list[torch.Tensor]:
    recorded: Recorded = ctx.recorded
    call, wrt = recorded.call, recorded.wrt
    columns = {**call.columns, **dict(zip(wrt, ctx.saved_tensors, strict=True))}
    for name, scored, now in zip(columns, recorded.versions, versions_of(columns), strict=True):
        if scored != now:
            raise RuntimeError(
                f"{name}: changed in place after {call.traced.trace.name} had scored it, and the gradient of the "
                "losses needs what it held; change a copy"
            )
    return call.pullback("none", wrt, columns, None, losses)


def _message(name: str) -> str:
    return (
        f"{name}: prefuse objectives give first derivatives only; "
        "for second ones write the objective with prefuse.language.from_torch"
    )


def first_order_only(gradients: Sequence[torch.Tensor | None], message: str) -> Any:
    """Return gradients asked for with `create_graph=True`: usable as values, an error when differentiated again."""
    apart = [gradient if gradient is None else gradient.detach().requires_grad_() for gradient in gradients]
    return _FirstOrder.apply(message, *apart)


class _FirstOrder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, message: str, *gradients: torch.Tensor | None) -> Any:
        ctx.message = message
        return tuple(None if gradient is None else gradient.clone() for gradient in gradients)

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> Any:
        raise RuntimeError(ctx.message)
