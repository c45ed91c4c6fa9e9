"""A driver that lacks functions, is a toolkit's stub, or is not there: a sentence, and nothing on stderr."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.emulator.emulator import COMPILER

pytestmark = [
    pytest.mark.needs("compiler"),
    pytest.mark.skipif(sys.platform != "linux", reason="a library is put before the others by LD_LIBRARY_PATH"),
]

FUNCTIONS = (
    *("cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetAttribute", "cuDeviceGetName"),
    *("cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2", "cuModuleLoadData"),
    *("cuModuleGetFunction", "cuFuncGetAttribute", "cuFuncSetAttribute", "cuStreamIsCapturing", "cuLaunchKernel"),
    *("cuLaunchKernelEx", "cuOccupancyMaxActiveClusters"),
)
NAMED = ("cuGetErrorName", "cuGetErrorString")
STUB_LIBRARY, NO_DEVICE = 34, 100


def driver(folder: Path, functions: tuple[str, ...], initialised: int = 0) -> Path:
    """A library of this name whose functions do nothing; `cuInit` says `initialised`."""
    lines = [f'extern "C" int {name}(...) {{ return 0; }}' for name in functions if name != "cuInit"]
    lines += [f'extern "C" int {name}(int, const char **text) {{ *text = "ERROR"; return 0; }}' for name in NAMED]
    lines.append(f'extern "C" int cuInit(unsigned) {{ return {initialised}; }}')
    source = folder / "driver.cpp"
    source.write_text("\n".join(lines))
    made = folder / "libcuda.so"
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-o", str(made), str(source)], check=True)
    return folder


def doctor(folder: Path) -> dict[str, str]:
    """What the doctor says of the driver and of GPUs, by part, in a process that finds this driver first."""
    # All of its findings would import all of TRL, in each process.
    code = (
        "from prefuse.doctor import examination as of\n"
        "for f in (of._driver(), *of._devices()): print(f.part, f.state, f.advice, sep='|')"
    )
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ended.stderr == ""
    return {line.partition("|")[0]: line.partition("|")[2] for line in ended.stdout.splitlines()}


def test_a_driver_without_a_function(tmp_path: Path) -> None:
    said = doctor(driver(tmp_path, tuple(name for name in FUNCTIONS if name != "cuStreamIsCapturing")))
    assert said["driver"].startswith("too old|the CUDA driver is too old (it lacks cuStreamIsCapturing): update")
    assert said["GPU"] == "none seen without a driver that can be used|"


def test_a_driver_that_answers_one_question(tmp_path: Path) -> None:
    said = doctor(driver(tmp_path, ("cuDriverGetVersion",)))
    assert "it lacks cuDeviceGetCount, cuDeviceGet, " in said["driver"]
    assert said["driver"].count("cuInit") == 0


def test_a_stub(tmp_path: Path) -> None:
    said = doctor(driver(tmp_path, FUNCTIONS, STUB_LIBRARY))
    assert said["driver"].startswith("a toolkit's stub|the CUDA driver that was found is a toolkit's stub: take")


def test_a_driver_without_a_device(tmp_path: Path) -> None:
    said = doctor(driver(tmp_path, FUNCTIONS, NO_DEVICE))
    assert said["driver"].startswith("not usable|CUDA: initialising the driver: ")
    assert "ERROR" in said["driver"]
