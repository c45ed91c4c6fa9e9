"""Calls whose columns are CUDA tensors: laid out and run on the device, without waiting for it.

A padded batch is packed by indices made on the device, and the kernel takes elements through them; how many tokens
count is known to the device alone, so sizes known here are upper bounds. Responses in groups given by `groups` ids are
the exception: how many groups there are decides the shape of the losses, which takes one look at the ids.

Offsets that decrease or leave the array are bent on the device so that nothing outside is touched; with
`PREFUSE_DEBUG=1` in the environment they are looked at, and refused as on the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from prefuse._backends.arrays import DTYPES
from prefuse._backends.nvrtc import prepare

from ..tracing.kinds import BATCH, Kind, pair_space
from .arrays import TorchArrays
from .call import Call
from .layout import Arranger, Layout, one_to_one
from .traced import Step, Traced

# A column or output: its memory, or that and the indices of its elements.
Taken = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


def runs_on(device: torch.device) -> bool:
    """Return whether objectives have kernels for such a device."""
    return device.type == "cuda"


class DeviceArrays(TorchArrays):
    """Tensors of one device."""

    def __init__(self, device: torch.device, zeroed: bool) -> None:
        self.device = device
        self._make = torch.zeros if zeroed else torch.empty

    def readable(self, array: torch.Tensor) -> torch.Tensor:
        """Return the tensor; kernels read integers of 64 bits and booleans, too."""
        return array.resolve_neg() if array.dtype in DTYPES else super().readable(array)

    def empty(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor of one dimension: zeros where a kernel may leave elements out."""
        return self.buffer((size,), dtype)

    def buffer(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor of this shape: zeros where a kernel may leave elements out."""
        return self._make(shape, dtype=dtype, device=self.device)

    def scalar(self, dtype: torch.dtype) -> torch.Tensor:
        """Return an uninitialised tensor of no dimension."""
        return torch.empty((), dtype=dtype, device=self.device)

    def scatter(self, values: torch.Tensor, index: Any, shape: Any) -> torch.Tensor:
        """Return a tensor of this shape with `values` at the flat positions `index` and zeros elsewhere."""
        result = torch.zeros(shape, dtype=values.dtype, device=self.device)
        result.view(-1).index_copy_(0, index, values)
        return result


@dataclass
class Launch:
    """One run of a program on a device, for `run_program`."""

    program: Any
    columns: list[Taken]
    numbers: list[float]
    offsets: list[torch.Tensor | int]
    counts: dict[str, int]
    outputs: list[Taken]
    device: torch.device

    def arguments(self) -> tuple[Any, ...]:
        """Return what a program takes: columns, numbers, offsets, counts, outputs."""
        return self.columns, self.numbers, self.offsets, self.counts, self.outputs


def run_program(launch: Launch) -> None:
    """Queue a program on PyTorch's current stream, with workspace from PyTorch's allocator."""
    prepare()
    arguments = launch.arguments()
    size = launch.program.cuda_workspace(*arguments[2:4])
    workspace = torch.empty(size, dtype=torch.bool, device=launch.device)  # bytes of a dtype that the extension reads
    stream = torch.cuda.current_stream(launch.device).cuda_stream
    launch.program.cuda_launch(*arguments, workspace, launch.device.index, stream)


class DeviceCall(Call):
    """A call whose columns lie on a device."""

    arrays: DeviceArrays

    def _run(
        self, step: Step, columns: Mapping[str, Any], results: Sequence[Any], wrt: tuple[str, ...], gradients: list[Any]
    ) -> None:
        kept = [self.arrays.readable(columns[name].to(self.arrays.device)) for name in step.columns]
        outputs = self._one_by_one(results, step.program.output_spaces[: len(step.program.output_spaces) - len(wrt)])
        outputs += [
            self._taken(gradient, self.traced.columns[name]) for name, gradient in zip(wrt, gradients, strict=True)
        ]
        run_program(
            Launch(
                step.program,
                [self._taken(column, self._space(name)) for name, column in zip(step.columns, kept, strict=True)],
                [self.numbers[name] for name in step.parameters],
                [self._cut(space) for space in step.spaces],
                self.layout.counts,
                outputs,
                self.arrays.device,
            )
        )

    def _taken(self, array: torch.Tensor, space: str) -> Taken:
        array = array.reshape(() if space == BATCH else -1)
        take: Any = self.layout.take.get(space)
        if take is not None:
            return array, take
        return array if space == BATCH else array[: self.layout.counts[space]]

    def _one_by_one(self, arrays: Sequence[torch.Tensor], spaces: Sequence[str]) -> list[Taken]:
        """Return the memory of outputs that fill the arrays in order, one behind the other."""
        outputs: list[Taken] = []
        rest, start = [array for array in arrays if array.numel()], 0
        for space in spaces:
            size = self.layout.counts[space]
            if rest and start == rest[0].numel() and size:
                rest, start = rest[1:], 0
            array = (rest[0] if rest else arrays[0]).reshape(-1)
            outputs.append(array[start] if space == BATCH else array[start : start + size])
            start += size
        return outputs

    def _cut(self, space: str) -> Any:
        offsets = self.layout.offsets.get(space)
        return self.layout.counts[space] if offsets is None else offsets

    def _gradient_buffers(self, wrt: tuple[str, ...]) -> list[Any]:
        """Return gradients in their columns' own order: elements that are not taken are zero."""
        columns = [self.columns[name] for name in wrt]
        return [self.arrays.buffer(column.shape, self._gradient_dtype(column)) for column in columns]

    def _unpacked(self, wrt: tuple[str, ...], buffers: list[Any]) -> list[Any]:
        return buffers


def bind_on_device(
    traced: Traced,
    numbers: Mapping[str, float],
    arguments: Mapping[str, torch.Tensor],
    device: torch.device,
    grouped: bool,
    plain: bool,
) -> DeviceCall:
    """Bind tensors of a device.

    Args:
        traced: the traced objective.
        numbers: its numeric hyper-parameters.
        arguments: columns, masks, `cu_seqlens` and `groups` by name; numbers of the batch may lie on the CPU.
        device: the device of the others.
        grouped: whether the objective looks at groups of responses.
        plain: whether its columns are one value per item, or numbers, and need no layout.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    columns = {name: arguments[name] for name in traced.columns}
    shapes = {column.shape for name, column in columns.items() if traced.columns[name] != BATCH}
    plain = plain and len(shapes) == 1 and all(c.ndim == (traced.columns[name] != BATCH) for name, c in columns.items())
    arrays = DeviceArrays(device, zeroed=not plain)
    dtype = arrays.result_dtype(list(columns.values()))
    if plain:
        layout = one_to_one(traced.trace.spaces, shapes.pop()[0])
    else:
        layout = _arrange(traced.kind, traced.columns, arguments, arrays, grouped)
    return DeviceCall(traced, numbers, columns, arrays, layout, dtype)


def _arrange(
    kind: Kind, columns: Mapping[str, str], arguments: Mapping[str, torch.Tensor], arrays: DeviceArrays, grouped: bool
) -> Layout:
    looked_at = "groups" in arguments or os.environ.get("PREFUSE_DEBUG") == "1"
    arranger = Arranger if looked_at else _DeviceArranger
    layout = arranger(kind, columns, arguments, arrays).arrange(grouped)
    for found in (layout.offsets, layout.take):
        for space, index in found.items():
            if isinstance(index, np.ndarray):
                found[space] = torch.from_numpy(index).to(arrays.device)  # type: ignore[assignment]
    return layout


class _DeviceArranger(Arranger):
    """Lays tokens out without looking at masks or offsets: counts of tokens are upper bounds."""

    def _set_groups(self, sizes: Any) -> None:
        # A rectangle: the kernel is told that there are equally many responses in each group.
        self._size(pair_space("response"), int((sizes**2).sum()))

    def _arrange_padded(self, space: str, name: str, given: Any, order: Any) -> None:
        self._check_mask(name, given)
        mask = given != 0
        # Stable: tokens that count come first, in order.
        self.layout.take[space] = torch.argsort(mask.reshape(-1), descending=True, stable=True)  # type: ignore[assignment]
        self.layout.offsets[space] = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0))  # type: ignore[assignment]
        self._size(space, mask.numel(), tuple(mask.shape))
        self._check_shapes(space)

    def _arrange_packed(self, space: str, name: str, given: Any, order: Any) -> None:
        self._check_starts(name, given, not given.is_floating_point() and given.dtype != torch.bool)
        self.layout.offsets[space] = given.to(torch.int64).contiguous()
        self._size(space, self._packed_length(space, given))
        self._check_shapes(space)

    def _packed_length(self, space: str, starts: torch.Tensor) -> int:
        for name, where in self.columns.items():
            if where == space and self.arguments[name].ndim == 1:
                return int(self.arguments[name].shape[0])
        return int(starts[-1])


def compiled(
    traced: Traced, architecture: int, one_block: bool, wrt: Sequence[str] | None = None, cached: bool = False
) -> list[tuple[str, bytes, str]]:
    """Compile, for sm_`architecture`, the kernels of a score with gradients; columns and results are f32.

    Needs NVRTC, but no GPU.

    Args:
        traced: the objective.
        architecture: compute capability, 90 for 9.0.
        one_block: the kernels of a small batch, else those of a large one.
        wrt: the columns whose gradients are wanted, by default all.
        cached: take code from the cache, or leave it there; logs are empty then.

    Returns:
        (entry point, machine code, compiler's log) of each kernel.

    Raises:
        RuntimeError: there is no NVRTC, or something does not compile.
    """
    prepare()
    program = traced.score_step("mean", tuple(traced.columns if wrt is None else wrt)).program
    columns, outputs = ([("f32", False)] * len(named) for named in (program.columns, program.output_spaces))
    return program.cuda_compile(columns, outputs, one_block, architecture, cached)
