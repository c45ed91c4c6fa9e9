"""Where CUDA is on this machine: NVRTC's library for the extension to open. No GPU and no driver is needed to look."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

import torch

import prefuse._prefuse as _prefuse

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
"""Compute capabilities that every kernel is checked for: A100, RTX 30, RTX 40 and L4, H100, B200, RTX 50."""

SHARED_MEMORY = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
"""Bytes of shared memory that a block may have, by compute capability."""


@functools.cache
def prepare() -> None:
    """Tells the extension where to look for NVRTC. Nothing is loaded yet."""
    _prefuse.cuda_search_nvrtc(nvrtc_candidates())


def nvrtc_candidates() -> list[str]:
    """Paths and names of NVRTC in the order to try: PyTorch's wheels, cuda-pathfinder's find, CUDA_HOME, the system."""
    majors = _cuda_majors()
    names = [name for major in majors for name in _library_names(major)]
    found = [str(path) for folder in _wheel_folders() for name in names for path in _matching(folder, name)]
    found += _from_pathfinder()
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        root = os.environ.get(variable)
        if root:
            folders = (Path(root) / "lib64", Path(root) / "lib", Path(root) / "bin", Path(root) / "bin" / "x64")
            found += [str(path) for folder in folders for name in names for path in _matching(folder, name)]
    return list(dict.fromkeys([*found, *(name for name in names if "*" not in name)]))


def _cuda_majors() -> list[int]:
    """CUDA versions to look for, PyTorch's own first: the driver under PyTorch is known to run its code."""
    version = torch.version.cuda
    own = [int(version.split(".")[0])] if version else []
    return list(dict.fromkeys([*own, 13, 12]))


def _library_names(major: int) -> list[str]:
    return [f"nvrtc64_{major}*_0.dll"] if sys.platform == "win32" else [f"libnvrtc.so.{major}"]


def _wheel_folders() -> list[Path]:
    """Folders of NVIDIA's wheels that hold NVRTC: one folder per CUDA version since 13, one per library before."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations or ())] if spec else []
    inside = ("cu13/lib", "cuda_nvrtc/lib", "cu13/bin/x86_64", "cuda_nvrtc/bin")
    return [root / folder for root in roots for folder in inside]


def _matching(folder: Path, name: str) -> list[Path]:
    return sorted(folder.glob(name)) if folder.is_dir() else []


def _from_pathfinder() -> list[str]:
    """What cuda-pathfinder (a dependency of CUDA builds of PyTorch) would load, conda environments included."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib
    except ImportError:
        return []
    try:
        path = load_nvidia_dynamic_lib("nvrtc").abs_path
    except (RuntimeError, OSError):
        return []
    return [str(path)] if path else []


class Resources(NamedTuple):
    """What one thread (registers, spilled bytes) and one block (shared memory, bytes) take."""

    registers: int
    spilled: int
    shared: int


def resources(log: str) -> Resources:
    """Read from the compiler's log; of several kernels in one source, the largest numbers."""
    registers, spills, shared = (
        [int(number) for number in re.findall(pattern, log)]
        for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill (?:stores|loads)", r"(\d+) bytes smem")
    )
    if not registers:
        raise RuntimeError(f"NVRTC's log does not name the registers: {log!r}")
    return Resources(max(registers), sum(spills), max(shared, default=0))
