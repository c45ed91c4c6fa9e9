"""Arrays as the extension takes them: tensors, and NumPy arrays in DLPack capsules, with nothing copied.

What is negated lazily has the other sign in memory: `resolve_neg` first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import prefuse._prefuse as _prefuse

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool)
"""What the extension reads."""

LARGE_BYTES = 4 << 20
"""From here on a tensor is worth huge pages: to take fresh memory by the 4 KiB costs more than to write to it."""


def fresh(tensor: torch.Tensor) -> torch.Tensor:
    """A new tensor that nothing has been written to; on the CPU, a large one asks for huge pages."""
    if tensor.device.type == "cpu" and tensor.nbytes >= LARGE_BYTES:
        _prefuse.prefer_huge_pages(tensor)
    return tensor


def capsule_of_numpy(array: np.ndarray[Any, Any]) -> Any:
    """The memory of a NumPy array, a read-only one too; its dtype is one of `DTYPES`."""
    return (array if array.flags.writeable else np.asarray(_Writable(array))).__dlpack__()


class _Writable:
    """Presents a read-only NumPy array as writable: `torch.from_numpy` warns about the former, DLPack refuses it."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}
        self.array = array


def from_numpy(name: str, array: np.ndarray[Any, Any]) -> torch.Tensor:
    """`array` as a tensor that shares its memory; copied only where torch cannot express its strides or byte order.

    The tensor is only ever read, so that read-only arrays (`np.broadcast_to`, memory maps) are welcome. `name` is the
    argument to name in the `TypeError` for a dtype that torch does not have.
    """
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(stride < 0 or stride % array.itemsize for stride in array.strides):
        array = np.ascontiguousarray(array)
    if not array.flags.writeable:
        array = np.asarray(_Writable(array))
    try:
        return torch.from_numpy(array)
    except TypeError:
        raise TypeError(f"{name}: expected a float, integer or bool array, got dtype {array.dtype}") from None
