"""Every kernel compiles for every architecture, stays in registers, moves 16 bytes at a time. Needs NVRTC, no GPU."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

from prefuse import _prefuse
from prefuse._backends.nvrtc import ARCHITECTURES, resources
from prefuse.doctor import slots
from prefuse.doctor.machine_code import disassembled, disassembler
from prefuse.doctor.programs import Program, programs
from tests.cuda.machine_code import (
    LOAD,
    LOAD_SHARED,
    STORE,
    STORE_SHARED,
    instructions_per_product,
    memory_instructions,
)
from tests.emulator.emulator import KERNELS

REGISTERS = 64 * 1024 // 256
"""Per thread, when one block of 256 is resident on a multiprocessor; half of it for two, a third for three."""


ENTROPY_AND_MEAN, MEAN_AND_TOP1 = 0x14, 0x30
"""Bits of these statistics."""


def _resident_blocks(kernel: str, constants: dict[str, str], architecture: int) -> int:
    """How many blocks the design asks for: three of the plain kernels, fewer of those with more to remember."""
    stats = int(constants["STATS"], 16)
    crowded = kernel == "rows_backward" and stats & ENTROPY_AND_MEAN == ENTROPY_AND_MEAN
    if kernel == "rows_both" and stats & MEAN_AND_TOP1 == MEAN_AND_TOP1:
        crowded = constants["ROW_THREADS"] == "32" or architecture >= 120
    heavy = constants["SOFTCAP"] == "1" or stats >> 6 or crowded
    if constants["LOGIT"] == "f64":
        return 1 if int(constants["STATS"], 16) >> 8 else 2
    return 2 if heavy else 3


pytestmark = pytest.mark.needs("nvrtc")

WIDE, SHORT = (1 << 17,), (1000,)
COMMON = {architecture: programs(architecture, ("bf16",), WIDE) for architecture in ARCHITECTURES}
OTHERS = [
    program
    for program in programs(90, ("f16", "f32", "f64"), WIDE) + programs(90, ("bf16",), SHORT)
    if program not in COMMON[90]
]
TIGHT = [(120, program) for program in programs(120, ("f32",), SHORT) if program[0] == "rows_backward"]
CASES = [
    *((architecture, program) for architecture, common in COMMON.items() for program in common),
    *((90, other) for other in OTHERS),
    *TIGHT,
]
"""Every kernel for every architecture; other dtypes and short rows for one, and where registers are scarce.

`prefuse doctor --compile` compiles all.
"""


def name(value: int | Program) -> str:
    return f"sm_{value}" if isinstance(value, int) else "-".join([value[0], *(text for _, text in value[1])])


cuda_compile = _prefuse.cuda_compile


@functools.cache
def _compiled(kernel: str, defines: tuple[tuple[str, str], ...], architecture: int) -> tuple[bytes, str]:
    return cuda_compile(kernel, list(defines), architecture, False)


@pytest.mark.parametrize(("architecture", "program"), CASES, ids=name)
def test_kernel(architecture: int, program: Program) -> None:
    kernel, defines = program
    cubin, log = _compiled(kernel, tuple(defines), architecture)
    used, constants = resources(log), dict(defines)
    assert used.spilled == 0, log
    moved = memory_instructions(cubin)
    if kernel in ("distance_forward", "distance_backward"):
        assert used.registers <= REGISTERS // 2
        assert moved[LOAD, 16] >= 4
        assert moved[STORE, 16] >= (kernel == "distance_backward")
    if kernel not in ("rows_forward", "rows_backward", "rows_both"):
        return
    assert used.registers * _resident_blocks(kernel, constants, architecture) <= REGISTERS
    assert moved[LOAD, 16] >= 4
    if kernel != "rows_forward":
        assert moved[STORE, 16] >= 1
    if kernel == "rows_both":
        assert moved[STORE_SHARED, 16] >= 4
        assert moved[LOAD_SHARED, 16] >= 1


# Slots per 16 bytes by architecture (the best seen with NVRTC 13.2, some more for other compilers), 16-byte loads in
# flight, and the blocks that the registers of a multiprocessor have to hold.
LIMITS: dict[str, tuple[dict[int, float], int, int]] = {
    "rows_forward bf16 logp,lse": ({80: 44, 90: 42, 100: 56, 120: 44}, 4, 3),
    "rows_forward f32 logp,lse": ({80: 23, 90: 23, 100: 22, 120: 23}, 4, 4),
    "rows_forward bf16 moments": ({80: 76, 90: 74, 100: 75, 120: 76}, 4, 3),
    "rows_forward bf16 kl": ({80: 150, 90: 148, 100: 150, 120: 150}, 4, 2),
    "rows_backward bf16 logp,lse": ({80: 45, 90: 44, 100: 58, 120: 44}, 4, 3),
    "rows_backward f32 logp,lse": ({80: 24, 90: 24, 100: 24, 120: 23}, 4, 4),
    "rows_forward f32 kl": ({100: 86, 120: 88}, 4, 3),
    "rows_backward f32 kl": ({100: 68, 120: 66}, 4, 3),
    "rows_backward bf16 kl": ({90: 130}, 4, 2),
    "rows_backward bf16 logp,lse,entropy": ({90: 61, 120: 60}, 4, 3),
    "rows_both bf16 logp,lse,entropy": ({90: 125, 120: 120}, 4, 3),
    "rows_both bf16 logp,lse": ({90: 95, 100: 112, 120: 90}, 4, 3),
    "rows_both f32 logp,lse": ({90: 55, 100: 47, 120: 48}, 4, 4),
    "columns_find bf16": ({80: 73, 90: 73, 100: 63, 120: 64}, 4, 2),
    "distance_forward bf16": ({90: 44}, 6, 2),
    "distance_backward bf16": ({90: 74}, 6, 2),
}

# A scheduler issues an instruction of the special function unit in eight clocks, any other in one. Before one
# exponential in eight was computed on the FMA pipes of B200: 64 clocks for 16 bytes per thread (forward), 128 (both).
CLOCKS: dict[str, dict[int, float]] = {
    "rows_forward bf16 logp,lse": {80: 64, 90: 64, 100: 56, 120: 64},
    "rows_both bf16 logp,lse": {90: 128, 100: 112, 120: 128},
}


@pytest.mark.needs("nvdisasm")
@pytest.mark.parametrize("architecture", slots.ARCHITECTURES)
def test_main_loops_stay_short(architecture: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instructions per 16 bytes, loads in flight and spills. Most of these kernels were compiled above."""

    def compiled(kernel: str, defines: list[tuple[str, str]], architecture: int, _: bool) -> tuple[bytes, str]:
        return _compiled(kernel, tuple(defines), architecture)

    monkeypatch.setattr(_prefuse, "cuda_compile", compiled)
    limits = {name: (most[architecture], *more) for name, (most, *more) in LIMITS.items() if architecture in most}
    counted = {found.name: found for found in slots.count(architecture, disassembler() or "", limits)}
    assert counted.keys() == limits.keys()
    too_much = [
        str(found)
        for name, found in counted.items()
        for most, in_flight, blocks in [limits[name]]
        if found.slots > most or found.in_flight < in_flight or found.blocks < blocks or found.spilled
    ]
    too_much += [
        f"{name}: {max(found.slots, 8 * found.special)} clocks, at most {CLOCKS[name][architecture]}"
        for name, found in counted.items()
        if architecture in CLOCKS.get(name, {}) and max(found.slots, 8 * found.special) > CLOCKS[name][architecture]
    ]
    assert not too_much, "\n".join(too_much)


