"""The short way for small batches: CPU tensors with one value per item.

Scoring 64 pairs is two microseconds of arithmetic; everything else is Python. So nothing is laid out or converted here,
and what a plan knows is not asked again.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..tracing.kinds import BATCH
from .arrays import ONE, PLAIN_TENSORS, TORCH, TORCH_NAMES, View
from .call import PARALLEL, Call, Scored
from .layout import one_to_one
from .traced import Traced

# New results are made from these: cheaper than asking torch for a dtype and a device, and blind to its defaults.
PROTOTYPES = {dtype: torch.empty((), dtype=dtype, device="cpu") for dtype in (torch.float32, torch.float64)}


class PlainCall:
    """One call of an objective on CPU tensors [items] and numbers; does what a `Call` does.

    Args:
        traced: the traced objective.
        numbers: its numeric hyper-parameters.
        columns: {argument: tensor} for every column it reads.
        views: their memory.
        count: the number of items.
        dtype: that of the results.
        trainable: the columns that require grad.
    """

    __slots__ = ("columns", "count", "dtype", "numbers", "traced", "trainable", "views")

    arrays = TORCH

    def __init__(
        self,
        traced: Traced,
        numbers: Mapping[str, float],
        columns: dict[str, torch.Tensor],
        views: dict[str, View],
        count: int,
        dtype: torch.dtype,
        trainable: tuple[str, ...],
    ) -> None:
        self.traced = traced
        self.numbers = numbers
        self.columns = columns
        self.views = views
        self.count = count
        self.dtype = dtype
        self.trainable = trainable

    def score(self, reduction: str, wrt: tuple[str, ...]) -> Scored:
        """Return what `Call.score` returns. Every result has memory of its own, as torch makes views no faster."""
        traced, count = self.traced, self.count
        step = traced.score_step(reduction, wrt)
        prototype, name = PROTOTYPES[self.dtype], TORCH_NAMES[self.dtype]
        size = count * len(traced.reward_spaces) + len(traced.metric_names)
        losses, extras = prototype.new_empty(count), prototype.new_empty(size)
        outputs = [(losses.data_ptr(), name, (count,), ONE), (extras.data_ptr(), name, (size,), ONE)]
        if reduction == "none":
            loss = losses
        else:
            loss = torch.empty_like(prototype)
            outputs.insert(0, (loss.data_ptr(), name, (), ()))
        gradients = []
        for column in wrt:
            _, name, shape, _ = self.views[column]
            if name in ("f32", "f64"):
                gradient = torch.empty_like(self.columns[column])
            else:
                gradient, name = PROTOTYPES[torch.float32].new_empty(shape), "f32"
            gradients.append(gradient)
            outputs.append((gradient.data_ptr(), name, shape, ONE if shape else ()))
        step.program.run(
            [self.views[column] for column in step.columns],
            [self.numbers[parameter] for parameter in step.parameters],
            [count] * len(step.spaces),
            outputs,
            1 if count < PARALLEL else torch.get_num_threads(),
        )
        return Scored(loss, losses, extras, gradients)

    def pullback(
        self,
        reduction: str,
        wrt: tuple[str, ...],
        columns: dict[str, torch.Tensor],
        loss_gradient: torch.Tensor | None,
        losses_gradient: torch.Tensor | None,
    ) -> list[torch.Tensor]:
        """Return what `Call.pullback` returns."""
        layout = one_to_one(self.traced.trace.spaces, self.count)
        call = Call(self.traced, self.numbers, columns, TORCH, layout, self.dtype)
        return call.pullback(reduction, wrt, columns, loss_gradient, losses_gradient)

    def rewards(self, extras: torch.Tensor) -> dict[str, torch.Tensor]:
        """Cut the rewards out of the extras."""
        count = self.count
        return {role: extras[i * count : (i + 1) * count] for i, role in enumerate(self.traced.reward_roles)}

    def metrics(self, extras: torch.Tensor) -> dict[str, float]:
        """Cut the metrics out of the extras."""
        return self.traced.metrics(extras)


def bind_plain(
    traced: Traced, numbers: Mapping[str, float], arguments: Mapping[str, torch.Tensor]
) -> PlainCall | None:
    """Bind CPU tensors that have one value per item, or are numbers; None where something needs a closer look.

    For objectives whose columns and results are all per item or per batch.
    """
    items, dtype = None, torch.float32
    views, trainable = {}, []
    for name, space in traced.columns.items():
        column = arguments[name]
        if type(column) not in PLAIN_TENSORS or not column.is_cpu:
            return None
        known, shape = TORCH_NAMES.get(column.dtype), column.shape
        if known is None:
            return None
        if space == BATCH:
            if shape:
                return None
        elif items is None:
            items = shape
        elif shape != items:
            return None
        if known == "f64" and shape:
            dtype = torch.float64
        if column.requires_grad:
            trainable.append(name)
        views[name] = (column.data_ptr(), known, shape, column.stride())
    if items is None or len(items) != 1:
        return None
    columns = {name: arguments[name] for name in views}
    return PlainCall(traced, numbers, columns, views, items[0], dtype, tuple(trainable))
