"""`python -m prefuse doctor --slots`: what the main loops of the kernels take, counted in their machine code.

A multiprocessor issues four instructions of warps per clock, whatever memory could give: how many a kernel needs for 16
bytes per thread bounds its bandwidth. Counts are of code, not of a run: they need NVRTC and nvdisasm, no GPU.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import NamedTuple

import prefuse._prefuse as _prefuse
from prefuse._backends.nvrtc import prepare, resources
from prefuse.doctor.machine_code import Loop, disassembled, disassembler, loops
from prefuse.doctor.programs import STATISTICS, Program, column_programs, distance_programs, rows_programs

ARCHITECTURES = (80, 90, 100, 120)
"""Compute capabilities whose code is counted: A100, H100, B200, RTX 50."""

WIDTH = 128_256
_THREADS = 256


class Counted(NamedTuple):
    """The main loop of one kernel for one architecture.

    Attributes:
        name: kernel, dtype and statistics; `moments` and `kl` stand for longer lists.
        architecture: compute capability, 90 for 9.0.
        slots: instructions that a warp issues for each 16 bytes per thread of each array that is read.
        special: of these, instructions of the special function unit (exponentials), of which a scheduler issues one in
            eight clocks.
        in_flight: 16-byte loads of global memory that a thread issues before it uses the first.
        stores: 16-byte stores of global memory in the same turn.
        registers: of a thread.
        spilled: bytes of a thread.
        blocks: of 256 threads that the registers of a multiprocessor hold.
    """

    name: str
    architecture: int
    slots: float
    special: float
    in_flight: int
    stores: int
    registers: int
    spilled: int
    blocks: int

    def __str__(self) -> str:
        return (
            f"{self.name:<36} sm_{self.architecture:<4} slots {self.slots:>5.1f}  MUFU {self.special:>4.1f}  "
            f"in flight {self.in_flight} x 16 B  stores {self.stores} x 16 B  "
            f"registers {self.registers:>3}  spilled {self.spilled}  blocks {self.blocks}"
        )


def count_all() -> int:
    """Prints a line per kernel and architecture; returns the exit status, 1 where something needed is missing."""
    prepare()
    try:
        version = _prefuse.cuda_nvrtc()[1]
    except RuntimeError as error:
        print(f"\nnothing counted: {error}")
        return 1
    nvdisasm = disassembler()
    if not nvdisasm:
        print("\nnothing counted: nvdisasm was not found: pip install nvidia-cuda-nvdisasm")
        return 1
    print(f"\ncounted in code of NVRTC {version}; slots: instructions per 16 bytes of each thread and array read")
    for architecture in ARCHITECTURES:
        for counted in count(architecture, nvdisasm):
            print(counted, flush=True)
    return 0


def count(architecture: int, nvdisasm: str, wanted: Container[str] | None = None) -> Iterator[Counted]:
    """Counts the kernels of the table for one architecture: all, or those whose names are `wanted`."""
    for name, program, arrays in _programs(architecture):
        if wanted is not None and name not in wanted:
            continue
        cubin, log = _prefuse.cuda_compile(program[0], program[1], architecture, False)
        used = resources(log)
        slots, special, turn = main_loops(loops(disassembled(cubin, nvdisasm)), arrays)
        yield Counted(
            name,
            architecture,
            slots,
            special,
            turn.in_flight,
            turn.stores,
            used.registers,
            used.spilled,
            _resident(used.registers),
        )


def main_loops(found: list[Loop], arrays: int) -> tuple[float, float, Loop]:
    """Slots, and those of the special function unit, per 16 bytes of each of `arrays`; the loop that reads them.

    A kernel that keeps what it has read in shared memory has a second loop, whose slots are added.
    """
    reading = [loop for loop in found if loop.loads]
    if not reading:
        raise RuntimeError("no loop that loads 16 bytes at a time")
    most = max(loop.in_flight for loop in reading)  # what is left at the ends of a row comes with fewer
    first = min((loop for loop in reading if 2 * loop.in_flight >= most), key=lambda loop: loop.slots / loop.loads)
    slots, special = (number * arrays / first.loads for number in (first.slots, first.special))
    second = [(loop.slots / loop.stores, loop.special / loop.stores) for loop in found if not loop.loads]
    more, more_special = min(second, default=(0.0, 0.0))
    return slots + more, special + more_special, first


def _resident(registers: int) -> int:
    """Blocks that the 64 Ki registers of a multiprocessor hold; a warp takes them by 256."""
    per_warp = -(-registers * 32 // 256) * 256
    return 65_536 // (per_warp * (_THREADS // 32))


_ROWS = (
    ("bf16", "logp,lse", ("logp", "lse")),
    ("f16", "logp,lse", ("logp", "lse")),
    ("f32", "logp,lse", ("logp", "lse")),
    ("bf16", "logp,lse,entropy", ("logp", "lse", "entropy")),
    ("bf16", "moments", STATISTICS["moments"]),
    ("bf16", "kl", STATISTICS["reference"]),
    ("f32", "kl", STATISTICS["reference"]),
)
"""dtype, the name of the statistics in the table, the statistics."""


def _programs(architecture: int) -> Iterator[tuple[str, Program, int]]:
    """Name, program, and arrays read, of each kernel of the table."""
    for dtype, name, statistics in _ROWS:
        found = rows_programs(architecture, dtype, WIDTH, statistics, softcap=0.0)
        for kernel, defines in dict(found).items():
            if kernel != "rows_combine":
                yield f"{kernel} {dtype} {name}", (kernel, defines), 2 if name == "kl" else 1
    (find,) = (program for program in column_programs("bf16") if program[0] == "columns_find")
    yield "columns_find bf16", find, 1
    for kernel, defines in distance_programs("bf16", "bf16"):
        if kernel != "distance_combine":
            yield f"{kernel} bf16", (kernel, defines), 2
