"""Arrays as the extension sees them: an address, a dtype, a shape and strides, with nothing copied."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch

View: TypeAlias = tuple[int, str, tuple[int, ...], tuple[int, ...]]
"""Address of element 0, dtype, shape, strides in elements."""

DTYPES = {
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float32: "f32",
    torch.float64: "f64",
    torch.int64: "i64",
    torch.bool: "bool",
}


def view(tensor: torch.Tensor) -> View:
    """The memory of `tensor`. It borrows: the caller keeps the tensor alive while the view is in use."""
    return tensor.data_ptr(), DTYPES[tensor.dtype], tuple(tensor.shape), tensor.stride()


def optional_view(tensor: torch.Tensor | None) -> View | None:
    """`view`, or None for an absent tensor."""
    return None if tensor is None else view(tensor)


class _Writable:
    """Presents a read-only NumPy array as a writable one, for `torch.from_numpy`, which warns about the former."""

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
