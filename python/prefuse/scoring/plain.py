"""The short way for small batches: CPU tensors, those of floats of one dtype, one value per item.

Scoring 64 pairs is a few microseconds of arithmetic; the rest is Python. So nothing is laid out or converted here, and
tensors go to the extension as DLPack capsules, the cheapest description torch gives. Whatever does not fit is left to
the general way, errors included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from .._backends.arrays import capsule
from .arrays import PLAIN_TENSORS, TORCH
from .call import PARALLEL, Call, Scored
from .layout import one_to_one
from .traced import Traced

# Results are made from these: cheaper than asking torch for a dtype and a device, and blind to its defaults.
PROTOTYPES = {dtype: torch.empty((), dtype=dtype, device="cpu") for dtype in (torch.float32, torch.float64)}
EXACT = (torch.int64, torch.bool)  # lengths and labels, which the extension reads as they are


class PlainSource:
    """Where a `Score`'s rewards and metrics are among the extras; its losses head them."""

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


class PlainStep(NamedTuple):
    """A program that scores the mean with the gradients of some columns, and what its call takes: see `Step`.

    `item` is a column with one value per item; the extras have `per_item` values for each and `others` more.
    """

    run: Callable[..., None]
    columns: tuple[str, ...]
    parameters: tuple[str, ...]
    spaces: int
    item: str
    per_item: int
    others: int
    wrt: tuple[str, ...]


class PlainSteps:
    """The steps of a traced objective by the columns whose gradients are wanted, each compiled on first use."""

    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        self._steps: dict[tuple[str, ...], PlainStep] = {}

    def of(self, wrt: tuple[str, ...]) -> PlainStep:
        """Return the step for the columns in `wrt`."""
        found = self._steps.get(wrt)
        if found is None:
            traced, step = self.traced, self.traced.score_step("mean", wrt)
            sizes = (len(step.spaces), traced.item_columns[0], 1 + len(traced.reward_roles), len(traced.metric_names))
            found = self._steps[wrt] = PlainStep(step.program.run, step.columns, step.parameters, *sizes, wrt)
        return found


def score_plain(
    step: PlainStep, numbers: Mapping[str, float], arguments: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> Scored:
    """Return the mean of what `plain_columns` takes, and what `Scored` has beside; the losses head the extras.

    Raises:
        ValueError: the columns do not have one value per item each; nothing is said about which.
    """
    run, columns, parameters, spaces, item, per_item, others, wrt = step
    count, prototype = arguments[item].numel(), PROTOTYPES[dtype]
    loss, extras = torch.empty_like(prototype), prototype.new_empty(count * per_item + others)
    gradients = [torch.empty_like(arguments[name]) for name in wrt]
    run(
        [capsule(arguments[name]) for name in columns],
        [numbers[name] for name in parameters],
        [count] * spaces,
        [capsule(loss), capsule(extras), *map(capsule, gradients)],
        1 if count < PARALLEL else torch.get_num_threads(),
    )
    return Scored(loss, count, extras, gradients)


class PlainCall(PlainSource):
    """One call of an objective on CPU tensors [items] and numbers; does what `Call` does.

    Args:
        traced: the traced objective.
        numbers: its numeric hyper-parameters.
        columns: {argument: tensor}, the columns it reads.
        dtype: that of all columns of floats, and of the results.
    """

    __slots__ = ("columns", "numbers", "prototype")

    arrays = TORCH

    def __init__(
        self,
        traced: Traced,
        numbers: Mapping[str, float],
        columns: Mapping[str, torch.Tensor],
        dtype: torch.dtype,
    ) -> None:
        super().__init__(traced, columns[traced.item_columns[0]].numel())
        self.numbers = numbers
        self.columns = columns
        self.prototype = PROTOTYPES[dtype]

    def score(self, reduction: str, wrt: tuple[str, ...]) -> Scored:
        """Return what `Call.score` returns; but for reduction "none" the losses head the extras.

        Args:
            reduction: "mean", "sum" or "none".
            wrt: the columns to differentiate by.

        Raises:
            ValueError: the columns do not have one value per item each; nothing is said about which.
        """
        traced, count, prototype = self.traced, self.count, self.prototype
        step = traced.score_step(reduction, wrt)
        column, number = self.columns.__getitem__, self.numbers.__getitem__  # `map` over these is C throughout
        size = count * len(traced.reward_roles) + len(traced.metric_names)
        gradients = list(map(torch.empty_like, map(column, wrt))) if wrt else []
        losses: torch.Tensor | int
        if reduction == "none":
            loss = losses = prototype.new_empty(count)
            outputs = [losses, extras := prototype.new_empty(size), *gradients]
        else:
            loss, losses = torch.empty_like(prototype), count
            outputs = [loss, extras := prototype.new_empty(count + size), *gradients]
        step.program.run(
            list(map(capsule, map(column, step.columns))),
            list(map(number, step.parameters)),
            [count] * len(step.spaces),
            list(map(capsule, outputs)),
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


class PlainColumns(NamedTuple):
    """What tells the columns of one short call from those of another: the dtype of floats, and which require grad."""

    dtype: torch.dtype
    trainable: tuple[str, ...]


def plain_columns(traced: Traced, arguments: Mapping[str, torch.Tensor]) -> PlainColumns | None:
    """Look at CPU tensors whose floats are all float32 or all float64; None where something needs a closer look.

    Args:
        traced: the traced objective.
        arguments: its columns, and nothing else; shapes are left for the program to check.
    """
    trainable, dtype = [], None
    for name in traced.columns:
        column = arguments[name]
        if type(column) not in PLAIN_TENSORS or not column.is_cpu or column.is_neg():
            return None
        own = column.dtype
        if own is not dtype and own not in EXACT:
            if dtype is not None or own not in PROTOTYPES:
                return None
            dtype = own
        if column.requires_grad:
            trainable.append(name)
    return None if dtype is None else PlainColumns(dtype, tuple(trainable))
