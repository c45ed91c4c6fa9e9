"""Generated kernels on the CPU: what the CPU evaluator ran is run again in the emulator, both ways, and compared.

Programs are recorded first, then compiled together: the compiler takes longer to start than to compile one.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack, to_dlpack

from prefuse._prefuse import Program
from prefuse.scoring import execution
from prefuse.scoring.call import Call
from prefuse.scoring.traced import Step
from tests.emulator import emulator

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2.5e-7}

Compiled = ctypes.CDLL


def reach(tensor: torch.Tensor) -> tuple[int, int]:
    """The addresses between which a tensor's elements lie."""
    begin, size = tensor.data_ptr(), tensor.element_size()
    return begin, begin + size * _span(tensor)


def _span(tensor: torch.Tensor) -> int:
    """The number of elements from the first in memory to the last."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((count - 1) * stride for count, stride in steps) if tensor.numel() else 0


class Memory:
    """A copy of what lies between the first and the last element of a tensor, and the same tensor of it."""

    def __init__(self, tensor: torch.Tensor, blank: bool = False) -> None:
        span = _span(tensor)
        # More than is needed, for a place that is never nowhere.
        store = torch.empty(span + 8, dtype=tensor.dtype)
        store.view(torch.uint8).fill_(255 if blank else 0)
        if not blank:
            store[:span] = tensor.as_strided((span,), (1,))
        self.tensor = store.as_strided(tensor.shape, tensor.stride())

    def values(self) -> np.ndarray[Any, Any]:
        """The elements in float64."""
        return self.tensor.double().numpy()


@dataclass
class Recorded:
    """One run of a program on the CPU."""

    program: Program
    columns: list[Memory]
    parameters: list[float]
    offsets: list[Memory | int]
    outputs: list[Memory]
    counts: Mapping[str, int]


class _Recording:
    """A program that notes its runs."""

    def __init__(self, program: Program, log: list[Recorded]) -> None:
        self.program, self.log = program, log

    def run(
        self,
        columns: Sequence[Any],
        parameters: list[float],
        offsets: Sequence[Any],
        outputs: Sequence[Any],
        threads: int,
    ) -> None:
        """Runs on the CPU and keeps what went in and came out."""
        read, written = ([array.detach() for array in arrays] for arrays in (columns, outputs))
        cuts = [cut if isinstance(cut, int) else from_dlpack(cut) for cut in offsets]  # NumPy's
        self.log.append(record(self.program, read, list(parameters), cuts, written, threads))


def record(
    program: Program,
    columns: Sequence[torch.Tensor],
    parameters: list[float],
    cuts: Sequence[torch.Tensor | int],
    outputs: Sequence[torch.Tensor],
    threads: int = 1,
) -> Recorded:
    """Runs a program on the CPU."""
    read = [Memory(column) for column in columns]
    offsets = [cut if isinstance(cut, int) else Memory(cut) for cut in cuts]
    given = [cut if isinstance(cut, int) else to_dlpack(cut) for cut in cuts]
    program.run(list(map(to_dlpack, columns)), parameters, given, list(map(to_dlpack, outputs)), threads)
    made = [Memory(output) for output in one_by_one(program, outputs, cuts)]
    return Recorded(program, read, parameters, offsets, made, counts_of(program, cuts))


def one_by_one(
    program: Program, arrays: Sequence[torch.Tensor], cuts: Sequence[torch.Tensor | int]
) -> list[torch.Tensor]:
    """The outputs of a run whose arrays may hold several each, one behind the other."""
    sizes = {"batch": 1} | {
        space: cut if isinstance(cut, int) else int(cut[-1]) for space, cut in zip(program.spaces, cuts, strict=True)
    }
    outputs: list[torch.Tensor] = []
    rest, start = [array.reshape(-1) for array in arrays if array.numel()], 0
    for space in program.output_spaces:
        array = rest[0] if rest else arrays[0].reshape(-1)
        size = sizes.get(space, len(array))
        outputs.append(array[start] if space == "batch" else array[start : start + size])
        start += size
        if rest and start == len(array):
            rest, start = rest[1:], 0
    return outputs


@contextlib.contextmanager
def recording() -> Iterator[list[Recorded]]:
    """Notes every run of an objective's programs, all of which go the general way."""
    log: list[Recorded] = []
    run = Call._run

    def recorded(self: Call, step: Step, *arguments: Any) -> None:
        watched = copy.copy(step)
        watched.program = _Recording(step.program, log)  # type: ignore[assignment]
        run(self, watched, *arguments)

    general = mock.patch.object(execution, "_run_plain", lambda *arguments: None)
    with mock.patch.object(Call, "_run", recorded), general:
        yield log


def counts_of(program: Program, cuts: Sequence[torch.Tensor | int]) -> dict[str, int]:
    """The number of elements of each space that is cut by offsets, and of its pairs."""
    counts = {}
    for space, cut in zip(program.spaces, cuts, strict=True):
        if not isinstance(cut, int):
            counts[space] = int(cut[-1])
            counts[f"{space}*{space}"] = int((cut.diff() ** 2).sum())
    return counts


