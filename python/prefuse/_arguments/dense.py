"""Arrays that do not hold their numbers in memory one by one: which, in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def other_than_dense(array: torch.Tensor | np.ndarray[Any, Any]) -> str | None:
    """What a tensor or an array is instead of a dense one of plain numbers; None for a dense one."""
    if isinstance(array, torch.Tensor):
        return _other_than_dense(array)
    return "masked values; leave their rows out" if np.ma.is_masked(array) else None


def _other_than_dense(tensor: torch.Tensor) -> str | None:
    if tensor.is_nested:
        return "a nested tensor; pad it, and give a mask"
    if tensor.layout is not torch.strided:
        return f"layout {tensor.layout}; pass its .to_dense()"
    if tensor.is_quantized:
        return f"{tensor.dtype}; pass its .dequantize()"
    return None
