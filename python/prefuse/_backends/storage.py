"""Memory of large tensors on the CPU: kept between steps, as taking it anew costs several times what writing does.

A tensor of `empty` has its memory to itself. When the tensor is gone, the memory is kept for the next one that it fits,
up to a limit; the system may take it back meanwhile, and `release_memory` gives it back at once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

import prefuse._prefuse as _prefuse
from prefuse._backends.arrays import LARGE_BYTES, fresh

VARIABLE = "PREFUSE_KEPT_MIB"
DEFAULT_MIB = 2048
_NAMES = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32", torch.float64: "f64"}


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A new contiguous tensor with whatever contents; a large one on the CPU over kept memory.

    Its storage cannot be resized.

    Raises:
        ValueError: the variable `PREFUSE_KEPT_MIB` is no number.
    """
    if device.type == "cpu" and dtype in _NAMES and math.prod(shape) * dtype.itemsize >= LARGE_BYTES:
        limit = limit_bytes()
        made = _prefuse.kept_storage(_NAMES[dtype], tuple(shape), limit) if limit else None
        if made is not None:
            return from_dlpack(made)
    return fresh(torch.empty(tuple(shape), dtype=dtype, device=device))


def limit_bytes() -> int:
    """How much unused memory is kept at most: 2 GiB, or what `PREFUSE_KEPT_MIB` says; 0 turns keeping off."""
    given = os.environ.get(VARIABLE, "")
    if not given:
        return DEFAULT_MIB << 20
    if not (given.isascii() and given.isdigit()):
        raise ValueError(f"{VARIABLE}: expected a number of MiB, 0 to keep nothing, got {given!r}")
    return min(int(given), 1 << 40) << 20


def release_memory() -> int:
    """Gives the memory back to the system that prefuse keeps on the CPU for large tensors and that no tensor uses.

    What tensors still use is kept, when they are gone, for the next ones. `PREFUSE_KEPT_MIB=0` keeps nothing.

    Returns:
        How many bytes it was.
    """
    return _prefuse.release_storage()
