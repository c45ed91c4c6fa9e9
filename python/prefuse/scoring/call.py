"""One call of an objective: its columns in memory, run through the compiled programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from prefuse._prefuse import PARALLEL

from ..tracing.kinds import BATCH
from .arrays import NUMPY, Array, Arrays
from .layout import Layout, arrange
from .traced import UPSTREAM_LOSS, UPSTREAM_LOSSES, Step, Traced


class Scored(NamedTuple):
    """What one run gives.

    `extras` holds the rewards one after the other, then the metrics. `losses` may be a number: so many values that
    stand before the rewards there.
    """

    loss: Array
    losses: Array
    extras: Array
    gradients: list[Array]


class Call:
    """The arrays of one call, bound to the programs of a traced objective.

    Args:
        traced: the traced objective.
        numbers: its numeric hyper-parameters.
        columns: {argument: array} for every column it reads.
        arrays: the array library.
        layout: where elements lie.
        dtype: that of the results.
    """

    def __init__(
        self,
        traced: Traced,
        numbers: Mapping[str, float],
        columns: dict[str, Array],
        arrays: Arrays,
        layout: Layout,
        dtype: Any,
    ) -> None:
        self.traced = traced
        self.numbers = numbers
        self.columns = columns
        self.arrays = arrays
        self.layout = layout
        self.dtype = dtype

    # The two things a call can do; packing goes through torch, which must not record it

    @torch.no_grad()
    def score(self, reduction: str, wrt: tuple[str, ...]) -> Scored:
        """Return loss, losses, rewards and metrics, and d(loss)/d(column) for the columns in `wrt`.

        Gradients come in the shape of their columns; those of f16 and bf16 columns in f32, so that they can still be
        scaled without loss.
        """
        step = self.traced.score_step(reduction, wrt)
        item, empty = self.traced.kind.item, self.arrays.empty
        losses = empty(self.layout.counts[item], self.dtype)
        extras = empty(self._extras_size(), self.dtype)
        loss = losses if reduction == "none" else self.arrays.scalar(self.dtype)
        gradients = self._gradient_buffers(wrt)
        results = [losses, extras] if reduction == "none" else [loss, losses, extras]
        self._run(step, self.columns, results, wrt, gradients)
        losses = self._restore(losses, item)
        return Scored(losses if reduction == "none" else loss, losses, extras, self._unpacked(wrt, gradients))

    @torch.no_grad()
    def totals(self) -> dict[str, float]:
        """Return the numbers of this batch that a caller may give in their place, by argument."""
        names = tuple(self.traced.trace.totals)
        results = [self.arrays.scalar(self.arrays.wide) for _ in names]
        if names:
            self._run(self.traced.totals_step(), self.columns, results, (), [])
        return {name: float(result) for name, result in zip(names, results, strict=True)}

    @torch.no_grad()
    def pullback(
        self,
        reduction: str,
        wrt: tuple[str, ...],
        columns: dict[str, Array],
        loss_gradient: Array | None,
        losses_gradient: Array | None,
    ) -> list[Array]:
        """Return the gradients of the columns in `wrt`, given those of loss and losses (None: none)."""
        if reduction == "none" and loss_gradient is not None:
            losses_gradient = loss_gradient if losses_gradient is None else losses_gradient + loss_gradient
            loss_gradient = None
        given = (loss_gradient is not None, losses_gradient is not None)
        step = self.traced.pullback_step(reduction, wrt, given)
        columns = dict(columns)
        if loss_gradient is not None:
            columns[UPSTREAM_LOSS] = loss_gradient
        if losses_gradient is not None:
            columns[UPSTREAM_LOSSES] = losses_gradient
        buffers = self._gradient_buffers(wrt)
        self._run(step, columns, [], wrt, buffers)
        return self._unpacked(wrt, buffers)

    # What came out

    def rewards(self, extras: Array) -> dict[str, Array]:
        """Cut the rewards out of the extras, in the caller's order and shape."""
        cut, start = {}, 0
        for role, space in zip(self.traced.reward_roles, self.traced.reward_spaces, strict=True):
            size = self.layout.counts[space]
            cut[role] = self._restore(extras[start : start + size], space)
            start += size
        return cut

    def metrics(self, extras: Array) -> dict[str, float]:
        """Cut the metrics out of the extras."""
        return self.traced.metrics(extras)

    # Memory in and out

    def _extras_size(self) -> int:
        return sum(self.layout.counts[space] for space in self.traced.reward_spaces) + len(self.traced.metric_names)

    def _gradient_dtype(self, column: Array) -> Any:
        """Return f64 or f32: that of f16 and bf16 columns can still be scaled without loss."""
        return self.arrays.wide if column.dtype == self.arrays.wide else self.arrays.single

    def _gradient_buffers(self, wrt: tuple[str, ...]) -> list[Array]:
        arrays, buffers = self.arrays, []
        for name in wrt:
            space, dtype = self.traced.columns[name], self._gradient_dtype(self.columns[name])
            buffers.append(arrays.scalar(dtype) if space == BATCH else arrays.empty(self.layout.counts[space], dtype))
        return buffers

    def _unpacked(self, wrt: tuple[str, ...], buffers: list[Array]) -> list[Array]:
        return [
            self._restore(buffer, self.traced.columns[column], tuple(self.columns[column].shape))
            for column, buffer in zip(wrt, buffers, strict=True)
        ]

    def _restore(self, values: Array, space: str, shape: tuple[int, ...] | None = None) -> Array:
        """Bring values of a space into the caller's order and shape."""
        shape = self.layout.shapes[space] if shape is None else shape
        take = self.layout.take.get(space)
        if take is not None:
            return self.arrays.scatter(values, take, shape)
        return values if tuple(values.shape) == shape else values.reshape(shape)

    def _space(self, name: str) -> str:
        return {UPSTREAM_LOSS: BATCH, UPSTREAM_LOSSES: self.traced.kind.item}.get(name) or self.traced.columns[name]

    def _packed(self, name: str, array: Array) -> Array:
        """Return a column as the program wants it: one dimension, its space's elements in order."""
        space = self._space(name)
        array = self.arrays.readable(array)
        if space == BATCH:
            return array.reshape(())
        take = self.layout.take.get(space)
        if take is not None:
            return self.arrays.gather(array, take)
        flat = self.arrays.flat(array)
        count = self.layout.counts[space]
        return flat if len(flat) == count else flat[:count]

    def _run(
        self,
        step: Step,
        columns: Mapping[str, Array],
        results: Sequence[Array],
        wrt: tuple[str, ...],
        gradients: list[Array],
    ) -> None:
        """Run a program whose outputs fill `results` in order, followed by the gradients of the columns `wrt`."""
        memory = self.arrays.memory
        packed = [self._packed(name, columns[name]) for name in step.columns]
        work = max(self.layout.counts.values())
        step.program.run(
            [memory(array) for array in packed],
            [self.numbers[name] for name in step.parameters],
            [self._offsets(space) for space in step.spaces],
            [memory(array) for array in (*results, *gradients)],
            1 if work < PARALLEL else torch.get_num_threads(),
        )

    def _offsets(self, space: str) -> Any:
        offsets = self.layout.offsets.get(space)
        if offsets is None:
            return self.layout.counts[space]
        return NUMPY.memory(offsets)


def bind(
    traced: Traced, numbers: Mapping[str, float], arguments: Mapping[str, Array], arrays: Arrays, grouped: bool
) -> Call:
    """Bind the caller's arrays.

    Args:
        traced: the traced objective.
        numbers: its numeric hyper-parameters.
        arguments: columns, masks, `cu_seqlens` and `groups` by name.
        arrays: the array library.
        grouped: whether the objective looks at groups of responses.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    columns = {name: arguments[name] for name in traced.columns}
    layout = arrange(traced.kind, traced.columns, arguments, arrays, grouped)
    dtype = arrays.result_dtype(list(columns.values()))
    return Call(traced, numbers, columns, arrays, layout, dtype)
