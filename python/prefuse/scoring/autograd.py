"""Eager torch: one autograd node per call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .call import Call, Scored
from .plain import PlainCall


def score_with_grad(call: Call | PlainCall, reduction: str, wrt: tuple[str, ...]) -> Scored:
    """Return a score whose loss and losses carry gradients to the columns in `wrt`."""
    scored = call.score(reduction, () if reduction == "none" else wrt)
    loss, losses = _Objective.apply(call, scored, reduction, wrt, *[call.columns[name] for name in wrt])
    return Scored(loss, loss if losses is None else losses, scored.extras, [])


class _Objective(torch.autograd.Function):
    """The node between columns and a score already computed.

    The gradient of the reduced loss was made together with the loss and is only scaled here; where `losses` has a
    gradient of its own the objective is pulled back anew.
    """

    @staticmethod
    def forward(
        ctx: Any, call: Call | PlainCall, scored: Scored, reduction: str, wrt: tuple[str, ...], *columns: torch.Tensor
    ) -> Any:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*columns)
        ctx.call, ctx.reduction, ctx.wrt, ctx.gradients = call, reduction, wrt, scored.gradients
        return scored.loss, None if reduction == "none" else scored.losses

    @staticmethod
    def backward(ctx: Any, loss: torch.Tensor | None, losses: torch.Tensor | None) -> Any:
        if not torch.is_grad_enabled():
            return None, None, None, None, *_pull_back(ctx, loss, losses)
        with torch.no_grad():
            gradients = _pull_back(ctx, loss, losses)
        message = (
            f"{ctx.call.traced.trace.name}: prefuse objectives give first derivatives only; "
            "for second ones write the objective with prefuse.language.from_torch"
        )
        return None, None, None, None, *first_order_only(gradients, message)


def _pull_back(ctx: Any, loss: torch.Tensor | None, losses: torch.Tensor | None) -> list[torch.Tensor | None]:
    """Return the gradients of the columns; the engine rounds those of f16 and bf16 columns."""
    columns = ctx.saved_tensors
    if losses is None and ctx.gradients:
        return [None if loss is None else gradient * loss for gradient in ctx.gradients]
    everything = {**ctx.call.columns, **dict(zip(ctx.wrt, columns, strict=True))}
    gradients: list[torch.Tensor | None] = ctx.call.pullback(ctx.reduction, ctx.wrt, everything, loss, losses)
    return gradients


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
