"""Memory that is reserved without being there: only the pages that are touched exist."""

from __future__ import annotations

import mmap

import torch

NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python names it from 3.13 on


def reserve(elements: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Zeros, however many; for tests marked ``needs("sparse_memory")``."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
    return torch.frombuffer(mmap.mmap(-1, elements * dtype.itemsize, flags=flags), dtype=dtype)
