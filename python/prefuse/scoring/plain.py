"""The short way for small batches: CPU tensors, those of floats of one dtype, one value per item.

The extension looks at the columns and makes the results (`src/bindings/plain.rs`), as that takes longer in Python than
scoring 64 pairs. Whatever does not fit is left to the general way, errors included.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from prefuse._prefuse import Short

from .arrays import TORCH
from .call import Call
from .layout import one_to_one
from .traced import Traced

Differentiated = tuple[tuple[str, ...], tuple[torch.Tensor, ...], tuple[torch.Tensor, ...], tuple[int | None, ...]]
"""The names of columns, the columns, their gradients, and `versions_of` all columns."""

Plain = tuple[torch.Tensor, int, torch.Tensor, Differentiated | None]
"""What `Short.score` gives: loss, number of items, extras, and what is differentiated."""

# Results are made from these: cheaper than asking torch for a dtype and a device, and blind to its defaults.
PROTOTYPES = tuple(torch.empty((), dtype=dtype, device="cpu") for dtype in (torch.float32, torch.float64))


def short_way(traced: Traced, reduction: str) -> Short:
    """Return what scores batches of a traced objective; its programs are compiled on first use."""
    reduced, roles = reduction != "none", len(traced.reward_roles)
    return Short(
        tuple(traced.columns),
        tuple(traced.columns).index(traced.item_columns[0]),
        reduced,
        (reduced + roles, len(traced.metric_names)),
        PROTOTYPES,
        lambda wrt: traced.score_step(reduction, wrt if reduced else ()).program,
    )


class PlainSource:
    """Where a `Score`'s rewards and metrics are among the extras, which the losses may head."""

    __slots__ = ("count", "traced")

    def __init__(self, traced: Traced, count: int) -> None:
        self.traced = traced
        self.count = count

    def rewards(self, extras: torch.Tensor) -> dict[str, torch.Tensor]:
        """Cut the rewards out of the extras: what lies before the metrics."""
        roles, count = self.traced.reward_roles, self.count
        start = len(extras) - len(self.traced.metric_names) - count * len(roles)
        return {role: extras[start + i * count : start + (i + 1) * count] for i, role in enumerate(roles)}

    def metrics(self, extras: torch.Tensor) -> dict[str, float]:
        """Cut the metrics out of the extras."""
        return self.traced.metrics(extras)


class PlainCall(PlainSource):
    """A call of an objective on CPU tensors [items] and numbers that has been scored.

    Args:
        traced: the traced objective.
        count: the number of items.
        numbers: its numeric hyper-parameters.
        columns: {argument: tensor}, the columns it reads.
    """

    __slots__ = ("columns", "numbers")

    def __init__(
        self, traced: Traced, count: int, numbers: Mapping[str, float], columns: Mapping[str, torch.Tensor]
    ) -> None:
        self.traced = traced
        self.count = count
        self.numbers = numbers
        self.columns = columns

    def pullback(
        self,
        reduction: str,
        wrt: tuple[str, ...],
        columns: dict[str, torch.Tensor],
        loss_gradient: torch.Tensor | None,
        losses_gradient: torch.Tensor | None,
    ) -> list[torch.Tensor]:
        """Return what `Call.pullback` returns."""
        layout, dtype = one_to_one(self.traced.trace.spaces, self.count), TORCH.result_dtype(list(columns.values()))
        call = Call(self.traced, self.numbers, columns, TORCH, layout, dtype)
        return call.pullback(reduction, wrt, columns, loss_gradient, losses_gradient)
