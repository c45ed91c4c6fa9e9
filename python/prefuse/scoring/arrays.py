"""Torch tensors and NumPy arrays behind one small interface; the only place of scoring that tells them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from prefuse._arguments.dense import other_than_dense

from .._backends.arrays import capsule_of_numpy

Array = Any  # a torch.Tensor or a numpy.ndarray, always the same of the two within one call

ONE = (1,)
TORCH_FLOATS = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
NUMPY_FLOATS = frozenset(map(np.dtype, (np.float32, np.float64, np.float16)))
PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter)
TORCH_EXACT = {torch.bool: torch.float32, torch.int64: torch.float64, torch.int32: torch.float64}


class Arrays(Protocol):
    """What scoring needs of an array library. Arrays are on the CPU."""

    name: str
    single: Any  # the 32-bit float dtype
    wide: Any  # the 64-bit float dtype

    def is_float(self, array: Array) -> bool:
        """Return whether the array can carry a gradient."""

    def readable(self, array: Array) -> Array:
        """Return the array in a dtype the extension reads: floats as they are, integers and booleans exactly."""

    def memory(self, array: Array) -> Any:
        """Return what the extension takes for the array."""

    def result_dtype(self, arrays: Sequence[Array]) -> Any:
        """Return the dtype of results: f64 where any array is (numbers aside), else f32."""

    def empty(self, size: int, dtype: Any) -> Array:
        """Return a new array of one dimension."""

    def scalar(self, dtype: Any) -> Array:
        """Return a new array of no dimension."""

    def flat(self, array: Array) -> Array:
        """Return the elements as one dimension."""

    def gather(self, array: Array, index: np.ndarray[Any, Any]) -> Array:
        """Return the flattened array's elements at `index`."""

    def scatter(self, values: Array, index: np.ndarray[Any, Any], shape: Sequence[int]) -> Array:
        """Return an array of this shape with `values` at the flat positions `index` and zeros elsewhere."""

    def numpy(self, array: Array) -> np.ndarray[Any, Any]:
        """Return an integer or boolean array as NumPy."""

    def cast(self, array: Array, like: Array) -> Array:
        """Return the array in the dtype of `like`."""


