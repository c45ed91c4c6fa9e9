"""Numeric arguments: NumPy arrays, torch tensors or nested lists in, results of the same kind out."""

from __future__ import annotations

import numbers
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ._rows import Floats, Indices, finite

Array = TypeVar("Array", NDArray[Any], torch.Tensor)
"""A NumPy array or a torch tensor; a list is taken for an array."""

Seed: TypeAlias = "int | np.random.Generator"
"""An integer, which always gives the same result, or a NumPy generator, which goes on from where it is."""


def floats(name: str, values: Any) -> Floats:
    """Values as float64 on the host; errors name the argument."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    return finite(name, values)


def probabilities(name: str, values: Any) -> Floats:
    """As `floats`, in [0, 1]."""
    numbers_given = floats(name, values)
    outside = np.argwhere((numbers_given < 0.0) | (numbers_given > 1.0))
    if len(outside):
        at = outside[0].tolist()
        raise ValueError(f"{name}: {numbers_given[tuple(at)]} at {at}, expected probabilities in [0, 1]")
    return numbers_given


def integers(name: str, values: Any) -> Indices:
    """Values as int64 [N]; TypeError for another dtype."""
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name}: expected integers, got dtype {array.dtype}")
    return np.asarray(array, np.int64, order="C")


def like(given: Array, result: NDArray[Any]) -> Array:
    """The result as the kind of array that was given, on its device; floats in its dtype."""
    if isinstance(given, torch.Tensor):
        floating = given.is_floating_point() and np.issubdtype(result.dtype, np.floating)
        tensor = torch.from_numpy(np.ascontiguousarray(result))
        return tensor.to(given.device, given.dtype if floating else None)
    if isinstance(given, np.ndarray) and given.dtype.kind == "f" and result.dtype.kind == "f":
        return result.astype(given.dtype, copy=False)
    return result


def generator(seed: Seed) -> np.random.Generator:
    """The random numbers of a seed; TypeError for what is none."""
    if isinstance(seed, np.random.Generator):
        return seed
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise TypeError(f"seed: expected an int or a numpy.random.Generator, got {type(seed).__name__}")
    if seed < 0:
        raise ValueError(f"seed: expected an int >= 0, got {seed}")
    return np.random.default_rng(int(seed))


def at_least(name: str, value: float, least: float) -> None:
    """ValueError for a number below `least`, or NaN."""
    if not value >= least:
        raise ValueError(f"{name}: expected a number >= {least}, got {value}")


def above_zero(name: str, value: float) -> None:
    """ValueError for a number that is not above 0, or not finite."""
    if not 0.0 < value < float("inf"):
        raise ValueError(f"{name}: expected a finite number above 0, got {value}")


def count(name: str, value: int, least: int = 1) -> None:
    """TypeError for what is no int, ValueError for one below `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name}: expected an int >= {least}, got {value}")
