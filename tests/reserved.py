"""Memory that is reserved without being there: only the pages that are touched exist."""

from __future__ import annotations

import mmap
import sys

import pytest
import torch

NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python names it from 3.13 on
NEEDS_RESERVING = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, to reserve memory that is not there")


def reserve(elements: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Zeros, however many."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
    try:
        memory = mmap.mmap(-1, elements * dtype.itemsize, flags=flags)
    except (OSError, ValueError) as error:
        pytest.skip(f"this machine reserves no {elements * dtype.itemsize} bytes: {error}")
    return torch.frombuffer(memory, dtype=dtype)
