"""`python -m prefuse doctor --warm sm_90`: fills the cache of compiled kernels for an architecture, without a GPU.

For machines whose GPUs have no time, or no compiler: the cache's folder is carried there. A kernel is compiled for what
it is called with; here are the calls that are likely, and anything else is compiled at its first use as ever.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import prefuse._prefuse as _prefuse
import prefuse.objectives as objectives
from prefuse._backends.nvrtc import ARCHITECTURES, prepare
from prefuse.doctor.programs import STATISTICS, Program, programs, rows_programs
from prefuse.scoring.device import compiled

DTYPES = ("bf16", "f16", "f32")
WIDTHS = (4096, 32_000, 50_257, 128_256, 151_936, 262_144)
"""Widths that differ in how their rows are shared out."""

_SETS = (STATISTICS["logp"], ("logp", "lse", "entropy"), STATISTICS["moments"], STATISTICS["reference"])


def architecture_of(name: str) -> int:
    """90 of "sm_90"; a ValueError where it is not one that the kernels are checked for."""
    found = re.fullmatch(r"sm_(\d+)", name)
    if not found or int(found[1]) not in ARCHITECTURES:
        known = ", ".join(f"sm_{architecture}" for architecture in ARCHITECTURES)
        raise ValueError(f"--warm: expected one of {known}, got {name!r}")
    return int(found[1])


def warm(architecture: int) -> int:
    """Compiles into the cache and prints what it did; returns the exit status, 1 where nothing can be kept."""
    prepare()
    try:
        version, folder = _prefuse.cuda_nvrtc()[1], _prefuse.cuda_cache_directory()
    except RuntimeError as error:
        print(f"\nnothing compiled: {error}")
        return 1
    begin, count, failures = time.perf_counter(), 0, []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting = [(name, pool.submit(work)) for name, work in _work(architecture)]
        for name, done in waiting:
            try:
                count += done.result()
            except RuntimeError as error:
                failures.append(f"{name}: {error}")
    files = [entry for entry in os.scandir(folder) if entry.name.endswith(".cubin")]
    size = sum(entry.stat().st_size for entry in files)
    print(
        f"\n{count} kernels for sm_{architecture} by NVRTC {version} in {time.perf_counter() - begin:.0f} s, "
        f"{len(failures)} failed\n{folder}: {len(files)} kernels, {size / 1e6:.1f} MB"
    )
    print("to use them elsewhere, copy the folder, private to who runs (mode 0700), or name it by PREFUSE_CACHE_DIR;")
    print(f"they are found by NVRTC {version} and this version of prefuse alone")
    for failure in failures:
        print(failure)
    return int(bool(failures))


def _work(architecture: int) -> Iterator[tuple[str, Callable[[], int]]]:
    """What to do, by name; each returns how many kernels it has compiled or found."""
    for kernel, defines in _fixed(architecture):
        yield kernel, _kernel(kernel, defines, architecture)
    for name in objectives.names():
        yield name, _objective(name, architecture)


def _fixed(architecture: int) -> list[Program]:
    found = programs(architecture, DTYPES)
    for dtype in DTYPES:
        for width in WIDTHS:
            for names in _SETS:
                found += rows_programs(architecture, dtype, width, names, softcap=0.0)
            found += rows_programs(architecture, dtype, width, STATISTICS["logp"], softcap=30.0)
    return [program for i, program in enumerate(found) if program not in found[:i]]


def _kernel(kernel: str, defines: list[tuple[str, str]], architecture: int) -> Callable[[], int]:
    return lambda: len([_prefuse.cuda_compile(kernel, defines, architecture, True)])


def _objective(name: str, architecture: int) -> Callable[[], int]:
    def work() -> int:
        traced = objectives.get(name)._traced(None)
        policy = tuple(column for column in traced.columns if _is_the_policy_s(column))
        wanted = dict.fromkeys(((), policy, tuple(traced.columns)))
        return sum(
            len(compiled(traced, architecture, one_block, wrt, True)) for wrt in wanted for one_block in (True, False)
        )

    return work


def _is_the_policy_s(column: str) -> bool:
    """Log-probabilities that are trained; those of other models and of earlier steps say so in their names."""
    return column.endswith("logps") and not re.search(r"(^|_)(ref|old|previous|other|proposal|dpo)_", column)