class TorchArrays:
    """`Arrays` for torch tensors."""

    name = "torch.Tensor"
    single, wide = torch.float32, torch.float64

    def is_float(self, array: torch.Tensor) -> bool:
        """Return whether the tensor is floating point."""
        return array.dtype in TORCH_FLOATS

    def readable(self, array: torch.Tensor) -> torch.Tensor:
        """Return the tensor, integers and booleans converted without loss (integers beyond 2⁵³ are rounded)."""
        if array.dtype in TORCH_FLOATS:
            return array.resolve_neg()  # what is negated lazily has the other sign in memory
        return array.to(TORCH_EXACT.get(array.dtype, torch.float64))

    def memory(self, array: torch.Tensor) -> torch.Tensor:
        """Return the tensor itself."""
        return array

    def result_dtype(self, arrays: Sequence[torch.Tensor]) -> torch.dtype:
        """Return float64 if any tensor is, else float32."""
        return torch.float64 if any(a.dtype is torch.float64 and a.ndim for a in arrays) else torch.float32

    def empty(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        """Return an uninitialised CPU tensor of one dimension."""
        return torch.empty(size, dtype=dtype, device="cpu")

    def scalar(self, dtype: torch.dtype) -> torch.Tensor:
        """Return an uninitialised CPU tensor of no dimension."""
        return torch.empty((), dtype=dtype, device="cpu")

    def flat(self, array: torch.Tensor) -> torch.Tensor:
        """Return the tensor with one dimension."""
        return array.reshape(-1)

    def gather(self, array: torch.Tensor, index: np.ndarray[Any, Any]) -> torch.Tensor:
        """Return selected elements."""
        return array.reshape(-1).index_select(0, torch.from_numpy(index))

    def scatter(self, values: torch.Tensor, index: np.ndarray[Any, Any], shape: Sequence[int]) -> torch.Tensor:
        """Return the elements put back into place."""
        result = torch.zeros(shape, dtype=values.dtype)
        result.view(-1).index_copy_(0, torch.from_numpy(index), values)
        return result

    def numpy(self, array: torch.Tensor) -> np.ndarray[Any, Any]:
        """Return the tensor as NumPy, sharing memory where it can."""
        return np.asarray(array.detach().cpu().numpy())

    def cast(self, array: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Return the tensor in the dtype of `like`."""
        return array.to(like.dtype)


class NumpyArrays:
    """`Arrays` for NumPy arrays."""

    name = "numpy.ndarray"
    single, wide = np.dtype(np.float32), np.dtype(np.float64)

    def is_float(self, array: np.ndarray[Any, Any]) -> bool:
        """Return whether the array is floating point."""
        return array.dtype in NUMPY_FLOATS

    def readable(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the array, other dtypes as float64; strides that are no whole number of elements are copied away."""
        if array.dtype not in NUMPY_FLOATS:
            return array.astype(np.float64)
        whole = all(stride % array.itemsize == 0 for stride in array.strides)
        return array if whole else np.ascontiguousarray(array)

    memory = staticmethod(capsule_of_numpy)

    def result_dtype(self, arrays: Sequence[np.ndarray[Any, Any]]) -> np.dtype[Any]:
        """Return float64 if any array is, else float32."""
        return np.dtype(np.float64 if any(a.dtype == np.float64 and a.ndim for a in arrays) else np.float32)

    def empty(self, size: int, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """Return an uninitialised array of one dimension."""
        return np.empty(size, dtype)

    def scalar(self, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """Return an uninitialised array of no dimension."""
        return np.empty((), dtype)

    def flat(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the array with one dimension."""
        return array.reshape(-1)

    def gather(self, array: np.ndarray[Any, Any], index: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return selected elements."""
        picked: np.ndarray[Any, Any] = array.reshape(-1)[index]
        return picked

    def scatter(
        self, values: np.ndarray[Any, Any], index: np.ndarray[Any, Any], shape: Sequence[int]
    ) -> np.ndarray[Any, Any]:
        """Return the elements put back into place."""
        result = np.zeros(tuple(shape), values.dtype)
        result.reshape(-1)[index] = values
        return result

    def numpy(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the array itself."""
        return array

    def cast(self, array: np.ndarray[Any, Any], like: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the array in the dtype of `like`."""
        return array.astype(like.dtype)


TORCH = TorchArrays()
NUMPY = NumpyArrays()


def from_list(name: str, values: Sequence[Any], beside: torch.Tensor | None) -> Array:
    """Return a list of numbers as an array; beside tensors as one of them, floats in torch's default dtype.

    Raises:
        TypeError: it holds something else, or rows of different lengths.
    """
    try:
        array = np.asarray(values)
    except (RuntimeError, TypeError, ValueError):  # rows of different lengths; a tensor that requires grad
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected a list of numbers, or of rows of one length, got {str(values)[:60]}")
    if beside is None:
        return array
    dtype = torch.get_default_dtype() if array.dtype.kind == "f" else None
    return torch.as_tensor(array, dtype=dtype, device=beside.device)


def library_of(arguments: Mapping[str, Array]) -> Arrays:
    """Return the library all of these arguments come from.

    Raises:
        TypeError: one is neither a tensor nor an array or does not hold real numbers, or the two are mixed.
    """
    found: dict[str, str] = {}
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            found.setdefault(TORCH.name, name)
        elif isinstance(value, np.ndarray):
            found.setdefault(NUMPY.name, name)
        else:
            raise TypeError(f"{name}: expected a torch.Tensor or a numpy.ndarray, got {type(value).__name__}")
        other = other_than_dense(value)
        if other is not None:
            raise TypeError(f"{name}: expected a dense (strided) array, got {other}")
        real = not value.is_complex() if isinstance(value, torch.Tensor) else value.dtype.kind in "fiub"
        if not real:
            raise TypeError(f"{name}: expected real numbers, got dtype {value.dtype}")
    if len(found) > 1:
        kinds = " and ".join(f"{name} is a {kind}" for kind, name in found.items())
        raise TypeError(f"{kinds}; give all columns as torch tensors or all as NumPy arrays")
    return TORCH if TORCH.name in found else NUMPY