@pytest.mark.needs("nvdisasm")
@pytest.mark.parametrize(("kernel", "most"), [("columns_to_input", 3.1), ("columns_to_weight", 2.9)])
@pytest.mark.parametrize("architecture", slots.ARCHITECTURES)
def test_products_have_little_beside_them(architecture: int, kernel: str, most: float) -> None:
    """A scheduler issues an instruction a clock; a product of 16 x 8 x 16 keeps a tensor core busy for 4 or more."""
    cubin, _ = _compiled(kernel, (("NUMBER", "bf16"),), architecture)
    assert instructions_per_product(disassembled(cubin, disassembler() or "")) <= most


def test_an_unknown_kernel_or_definition_is_refused() -> None:
    with pytest.raises(RuntimeError, match='no kernel "rm"'):
        _prefuse.cuda_compile("rm", [], 90, False)
    with pytest.raises(RuntimeError, match='no kernel "segment_sum"'):
        _prefuse.cuda_compile("segment_sum", [("VALUE", "float x; int")], 90, False)
    with pytest.raises(RuntimeError, match="VALUE2"):
        _prefuse.cuda_compile("segment_sum", [("VALUE2", "f32")], 90, False)


@pytest.mark.parametrize(
    ("kernel", "file", "constant", "others"),
    [
        ("segment_sum", "segments.cu", "VALUE", {}),
        ("rows_forward", "rows.cuh", "LOGIT", dict(programs(90, ("bf16",), WIDE)[0][1])),
        ("distance_forward", "distances.cuh", "SECOND", {"FIRST": "f32", "UNIT": "4", "CHUNK": "8192"}),
    ],
)
def test_what_does_not_compile_is_told_with_file_and_line(
    kernel: str, file: str, constant: str, others: dict[str, str]
) -> None:
    defines = {**others, constant: "f17"}
    with pytest.raises(RuntimeError, match=rf"^{kernel} \(.*-D{constant}=f17.*\) for sm_90:\n") as raised:
        _prefuse.cuda_compile(kernel, list(defines.items()), 90, False)
    lines = (KERNELS / file).read_text(encoding="utf-8").splitlines()
    complaints = re.findall(rf"^{re.escape(file)}\((\d+)\): error: .*f17", str(raised.value), re.M)
    assert complaints and all(constant in lines[int(line) - 1] for line in complaints)


def test_headers_are_the_extension_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("units.cuh", "ptx.cuh", "segments.cu"):
        (tmp_path / name).write_text("#error a file of the working directory")
    monkeypatch.chdir(tmp_path)
    assert _prefuse.cuda_compile("segment_sum", [("VALUE", "f32")], 90, False)[0]
