"""Runs launches on the CPU: `kernels/` compiled as C++ with `shim.h`, the launches those of the runtime."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "kernels"
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
FLAGS = [
    "-std=c++17",
    "-fPIC",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-U_FORTIFY_SOURCE",
    "-w",
    f"-I{KERNELS}",
]

OPTIMISATION = "-O0"
"""Of kernels, which take longer to compile than to run; that of the shim, or its precompiled form is not taken."""

SHARED = "PREFUSE_TESTS_COMPILED"
"""The variable with the folder that the processes of a run of the tests share for what they compile."""

ASCENDING, DESCENDING, SHUFFLED = 0, 1, 2
"""Orders in which threads (and blocks) take their turns."""

Launch = dict[str, Any]


class EmulationError(AssertionError):
    """The emulator saw an access, a barrier or a race that a kernel must not have."""


class _Buffer(ctypes.Structure):
    _fields_ = (("begin", ctypes.c_size_t), ("end", ctypes.c_size_t), ("writable", ctypes.c_int))


def buffer(tensor: torch.Tensor, writable: bool) -> tuple[int, int, bool]:
    """The bytes between the first and the last element of `tensor`, whatever its strides."""
    reach = [(size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    low, high = sum(r for r in reach if r < 0), sum(r for r in reach if r > 0)
    size, address = tensor.element_size(), tensor.data_ptr()
    return address + low * size, address + (high + 1) * size, writable


@functools.cache
def _folder() -> Path:
    return Path(os.environ.get(SHARED) or tempfile.mkdtemp(prefix="prefuse-emulator-"))


def _once(name: str, make: Callable[[Path], None]) -> Path:
    """A file that the first process that needs it makes; the others wait and take it."""
    made = _folder() / name
    with FileLock(f"{made}.lock"):
        if not made.exists():
            unfinished = made.with_name(f"unfinished-{name}")
            make(unfinished)
            unfinished.replace(made)
    return made


def _build(what: str, *arguments: str) -> None:
    built = subprocess.run([str(COMPILER), *FLAGS, *arguments], capture_output=True, text=True)
    if built.returncode:
        raise RuntimeError(f"{what} does not compile as C++:\n{built.stderr[:4000]}")


@functools.cache
def _runtime() -> str:
    """What all kernels run on, which takes turns and looks at every access: optimised."""
    source = str(HERE / "runtime.cpp")
    return str(_once("runtime.o", lambda made: _build("the emulator", "-O1", "-c", source, "-o", str(made))))


@functools.cache
def _shim() -> Path:
    """A copy of `shim.h` with its precompiled form beside it: reading it takes longer than compiling many a kernel."""
    copy = _once("shim.h", lambda made: shutil.copy(HERE / "shim.h", made))
    header = ("-x", "c++-header", str(copy))
    _once("shim.h.gch", lambda made: _build("the shim", OPTIMISATION, *header, "-o", str(made)))
    return copy


def build(what: str, text: str, name: str, *definitions: str) -> ctypes.CDLL:
    """Compiles kernels as C++ into a library called `name`; `what` are they where they do not compile."""

    def make(library: Path) -> None:
        source = library.with_suffix(".cpp")
        source.write_text(text)
        inputs = ("-include", str(_shim()), *definitions, str(source), _runtime())
        _build(what, OPTIMISATION, "-shared", *inputs, "-o", str(library))

    compiled = ctypes.CDLL(str(_once(f"{name}.so", make)))
    compiled.reported.restype = ctypes.c_char_p
    return compiled


@functools.cache
def _compiled(source: tuple[str, str], defines: tuple[tuple[str, str], ...], kernel: str) -> ctypes.CDLL:
    file, text = source
    name = hashlib.sha256(repr((source, defines, kernel)).encode()).hexdigest()[:24]
    written = f'#line 1 "{file}"\n{text}\n#include "{HERE}/entry.h"\n'
    return build(kernel, written, name, *(f"-D{key}={value}" for key, value in (*defines, ("KERNEL", kernel))))


def run(
    launches: Iterable[Launch],
    buffers: Sequence[tuple[int, int, bool]],
    order: int = ASCENDING,
    blocks: tuple[int, int] | None = None,
    watch_writes: bool = True,
) -> None:
    """Runs `launches` one after the other, raising `EmulationError` at the first report.

    `buffers` are the byte ranges that may be touched, `blocks` the part of the grid to run (all of it by default).
    """
    ranges = (_Buffer * len(buffers))(*(_Buffer(*entry) for entry in buffers))
    for launch in launches:
        program = _compiled(launch["sources"][-1], tuple(launch["defines"]), launch["kernel"])
        first, end = blocks or (0, launch["grid"])
        program.watch(ranges, len(buffers), watch_writes)
        argument = ctypes.create_string_buffer(launch["argument"])
        shape = (launch["grid"], launch["block"], launch["cluster"], launch["shared"])
        program.emulate(argument, *shape, first, end, order)
        report = program.reported()
        if report:
            raise EmulationError(f"{launch['kernel']} {dict(launch['defines'])}:\n{report.decode()}")