def _offsets(run: Recorded) -> list[Any]:
    return [cut if isinstance(cut, int) else to_dlpack(cut.tensor) for cut in run.offsets]


def plan(
    run: Recorded, outputs: Sequence[Memory], workspace: torch.Tensor | None, one_block: bool | None
) -> list[emulator.Launch]:
    """The launches of a run; without a workspace, to be looked at alone."""
    columns, results = ([to_dlpack(memory.tensor) for memory in memories] for memories in (run.columns, outputs))
    given = None if workspace is None else to_dlpack(workspace)
    return run.program.cuda_plan(columns, run.parameters, _offsets(run), run.counts, results, given, one_block)


def workspace_of(run: Recorded) -> int:
    """Bytes of workspace of a run."""
    return run.program.cuda_workspace(_offsets(run), run.counts)


class Library:
    """The kernels of many runs, compiled together as C++."""

    def __init__(self, runs: Sequence[Recorded]) -> None:
        self.numbers: dict[str, int] = {}  # by the text that is generated for an entry point
        body, table = '#include "objective.cuh"\n', []
        for run in runs:
            launches = [*plan(run, run.outputs, None, True), *plan(run, run.outputs, None, False)]
            texts = [launch["sources"][-1][1] for launch in launches]
            if texts[0] in self.numbers:
                continue
            name = f"program_{len(self.numbers)}"
            # One block does all stages: the parts' entry points need nothing but its functions.
            entries = texts[0] + "".join(text[text.index('extern "C"') :] for text in texts[1:])
            body += f"namespace {name} {{\n{entries}\n}}\n".replace('extern "C" ', "")
            for launch, text in zip(launches, texts, strict=True):
                self.numbers[text] = len(table)
                table.append(f"[] {{ invoke({name}::{launch['kernel']}); }}")
        self.compiled = build(body, table)

    def run(self, run: Recorded, one_block: bool, order: int = emulator.ASCENDING) -> list[np.ndarray[Any, Any]]:
        """The outputs that the emulated kernels give."""
        outputs = [Memory(memory.tensor, blank=True) for memory in run.outputs]
        # NaN, so that what is read before it is written shows.
        workspace = torch.full((workspace_of(run) // 8 + 1,), torch.nan, dtype=torch.float64)
        launches = plan(run, outputs, workspace, one_block)
        inputs = [*run.columns, *(cut for cut in run.offsets if isinstance(cut, Memory))]
        ranges = [(*reach(memory.tensor), False) for memory in inputs]
        ranges += [(*reach(memory.tensor), True) for memory in outputs]
        ranges += [(workspace.data_ptr(), workspace.data_ptr() + workspace_of(run), True)]
        for launch in launches:
            emulate(self.compiled, self.numbers[launch["sources"][-1][1]], launch, ranges, order)
        return [memory.values() for memory in outputs]

    def check(self, run: Recorded, order: int = emulator.ASCENDING) -> None:
        """Compares the emulated kernels, run both ways, with the CPU evaluator."""
        alone, chained = self.run(run, True, order), self.run(run, False, order)
        for index, memory in enumerate(run.outputs):
            expected, label = memory.values(), f"output {index}\n{run.program!r}"
            np.testing.assert_array_equal(alone[index], chained[index], f"one block and chain differ: {label}")
            finite = np.abs(expected[np.isfinite(expected)])
            rtol = TOLERANCE[memory.tensor.dtype]
            np.testing.assert_allclose(alone[index], expected, rtol, rtol * finite.max(initial=1e-300), True, label)


def emulate(
    compiled: Compiled,
    number: int,
    launch: emulator.Launch,
    ranges: Sequence[tuple[int, int, bool]],
    order: int = emulator.ASCENDING,
) -> None:
    """Runs one launch: entry `number` of what was compiled. Bytes outside `ranges` must not be touched."""
    buffers = (emulator._Buffer * len(ranges))(*(emulator._Buffer(*entry) for entry in ranges))
    compiled.watch(buffers, len(ranges), True)
    argument = ctypes.create_string_buffer(launch["argument"])
    compiled.emulate(number, argument, launch["grid"], launch["block"], order)
    report = compiled.reported()
    if report:
        raise emulator.EmulationError(f"{launch['kernel']}:\n{report.decode()}\n{launch['sources'][-1][1]}")


def build(body: str, table: Sequence[str]) -> Compiled:
    """Compiles kernels as C++; `table` has an expression for each of them."""
    text = f"""{body}
static const void* argument_bytes;
template <typename T> static void invoke(void (*kernel)(T)) {{ kernel(*static_cast<const T*>(argument_bytes)); }}
static void (*const entries[])() = {{ {", ".join(table)} }};
extern "C" void emulate(int which, const void* argument, unsigned grid, unsigned threads, int order) {{
    argument_bytes = argument;
    emulator::run_grid(entries[which], grid, threads, 0, grid, order);
}}
"""
    return emulator.build("generated source", text, hashlib.sha256(text.encode()).hexdigest()[:24])
