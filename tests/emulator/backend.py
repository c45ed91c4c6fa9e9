"""The CUDA backend with the emulator in the place of the device: what `prefuse._backends.cuda` does, on CPU tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.utils.dlpack import to_dlpack as capsule

from prefuse import _prefuse
from prefuse._backends.columns import Gathered, Strips, ToInput
from prefuse._backends.nvrtc import SHARED_MEMORY
from prefuse._backends.rows import Rows
from tests.emulator import emulator

FEW, MANY = 1, 10**6
"""Multiprocessors of a device that any number of rows fills, and of one that needs every row split."""


@dataclass
class Emulated:
    """How to run: the order of threads, the size of the device, the part of the grid."""

    order: int = emulator.ASCENDING
    multiprocessors: int = FEW
    blocks: tuple[int, int] | None = None
    watch_writes: bool = True
    capability: int = 90
    workspace: torch.Tensor | None = field(default=None, repr=False)

    def rows_forward(self, rows: Rows, out: torch.Tensor) -> None:
        """As `prefuse._backends.Backend.rows_forward`."""
        arguments = (rows.arguments(), rows.stats, rows.k, capsule(out))
        numbers, _ = _prefuse.cuda_plan_rows_forward(*arguments, None, self.multiprocessors)
        self.workspace = out.new_full((numbers,), float("nan"))
        _, launches = _prefuse.cuda_plan_rows_forward(*arguments, capsule(self.workspace), self.multiprocessors)
        self._run(launches, rows, out, self.workspace)

    def rows_backward(self, rows: Rows, grads: torch.Tensor, saved: torch.Tensor, gradient: torch.Tensor) -> None:
        """As `prefuse._backends.Backend.rows_backward`."""
        launches = _prefuse.cuda_plan_rows_backward(
            rows.arguments(), rows.stats, capsule(grads), capsule(saved), capsule(gradient)
        )
        buffers = [emulator.buffer(tensor, False) for tensor in (grads, saved)]
        self._run(launches, rows, gradient, extra=buffers)

    def rows_both(self, rows: Rows, grads: torch.Tensor, out: torch.Tensor, gradient: torch.Tensor) -> None:
        """As `prefuse._backends.Backend.rows_both`."""
        numbers, _ = _prefuse.cuda_plan_rows_forward(
            rows.arguments(), rows.stats, rows.k, capsule(out), None, self._target[0]
        )
        self.workspace = out.new_full((numbers,), float("nan"))
        launches = self.both_launches(rows, grads, out, gradient)
        self._run(launches, rows, gradient, out, self.workspace, extra=[emulator.buffer(grads, False)])

    def both_launches(
        self, rows: Rows, grads: torch.Tensor, out: torch.Tensor, gradient: torch.Tensor
    ) -> list[emulator.Launch]:
        """What `rows_both` runs."""
        tables = (capsule(grads), capsule(out), capsule(gradient))
        workspace = None if self.workspace is None else capsule(self.workspace)
        return _prefuse.cuda_plan_rows_both(rows.arguments(), rows.stats, rows.k, *tables, workspace, self._target)

    @property
    def _target(self) -> tuple[int, int, int]:
        """No device that has clusters has fewer than 8 multiprocessors."""
        return max(self.multiprocessors, 8), self.capability, SHARED_MEMORY[self.capability]

    def segment_sum(self, values: torch.Tensor, offsets: torch.Tensor, out: torch.Tensor) -> None:
        """As `prefuse._backends.Backend.segment_sum`."""
        self._segments(
            _prefuse.cuda_plan_segment_sum(capsule(values), capsule(offsets), capsule(out)), values, offsets, out
        )

    def segment_expand(self, values: torch.Tensor, offsets: torch.Tensor, out: torch.Tensor) -> None:
        """As `prefuse._backends.Backend.segment_expand`."""
        self._segments(
            _prefuse.cuda_plan_segment_expand(capsule(values), capsule(offsets), capsule(out)), values, offsets, out
        )

    def distance_forward(self, first: torch.Tensor, second: torch.Tensor, out: torch.Tensor) -> None:
        """As `prefuse._backends.Backend.distance_forward`."""
        self.workspace = out.new_full(
            (_prefuse.cuda_distance_workspace(capsule(first), capsule(second)),), float("nan"), dtype=torch.float64
        )
        launches = _prefuse.cuda_plan_distance_forward(
            capsule(first), capsule(second), capsule(out), capsule(self.workspace)
        )
        self._touching(launches, (out, self.workspace), (first, second))

    def distance_backward(
        self, first: torch.Tensor, second: torch.Tensor, grads: torch.Tensor, gradient: torch.Tensor
    ) -> None:
        """As `prefuse._backends.Backend.distance_backward`."""
        launches = _prefuse.cuda_plan_distance_backward(
            capsule(first), capsule(second), capsule(grads), capsule(gradient)
        )
        self._touching(launches, (gradient,), (first, second, grads))

    def columns_find(self, strips: Strips, eps: float, active: torch.Tensor, tails: torch.Tensor) -> None:
        """As `prefuse._backends.columns.find`."""
        launches = _prefuse.cuda_plan_columns_find(strips, eps, (capsule(active), capsule(tails)))
        self._touching(launches, (active, tails), strips[:-1])

    def columns_gather(self, strips: Strips, gathered: Gathered) -> None:
        """As `prefuse._backends.columns.gather`."""
        launches = _prefuse.cuda_plan_columns_gather(strips, gathered)
        self._touching(launches, (gathered.values, gathered.sums), (gathered.columns, gathered.starts, *strips[:-1]))

    def columns_add(self, total: torch.Tensor, product: torch.Tensor, columns: torch.Tensor) -> None:
        """As `prefuse._backends.columns.add`."""
        launches = _prefuse.cuda_plan_columns_add((capsule(total), capsule(product), capsule(columns)))
        self._touching(launches, (total,), (product, columns))

    def columns_to_input(self, call: ToInput) -> None:
        """As `prefuse._backends.columns.to_input`."""
        self._touching(_prefuse.cuda_plan_columns_to_input(call), (call.out,), call[:-2])

    def columns_to_weight(
        self, total: torch.Tensor, values: torch.Tensor, columns: torch.Tensor, inputs: torch.Tensor
    ) -> None:
        """As `prefuse._backends.columns.to_weight`."""
        launches = _prefuse.cuda_plan_columns_to_weight((total, values, columns, inputs))
        self._touching(launches, (total,), (values, columns, inputs))

    def _touching(
        self, launches: list[emulator.Launch], written: Sequence[torch.Tensor], read: Sequence[torch.Tensor]
    ) -> None:
        buffers = [emulator.buffer(tensor, True) for tensor in written if tensor.numel()]
        buffers += [emulator.buffer(tensor, False) for tensor in read if tensor.numel()]
        self.execute(launches, buffers)

    def _run(
        self,
        launches: list[emulator.Launch],
        rows: Rows,
        *written: torch.Tensor,
        extra: Sequence[tuple[int, int, bool]] = (),
    ) -> None:
        # Writable ranges first: where the gradient lies over the logits, the range that may be written is found.
        buffers = [emulator.buffer(tensor, True) for tensor in written if tensor.numel()] + [*extra]
        buffers += [emulator.buffer(tensor, False) for tensor in rows[:5] if tensor is not None and tensor.numel()]
        self.execute(launches, buffers)

    def _segments(
        self, launches: list[emulator.Launch], values: torch.Tensor, offsets: torch.Tensor, out: torch.Tensor
    ) -> None:
        buffers = [emulator.buffer(tensor, False) for tensor in (values, offsets) if tensor.numel()]
        self.execute(launches, [*buffers, *([emulator.buffer(out, True)] if out.numel() else [])])

    def execute(self, launches: list[emulator.Launch], buffers: Sequence[tuple[int, int, bool]]) -> None:
        """Runs the launches, which may touch `buffers` and nothing else."""
        emulator.run(launches, buffers, self.order, self.blocks, self.watch_writes)
