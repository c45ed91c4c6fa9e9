"""Generated kernels on the CPU: what the CPU evaluator ran is run again in the emulator, both ways, and compared.

Programs are recorded first, then compiled together: the compiler takes longer to start than to compile one.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import hashlib
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np

from prefuse._prefuse import Program
from prefuse.scoring import execution
from prefuse.scoring.call import Call
from prefuse.scoring.traced import Step
from tests.emulator import emulator

SIZES = {"bool": 1, "f16": 2, "bf16": 2, "f32": 4, "f64": 8, "i64": 8}
TOLERANCE = {"f64": 1e-12, "f32": 2.5e-7}

View = tuple[int, str, Sequence[int], Sequence[int]]


Compiled = ctypes.CDLL


def reach(view: View) -> tuple[int, int]:
    """The addresses between which a view's elements lie."""
    address, dtype, shape, strides = view
    if shape and not shape[0]:
        return address, address
    span = (shape[0] - 1) * strides[0] * SIZES[dtype] if shape else 0
    return address + min(0, span), address + max(0, span) + SIZES[dtype]


class Memory:
    """A copy of the bytes between the first and the last element of a view, and the same view of it."""

    def __init__(self, view: View, blank: bool = False) -> None:
        address, dtype, shape, strides = view
        begin, end = reach(view)
        raw = b"\xff" * (end - begin) if blank else ctypes.string_at(begin, end - begin)
        # Eight bytes more, for a place that is never nowhere.
        self.bytes = np.frombuffer(bytearray(raw + bytes(8)), np.uint8)
        self.begin = self.bytes.ctypes.data
        self.end = self.begin + end - begin
        self.view: View = (self.begin + address - begin, dtype, tuple(shape), tuple(strides))

    def values(self) -> np.ndarray[Any, Any]:
        """The elements of a view of f32 or f64."""
        address, dtype, shape, strides = self.view
        base = self.bytes[address - self.begin :] if shape and strides[0] >= 0 else self.bytes
        kind = np.dtype(np.float32 if dtype == "f32" else np.float64)
        steps = tuple(stride * kind.itemsize for stride in strides)
        return np.ndarray(tuple(shape), kind, base, 0, steps).astype(np.float64)


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
        columns: Sequence[View],
        parameters: Sequence[float],
        offsets: Sequence[Any],
        outputs: Sequence[View],
        threads: int,
    ) -> None:
        """Runs on the CPU and keeps what went in and came out."""
        kept = [Memory(view) for view in columns]
        cuts = [cut if isinstance(cut, int) else Memory(cut) for cut in offsets]
        self.program.run(columns, parameters, offsets, outputs, threads)
        made = [Memory(view) for view in one_by_one(self.program, outputs, cuts)]
        self.log.append(Recorded(self.program, kept, list(parameters), cuts, made, counts_of(self.program, cuts)))


def one_by_one(program: Program, arrays: Sequence[View], cuts: Sequence[Memory | int]) -> list[View]:
    """The outputs of a run whose arrays may hold several each, one behind the other."""
    sizes = {"batch": 1} | {
        space: cut if isinstance(cut, int) else int(np.frombuffer(cut.bytes[: cut.end - cut.begin], np.int64)[-1])
        for space, cut in zip(program.spaces, cuts, strict=True)
    }
    outputs: list[View] = []
    rest, start = [array for array in arrays if 0 not in array[2]], 0
    for space in program.output_spaces:
        address, dtype, shape, _ = rest[0]
        room = shape[0] if shape else 1
        size = sizes.get(space, room)
        outputs.append((address + start * SIZES[dtype], dtype, *(((size,), (1,)) if space != "batch" else ((), ()))))
        start += size
        if start == room:
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

    with mock.patch.object(Call, "_run", recorded), mock.patch.object(execution, "bind_plain", lambda *arguments: None):
        yield log


def counts_of(program: Program, cuts: Sequence[Memory | int]) -> dict[str, int]:
    """The number of elements of each space that is cut by offsets, and of its pairs."""
    counts = {}
    for space, cut in zip(program.spaces, cuts, strict=True):
        if isinstance(cut, Memory):
            offsets = np.frombuffer(cut.bytes[: cut.end - cut.begin], np.int64)
            counts[space] = int(offsets[-1])
            counts[f"{space}*{space}"] = int((np.diff(offsets) ** 2).sum())
    return counts


def plan(run: Recorded, outputs: Sequence[View], workspace: int, one_block: bool) -> list[emulator.Launch]:
    """The launches of a run."""
    offsets = [cut if isinstance(cut, int) else cut.view for cut in run.offsets]
    columns = [memory.view for memory in run.columns]
    return run.program.cuda_plan(columns, run.parameters, offsets, run.counts, outputs, workspace, one_block)


def workspace_of(run: Recorded) -> int:
    """Bytes of workspace of a run."""
    offsets = [cut if isinstance(cut, int) else cut.view for cut in run.offsets]
    return run.program.cuda_workspace(offsets, run.counts)


class Library:
    """The kernels of many runs, compiled together as C++."""

    def __init__(self, runs: Sequence[Recorded]) -> None:
        self.numbers: dict[str, int] = {}  # by the text that is generated for an entry point
        body, table = '#include "objective.cuh"\n', []
        for run in runs:
            outputs = [memory.view for memory in run.outputs]
            launches = [*plan(run, outputs, 8, True), *plan(run, outputs, 8, False)]
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
        outputs = [Memory(memory.view, blank=True) for memory in run.outputs]
        # NaN, so that what is read before it is written shows.
        workspace = np.full(workspace_of(run) // 8 + 1, np.nan)
        launches = plan(run, [memory.view for memory in outputs], workspace.ctypes.data, one_block)
        inputs = [*run.columns, *(cut for cut in run.offsets if isinstance(cut, Memory))]
        ranges = [(memory.begin, memory.end, False) for memory in inputs]
        ranges += [(memory.begin, memory.end, True) for memory in outputs]
        ranges += [(workspace.ctypes.data, workspace.ctypes.data + workspace_of(run), True)]
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
            rtol = TOLERANCE[memory.view[1]]
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
    text = f"""#include "{emulator.HERE}/shim.h"
{body}
static const void* argument_bytes;
template <typename T> static void invoke(void (*kernel)(T)) {{ kernel(*static_cast<const T*>(argument_bytes)); }}
static void (*const entries[])() = {{ {", ".join(table)} }};
extern "C" void emulate(int which, const void* argument, unsigned grid, unsigned threads, int order) {{
    argument_bytes = argument;
    emulator::run_grid(entries[which], grid, threads, 0, grid, order);
}}
"""
    library = emulator._folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.so"
    source = library.with_suffix(".cpp")
    source.write_text(text)
    flags = [flag for flag in emulator.FLAGS if flag != "-O1"]
    command = [str(emulator.COMPILER), *flags, "-O0", "-shared", str(source), emulator._runtime(), "-o", str(library)]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode:
        raise RuntimeError(f"generated source does not compile as C++:\n{built.stderr[:4000]}")
    compiled = ctypes.CDLL(str(library))
    compiled.reported.restype = ctypes.c_char_p
    return compiled
