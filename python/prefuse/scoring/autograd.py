"""Eager torch: one autograd node per call."""

from __future__ import annotations

from typing import Any

import torch

from .call import Call, Scored


def score_with_grad(call: Call, reduction: str, wrt: tuple[str, ...]) -> Scored:
    """Return a score whose loss and losses carry gradients to the columns in `wrt`."""
    columns = [call.columns[name] for name in wrt]
    loss, losses, extras = _Objective.apply(call, reduction, wrt, *columns)
    return Scored(loss, loss if reduction == "none" else losses, extras, [])


class _Objective(torch.autograd.Function):
    """The gradient of the reduced loss is made together with the loss and only scaled in the backward pass; where
    `losses` has a gradient of its own the objective is pulled back anew.
    """

    @staticmethod
    def forward(ctx: Any, call: Call, reduction: str, wrt: tuple[str, ...], *columns: torch.Tensor) -> Any:
        scored = call.score(reduction, () if reduction == "none" else wrt)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*columns)
        ctx.call, ctx.reduction, ctx.wrt, ctx.gradients = call, reduction, wrt, scored.gradients
        ctx.mark_non_differentiable(scored.extras)
        losses = None if reduction == "none" else scored.losses
        return scored.loss, losses, scored.extras

    @staticmethod
    def backward(ctx: Any, loss: torch.Tensor | None, losses: torch.Tensor | None, _: None) -> Any:
        with torch.no_grad():
            gradients = _pull_back(ctx, loss, losses)
        if torch.is_grad_enabled():
            apart = [gradient if gradient is None else gradient.requires_grad_() for gradient in gradients]
            gradients = _FirstOrder.apply(ctx.call.traced.trace.name, *apart)
        return None, None, None, *gradients


def _pull_back(ctx: Any, loss: torch.Tensor | None, losses: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    columns = ctx.saved_tensors
    if losses is None and ctx.gradients:
        if loss is None:
            return (None,) * len(columns)
        gradients = [gradient * loss for gradient in ctx.gradients]
    else:
        everything = ctx.call.columns | dict(zip(ctx.wrt, columns, strict=True))
        gradients = ctx.call.pullback(ctx.reduction, ctx.wrt, everything, loss, losses)
    return tuple(
        [
            gradient if gradient.dtype is column.dtype else gradient.to(column.dtype)
            for gradient, column in zip(gradients, columns, strict=True)
        ]
    )


class _FirstOrder(torch.autograd.Function):
    """Gradients asked for with `create_graph=True`: usable as values, an error when differentiated again."""

    @staticmethod
    def forward(ctx: Any, name: str, *gradients: torch.Tensor | None) -> Any:
        ctx.name = name
        return tuple(None if gradient is None else gradient.clone() for gradient in gradients)

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> Any:
        raise RuntimeError(
            f"{ctx.name}: prefuse objectives give first derivatives only; "
            "for second ones write the objective with prefuse.language.from_torch"
        )
