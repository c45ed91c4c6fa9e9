"""All entry points of an objective compiled as one program.

Most of the time of a compilation is the compiler's own, and that of functions which all entry points call: one program
for all of them takes three quarters of what one for each takes. Each stands in a namespace of its own and makes the
same machine code as by itself, which `test_compile.py` compares.

NVRTC first makes PTX and then machine code, each in half of the time. The PTX of generated kernels is the same for
sm_80 to sm_90, and for sm_100 and sm_120: it is made twice, not six times.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from prefuse.scoring.traced import Traced
from tests import nvrtc, ptx_compiler
from tests.cuda.machine_code import code_sections
from tests.emulator.emulator import KERNELS

Entries = tuple[tuple[str, str], ...]
"""(entry point, text) of each kernel."""

HEADERS = tuple(
    (name, (KERNELS / name).read_text(encoding="utf-8")) for name in ("objective.cuh", "units.cuh", "ptx.cuh")
)
_INCLUDE = '#include "objective.cuh"\n'


def entries(traced: Traced) -> Entries:
    """Both ways of running a score with all gradients, of columns and results in f32."""
    program = traced.score_step("mean", tuple(traced.columns)).program
    columns, outputs = ([("f32", False)] * len(named) for named in (program.columns, program.output_spaces))
    found = [program.cuda_sources(columns, outputs, one_block) for one_block in (True, False)]
    return tuple(entry for way in found for entry in way)


def text_of(kernels: Iterable[tuple[str, str]]) -> str:
    """One text for all entry points."""
    parts = [f"namespace of_{name} {{\n{text.replace(_INCLUDE, '')}\n}}\n" for name, text in kernels]
    return _INCLUDE + "".join(parts)


@functools.cache
def compiled(kernels: Entries, architecture: int) -> dict[str, tuple[bytes, str]]:
    """Machine code and the compiler's log of each entry point, by its name; objectives that are equal share them."""
    made = _made(kernels, architecture)
    logs = {
        match[1]: match[0]
        for match in re.finditer(r"Compiling entry function '(\w+)'.*?(?=Compiling entry function|\Z)", made.log, re.S)
    }
    code = code_sections(made.output)
    assert logs.keys() == code.keys()
    return {name: (code[name], logs[name]) for name in logs}


def _made(kernels: Entries, architecture: int) -> nvrtc.Made:
    """NVRTC's two steps, of which architectures with the same PTX share the first."""
    if ptx_compiler.library():
        return ptx_compiler.machine_code(_ptx(kernels, 100 if architecture >= 100 else 80), architecture)
    return nvrtc.machine_code(_sources(kernels), architecture)


@functools.cache
def _ptx(kernels: Entries, architecture: int) -> str:
    return nvrtc.ptx(_sources(kernels), (), architecture)


def _sources(kernels: Entries) -> list[tuple[str, str]]:
    return [*HEADERS, ("objective.cu", text_of(kernels))]
