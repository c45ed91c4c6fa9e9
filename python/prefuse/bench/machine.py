"""Which machine a figure belongs to, and how fast its memory is."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path

import torch

import prefuse._prefuse as _prefuse

INSTRUCTIONS = ("PREFUSE_SIMD", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
"""Environment variables that hold instructions of the machine back."""


def describe() -> dict[str, object]:
    """The machine and the software as JSON values.

    `told` has what `INSTRUCTIONS` are set to, `load` is the 1-minute load average before measuring, or None.
    """
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "simd": _prefuse.simd_level(),
        "told": {name: os.environ[name] for name in INSTRUCTIONS if name in os.environ},
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def describe_device(device: torch.device) -> dict[str, object]:
    """The GPU and its software as JSON values, beside `describe`'s."""
    properties = torch.cuda.get_device_properties(device)
    driver = _prefuse.cuda_driver_version()
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "driver_supports_cuda": f"{driver // 1000}.{driver % 1000 // 10}",
        "torch_cuda": torch.version.cuda,
    }


def bandwidth_cases(size: int, device: torch.device | str = "cpu") -> dict[str, tuple[Callable[[], object], int]]:
    """Reading (a sum) and copying `size` bytes of float32 by torch, with the bytes that each moves."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return {"read": (source.sum, size), "copy": (lambda: target.copy_(source), 2 * size)}
