"""Eager torch: one autograd node per result that is differentiated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from .call import Call, Scored
from .plain import PlainCall
from .score import Score


class Recorded(NamedTuple):
    """What a node is made of: the call, the columns it is differentiated by, what came out, and `versions_of`."""

    call: Call | PlainCall
    wrt: tuple[str, ...]
    scored: Scored
    versions: list[int | None]

    @property
    def columns(self) -> list[torch.Tensor]:
        """Those it is differentiated by."""
        return [self.call.columns[name] for name in self.wrt]

    def losses(self) -> torch.Tensor:
        """Return the losses with gradients, whenever they are asked for."""
        with torch.enable_grad():
            losses: torch.Tensor = _Losses.apply(self, *self.columns)
        return losses


def score_with_grad(call: Call | PlainCall, reduction: str, wrt: tuple[str, ...]) -> Score:
    """Return a score whose loss and losses carry gradients to the columns in `wrt`.

    The gradient of the reduced loss is made together with it. The losses get their node when they are asked for, as
    few look at them.
    """
    scored = call.score(reduction, () if reduction == "none" else wrt)
    if reduction != "none":
        return record(call, wrt, scored)
    losses = Recorded(call, wrt, scored, versions_of(call.columns)).losses()
    return Score(losses, losses, call, scored.extras)


def record(call: Call | PlainCall, wrt: tuple[str, ...], scored: Scored) -> Score:
    """Return what was scored with gradients, those of the reduced loss among them."""
    recorded = Recorded(call, wrt, scored, versions_of(call.columns))
    return Score(_Loss.apply(recorded, *recorded.columns), recorded.losses, call, scored.extras)


def versions_of(columns: Mapping[str, torch.Tensor]) -> list[int | None]:
    """Return how often the columns have been changed in place; tensors made for inference do not count it."""
    return [None if column.is_inference() else column._version for column in columns.values()]


class _Loss(torch.autograd.Function):
    """The node between columns and a loss whose gradient is known: it is only scaled here."""

    @staticmethod
    def forward(ctx: Any, recorded: Recorded, *columns: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*recorded.scored.gradients)
        ctx.name = recorded.call.traced.trace.name
        loss: torch.Tensor = recorded.scored.loss
        return loss

    @staticmethod
    def backward(ctx: Any, loss: torch.Tensor) -> Any:
        """The engine rounds the gradients of f16 and bf16 columns."""
        if not torch.is_grad_enabled():
            return None, *[gradient * loss for gradient in ctx.saved_tensors]
        with torch.no_grad():
            gradients = [gradient * loss for gradient in ctx.saved_tensors]
        return None, *first_order_only(gradients, _message(ctx.name))


class _Losses(torch.autograd.Function):
    """The node between columns and the losses: the objective is pulled back anew."""

    @staticmethod
    def forward(ctx: Any, recorded: Recorded, *columns: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*columns)
        ctx.recorded = recorded
        scored = recorded.scored
        losses: torch.Tensor = scored.losses
        return scored.extras[: scored.losses].clone() if isinstance(scored.losses, int) else losses

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
