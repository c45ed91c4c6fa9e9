"""The short way for small batches: CPU tensors of one dtype, one value per item.

Scoring 64 pairs is a few microseconds of arithmetic; the rest is Python. So nothing is laid out or converted here, and
tensors go to the extension as DLPack capsules, the cheapest description torch gives. Whatever does not fit is left to
the general way, errors included.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.utils.dlpack import to_dlpack

from .arrays import PLAIN_TENSORS, TORCH
from .call import PARALLEL, Call, Scored
from .layout import one_to_one
from .traced import Traced

# Results are made from these: cheaper than asking torch for a dtype and a device, and blind to its defaults.
PROTOTYPES = {dtype: torch.empty((), dtype=dtype, device="cpu") for dtype in (torch.float32, torch.float64)}


class PlainCall:
    """One call of an objective on CPU tensors [items] and numbers, all float32 or all float64; does what `Call` does.

    Args:
        traced: the traced objective.
        numbers: its numeric hyper-parameters.
        columns: {argument: tensor} for every column it reads.
        trainable: those that require grad.
    """

    __slots__ = ("columns", "count", "numbers", "prototype", "traced", "trainable")

    arrays = TORCH

    def __init__(
        self,
        traced: Traced,
        numbers: Mapping[str, float],
        columns: dict[str, torch.Tensor],
        trainable: tuple[str, ...],
    ) -> None:
        self.traced = traced
        self.numbers = numbers
        self.columns = columns
        self.trainable = trainable
        item = columns[traced.item_columns[0]]
        self.count = item.numel()
        self.prototype = PROTOTYPES[item.dtype]

    def score(self, reduction: str, wrt: tuple[str, ...]) -> Scored:
        """Return what `Call.score` returns.

        Every result has memory of its own: views of a common one take torch as long to make, and could not be changed
        in place where autograd records them.

        Raises:
            ValueError: the columns do not have one value per item each; nothing is said about which.
        """
        traced, columns, count, prototype = self.traced, self.columns, self.count, self.prototype
        step = traced.score_step(reduction, wrt)
        losses = prototype.new_empty(count)
        extras = prototype.new_empty(count * len(traced.reward_spaces) + len(traced.metric_names))
        gradients = [torch.empty_like(columns[name]) for name in wrt]
        outputs = [losses, extras, *gradients]
        if reduction == "none":
            loss = losses
        else:
            loss = torch.empty_like(prototype)
            outputs.insert(0, loss)
        step.program.run(
            [to_dlpack(columns[name]) for name in step.columns],
            [self.numbers[name] for name in step.parameters],
            [count] * len(step.spaces),
            [to_dlpack(output) for output in outputs],
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
        call = Call(self.traced, self.numbers, columns, TORCH, layout, self.prototype.dtype)
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
    """Bind CPU tensors of one dtype, float32 or float64; None where something needs a closer look.

    Shapes are left for the program to check.
    """
    columns, trainable, dtype = {}, [], None
    for name in traced.columns:
        column = arguments[name]
        if type(column) not in PLAIN_TENSORS or not column.is_cpu:
            return None
        if column.dtype is not dtype:
            if dtype is not None or column.dtype not in PROTOTYPES:
                return None
            dtype = column.dtype
        if column.requires_grad:
            trainable.append(name)
        columns[name] = column
    return PlainCall(traced, numbers, columns, tuple(trainable))
