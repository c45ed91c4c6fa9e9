"""One call of an objective: its columns in memory, run through the compiled programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ..tracing.kinds import BATCH
from .arrays import ONE, PLAIN_TENSORS, TORCH, TORCH_NAMES, Array, Arrays, View
from .layout import Layout, arrange
from .traced import UPSTREAM_LOSS, UPSTREAM_LOSSES, Step, Traced

# From this many elements on, more than one thread pays.
PARALLEL = 1 << 15


class Scored(NamedTuple):
    """What one run gives: `extras` holds the rewards one after the other, then the metrics."""

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
        layout: where elements lie; None where every column is one value per item, or a number.
        count: the number of items.
        dtype: that of the results.
        views: the columns' views where they are at hand.
    """

    __slots__ = ("arrays", "columns", "count", "dtype", "dtype_name", "layout", "numbers", "traced", "views")

    def __init__(
        self,
        traced: Traced,
        numbers: Mapping[str, float],
        columns: dict[str, Array],
        arrays: Arrays,
        layout: Layout | None,
        count: int,
        dtype: Any,
        views: dict[str, View] | None = None,
    ) -> None:
        self.traced = traced
        self.numbers = numbers
        self.columns = columns
        self.arrays = arrays
        self.layout = layout
        self.count = count
        self.dtype = dtype
        self.dtype_name = arrays.names[dtype]
        self.views = views

    # The two things a call can do

    def score(self, reduction: str, wrt: tuple[str, ...]) -> Scored:
        """Return loss, losses, rewards and metrics, and d(loss)/d(column) for the columns in `wrt`.

        Gradients come in the shape of their columns; those of f16 and bf16 columns in f32, so that they can still be
        scaled without loss.
        """
        step = self.traced.score_step(reduction, wrt)
        empty, dtype, name = self.arrays.empty, self.dtype, self.dtype_name
        losses, extras = empty(self.count, dtype), empty(self._extras_size(), dtype)
        loss = losses if reduction == "none" else self.arrays.scalar(dtype)
        outputs: list[View] = [] if reduction == "none" else [(self.arrays.address(loss), name, (), ())]
        outputs.append((self.arrays.address(losses), name, (self.count,), ONE))
        self._add_extras(outputs, self.arrays.address(extras))
        gradients = self._add_gradients(outputs, wrt)
        self._run(step, self.columns, outputs)
        if self.layout is None:
            return Scored(loss, losses, extras, gradients)
        losses = self._restore(losses, self.traced.kind.item)
        return Scored(losses if reduction == "none" else loss, losses, extras, self._unpacked(wrt, gradients))

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
        self.views = None
        if loss_gradient is not None:
            columns[UPSTREAM_LOSS] = loss_gradient
        if losses_gradient is not None:
            columns[UPSTREAM_LOSSES] = losses_gradient
        outputs: list[View] = []
        buffers = self._add_gradients(outputs, wrt)
        self._run(step, columns, outputs)
        return self._unpacked(wrt, buffers)

    # What came out

    def rewards(self, extras: Array) -> dict[str, Array]:
        """Cut the rewards out of the extras, in the caller's order and shape."""
        cut, start = {}, 0
        for role, space in zip(self.traced.reward_roles, self.traced.reward_spaces, strict=True):
            size = self._size(space)
            cut[role] = self._restore(extras[start : start + size], space)
            start += size
        return cut

    def metrics(self, extras: Array) -> dict[str, float]:
        """Cut the metrics out of the extras."""
        names = self.traced.metric_names
        return dict(zip(names, extras[len(extras) - len(names) :].tolist(), strict=True)) if names else {}

    # Memory in and out

    def _size(self, space: str) -> int:
        if space == BATCH:
            return 1
        return self.count if self.layout is None else self.layout.counts[space]

    def _extras_size(self) -> int:
        spaces = self.traced.reward_spaces
        rewards = self.count * len(spaces) if self.layout is None else sum(map(self._size, spaces))
        return rewards + len(self.traced.metric_names)

    def _add_extras(self, outputs: list[View], address: int) -> None:
        name, width = self.dtype_name, 8 if self.dtype_name == "f64" else 4
        for space in self.traced.reward_spaces:
            size = self.count if self.layout is None else self.layout.counts[space]
            outputs.append((address, name, (size,), ONE))
            address += size * width
        for _ in self.traced.metric_names:
            outputs.append((address, name, (), ()))
            address += width

    def _add_gradients(self, outputs: list[View], wrt: tuple[str, ...]) -> list[Array]:
        arrays, buffers = self.arrays, []
        for column in wrt:
            space, dtype = self.traced.columns[column], self.columns[column].dtype
            if dtype not in (arrays.single, arrays.wide):
                dtype = arrays.single
            size = self.count if self.layout is None else self.layout.counts[space]
            buffer = arrays.scalar(dtype) if space == BATCH else arrays.empty(size, dtype)
            shape, strides = ((), ()) if space == BATCH else ((size,), ONE)
            outputs.append((arrays.address(buffer), arrays.names[dtype], shape, strides))
            buffers.append(buffer)
        return buffers

    def _unpacked(self, wrt: tuple[str, ...], buffers: list[Array]) -> list[Array]:
        if self.layout is None:
            return buffers
        return [
            self._restore(buffer, self.traced.columns[column], tuple(self.columns[column].shape))
            for column, buffer in zip(wrt, buffers, strict=True)
        ]

    def _restore(self, values: Array, space: str, shape: tuple[int, ...] | None = None) -> Array:
        """Bring values of a space into the caller's order and shape."""
        if self.layout is None:
            return values
        shape = self.layout.shapes[space] if shape is None else shape
        take = self.layout.take.get(space)
        if take is not None:
            return self.arrays.scatter(values, take, shape)
        return values if tuple(values.shape) == shape else values.reshape(shape)

    def _packed(self, name: str, array: Array) -> Array:
        """Return a column as the program wants it: one dimension, its space's elements in order."""
        space = {UPSTREAM_LOSS: BATCH, UPSTREAM_LOSSES: self.traced.kind.item}.get(name) or self.traced.columns[name]
        array = self.arrays.readable(array)
        if space == BATCH:
            return array.reshape(())
        if self.layout is None:
            return array
        take = self.layout.take.get(space)
        if take is not None:
            return self.arrays.gather(array, take)
        flat = self.arrays.flat(array)
        count = self.layout.counts[space]
        return flat if len(flat) == count else flat[:count]

    def _run(self, step: Step, columns: Mapping[str, Array], outputs: list[View]) -> None:
        if self.views is not None:
            kept = []
            views = [self.views[name] for name in step.columns]
        else:  # `kept` holds the packed copies while the program reads them
            kept = [self._packed(name, columns[name]) for name in step.columns]
            views = [self.arrays.view(array) for array in kept]
        numbers = [self.numbers[name] for name in step.parameters]
        if self.layout is None:
            work = self.count
            offsets: list[View | int] = [self.count] * len(step.spaces)
        else:
            work = max(self.layout.counts.values())
            offsets = [self._offsets(space) for space in step.spaces]
        threads = 1 if work < PARALLEL else torch.get_num_threads()
        step.program.run(views, numbers, offsets, outputs, threads)
        del kept

    def _offsets(self, space: str) -> View | int:
        assert self.layout is not None
        offsets = self.layout.offsets.get(space)
        if offsets is None:
            return self.layout.counts[space]
        return offsets.__array_interface__["data"][0], "i64", offsets.shape, (1,)


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
    return Call(traced, numbers, columns, arrays, layout, layout.counts[traced.kind.item], dtype)


def bind_plain(
    traced: Traced, numbers: Mapping[str, float], arguments: Mapping[str, Array]
) -> tuple[Call, list[str]] | None:
    """Bind CPU tensors all of which have one value per item, or are numbers: the short way, for small batches.

    Returns:
        The call and the columns that require grad, or None where something needs a closer look.
    """
    shape, dtype = None, torch.float32
    views, wrt = {}, []
    for name, space in traced.columns.items():
        column = arguments[name]
        if type(column) not in PLAIN_TENSORS or not column.is_cpu or column.dtype not in TORCH_NAMES:
            return None
        came = column.shape
        if space == BATCH:
            if came:
                return None
        else:
            if shape is None:
                shape = came
            elif came != shape:
                return None
            if column.dtype is torch.float64:
                dtype = torch.float64
        if column.requires_grad:
            wrt.append(name)
        views[name] = (column.data_ptr(), TORCH_NAMES[column.dtype], came, column.stride())
    if shape is None or len(shape) != 1:
        return None
    columns = (
        arguments if isinstance(arguments, dict) and len(arguments) == len(views) else {n: arguments[n] for n in views}
    )
    return Call(traced, numbers, columns, TORCH, None, shape[0], dtype, views), wrt
