"""What some tests need of the machine: ``pytest.mark.needs("compiler")`` and so on, one rule for all.

Where it is missing they are skipped and say so. With ``CI=true`` in the environment they fail instead: what was neither
run nor compiled must not pass for checked.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Callable

import pytest

from prefuse import _prefuse
from prefuse._backends.nvrtc import prepare
from prefuse._pretrained import smollm2
from prefuse.doctor.machine_code import disassembler
from tests.emulator import emulator


def _compiler() -> str:
    return "" if emulator.COMPILER else "no C++ compiler to run the kernels on the CPU: set CXX or install g++"


@functools.cache
def _nvrtc() -> str:
    prepare()
    try:
        _prefuse.cuda_nvrtc()
    except RuntimeError as error:
        return f"nothing to compile the kernels with: {error}"
    return ""


def _nvdisasm() -> str:
    return "" if disassembler() else "nothing to read machine code with: pip install nvidia-cuda-nvdisasm"


def _sparse_memory() -> str:
    return "" if sys.platform == "linux" else "no memory that is reserved without being there: it takes Linux"


def _fork() -> str:
    return "" if hasattr(os, "fork") else "no fork: it takes Linux or macOS"


def _model() -> str:
    if missing := smollm2.missing_smollm2():
        return missing
    return "" if importlib.util.find_spec("gguf") else "no gguf to read the file of SmolLM2's wheel: pip install gguf"


MISSING: dict[str, Callable[[], str]] = {
    "compiler": _compiler,
    "nvrtc": _nvrtc,
    "nvdisasm": _nvdisasm,
    "sparse_memory": _sparse_memory,
    "fork": _fork,
    "smollm2": _model,
}
"""By name: what is missing here, or nothing."""


def check(what: str) -> None:
    """Skips or fails the test that asks if `what` is missing."""
    missing = MISSING[what]()
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"{missing} (skipped elsewhere, but not under CI=true)", pytrace=False)
    if missing:
        pytest.skip(missing)
