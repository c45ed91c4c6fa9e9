"""2^x on the FMA pipes, of every float32 that its polynomial can meet, against float64."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

from tests.emulator import emulator

pytestmark = pytest.mark.needs("compiler")

# The polynomial sees x - round(x) alone, which is exact: floats in [-1, 0] have every value that it can take, down to
# 2^-27, from where on 2^x is 1. The factor 2^n is exact.
SOURCE = """
#include "{shim}"
#include "units.cuh"
static double error(float x) {{ return fabs(double(exp2_on_fma(x)) / exp2(double(x)) - 1); }}
extern "C" double worst_fraction() {{
    double worst = 0;
    for (unsigned bits = 0x32000000; bits <= 0x3f800000; bits++) worst = fmax(worst, error(-__uint_as_float(bits)));
    return worst;
}}
extern "C" double worst_power() {{
    double worst = 0;
    for (int n = -125; n <= 127; n++)
        for (int i = -4096; i < 4096; i++) worst = fmax(worst, error(n + i / 8192.0f));
    return worst;
}}
extern "C" float of(float x) {{ return exp2_on_fma(x); }}
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("exp2")
    (folder / "exp2.cpp").write_text(SOURCE.format(shim=Path(emulator.__file__).parent / "shim.h"))
    built = [str(emulator.COMPILER), *emulator.FLAGS, "-O2", "-march=native", "-shared", "-fPIC"]
    subprocess.run([*built, str(folder / "exp2.cpp"), "-o", str(folder / "exp2.so")], check=True)
    library = ctypes.CDLL(str(folder / "exp2.so"))
    for name in ("worst_fraction", "worst_power"):
        getattr(library, name).restype = ctypes.c_double
    library.of.restype, library.of.argtypes = ctypes.c_float, [ctypes.c_float]
    return library


def test_it_is_closer_than_the_special_function_unit(compiled: ctypes.CDLL) -> None:
    """Whose error is specified as 2^-22."""
    assert compiled.worst_fraction() < 2**-23.5
    assert compiled.worst_power() < 2**-23.5


@pytest.mark.parametrize(
    ("x", "wanted"),
    [
        (0.0, 1.0),
        (-0.0, 1.0),
        (-1.0, 0.5),
        (-126.0, 2.0**-126),
        (-127.5, 0.0),
        (-1e30, 0.0),
        (float("-inf"), 0.0),
        (128.0, float("inf")),
        (1e30, float("inf")),
        (float("inf"), float("inf")),
    ],
)
def test_at_its_ends(compiled: ctypes.CDLL, x: float, wanted: float) -> None:
    assert compiled.of(x) == wanted


def test_nan_stays(compiled: ctypes.CDLL) -> None:
    assert compiled.of(float("nan")) != compiled.of(float("nan"))
