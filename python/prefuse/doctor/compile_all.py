"""`python -m prefuse doctor --compile`: every kernel for every supported architecture, and what each one takes.

One line per kernel of `kernels/`, then one per registered objective, whose kernels are generated: the largest numbers
of all architectures. Where registers are spilled, or on demand, a line per kernel and architecture follows.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import prefuse._prefuse as _prefuse
import prefuse.objectives as objectives
from prefuse._backends.nvrtc import ARCHITECTURES, Resources, prepare, resources
from prefuse.doctor.programs import Program, programs
from prefuse.scoring.device import compiled

HEAD = "registers spilled shared"

Logs = list[tuple[str, str]]
"""(entry point, compiler's log) of each kernel of an item."""


class Item(NamedTuple):
    """What gets a line: a name, how its kernels are compiled for one architecture, and which architectures run them."""

    name: str
    compile: Callable[[int], Logs]
    architectures: Sequence[int]


class Used(NamedTuple):
    """What one kernel takes on one architecture."""

    architecture: int
    entry: str
    resources: Resources


class Tally:
    """What has been compiled so far."""

    def __init__(self) -> None:
        self.kernels = self.spilling = self.failures = 0


def compile_all(detail: bool) -> int:
    """Compiles and prints; with `detail` a line per kernel and architecture. Returns 1 if something fails, else 0."""
    prepare()
    try:
        _prefuse.cuda_nvrtc()
    except RuntimeError as error:
        print(f"\nnothing compiled: {error}")
        return 1
    tally, seconds = Tally(), []
    architectures = ", ".join(f"sm_{architecture}" for architecture in ARCHITECTURES)
    print(f"\ncompiled for {architectures}; the largest numbers of all")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for title, items in (("kernel", _fixed()), ("objective", map(_generated, objectives.names()))):
            print(f"\n{HEAD}  {title}")
            begin, before = time.perf_counter(), tally.kernels
            for item in items:
                _show(item, _everywhere(pool, item), tally, detail)
            seconds.append(time.perf_counter() - begin)
            print(f"compiled in {seconds[-1]:.0f} s: {tally.kernels - before} kernels")
    print(
        f"\n{tally.kernels} kernels compiled in {sum(seconds):.0f} s on {os.cpu_count()} cores, "
        f"{tally.spilling} spill registers, {tally.failures} failed"
    )
    return int(tally.failures > 0)


def _fixed() -> list[Item]:
    """The kernels of `kernels/`; not every architecture runs all of them."""
    items: dict[str, Item] = {}
    for architecture in ARCHITECTURES:
        for program in programs(architecture):
            kernel, defines = program
            name = " ".join([kernel, *(f"{key}={value}" for key, value in defines)])
            known = items[name].architectures if name in items else ()
            items[name] = Item(name, functools.partial(_log, program), (*known, architecture))
    return list(items.values())


def _log(program: Program, architecture: int) -> Logs:
    kernel, defines = program
    return [(kernel, _prefuse.cuda_compile(kernel, defines, architecture, False)[1])]


def _generated(name: str) -> Item:
    """The kernels of an objective's score with all its gradients: that of a small batch and those of a large one."""
    traced = objectives.get(name)._traced(None)

    def compile_for(architecture: int) -> Logs:
        kernels = [kernel for one_block in (True, False) for kernel in compiled(traced, architecture, one_block)]
        return [(entry, log) for entry, _, log in kernels]

    return Item(name, compile_for, ARCHITECTURES)


def _everywhere(pool: ThreadPoolExecutor, item: Item) -> Iterator[tuple[int, Future[Logs]]]:
    waiting = [pool.submit(item.compile, architecture) for architecture in item.architectures]
    return zip(item.architectures, waiting, strict=True)


def _show(item: Item, results: Iterator[tuple[int, Future[Logs]]], tally: Tally, detail: bool) -> None:
    used: list[Used] = []
    failed: list[str] = []
    for architecture, result in results:
        try:
            used += [Used(architecture, entry, resources(log)) for entry, log in result.result()]
        except RuntimeError as error:
            failed.append(f"sm_{architecture}: {error}")
    tally.kernels += len(used)
    tally.spilling += sum(kernel.resources.spilled > 0 for kernel in used)
    tally.failures += len(failed)
    columns = zip(*(kernel.resources for kernel in used), strict=True)
    numbers = _numbers(Resources(*map(max, columns))) if used else "failed"
    print(f"{numbers:>{len(HEAD)}}  {item.name}", flush=True)
    for kernel in used:
        if detail or kernel.resources.spilled:
            print(f"{_numbers(kernel.resources)}    sm_{kernel.architecture} {kernel.entry}")
    for sentence in failed:
        print(sentence)


def _numbers(used: Resources) -> str:
    return f"{used.registers:>9} {used.spilled:>7} {used.shared:>6}"
