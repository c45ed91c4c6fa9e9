"""Hyper-parameter values: which may be given for which, and which of them shape the formula."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .arrays import library_of

Setting = Any  # a hyper-parameter's value: number, bool, str, None, or an array


class Form(enum.Enum):
    """How a numeric hyper-parameter comes: as one number, as an array of no dimension, as one value per item."""

    NUMBER = "number"
    SCALAR = "scalar"
    ITEMS = "items"


Forms = tuple[tuple[str, Any], ...]  # (name, Form, or the value itself where it shapes the formula)


def form_of(value: Setting) -> Any:
    """Return the value's form; a bool, str or None shapes the formula and stands for itself."""
    if isinstance(value, bool | str) or value is None:
        return value
    if is_array(value):
        return Form.ITEMS if len(value.shape) else Form.SCALAR
    return Form.NUMBER


def forms_of(settings: Mapping[str, Setting]) -> Forms:
    """Return the forms of all settings, as a key for traces."""
    return tuple((name, form_of(value)) for name, value in settings.items())


def is_array(value: Setting) -> bool:
    """Return whether the value is a tensor or an array (a NumPy number is a number)."""
    return isinstance(value, torch.Tensor | np.ndarray)


def is_number(value: Setting) -> bool:
    """Return whether the value is a real number, bools excluded."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def check_setting(name: str, default: Setting, value: Setting) -> None:
    """Refuse a value of another nature than the default's; a default of None accepts any.

    Raises:
        TypeError: names the hyper-parameter, what came and what was expected.
    """
    numeric = is_number(value) or is_array(value)
    if is_number(default) or is_array(default):
        expected, fits = "a number or an array with one value per item", numeric
    elif isinstance(default, bool | str):
        expected, fits = f"a {type(default).__name__}", isinstance(value, type(default))
    else:
        expected, fits = (
            "a number, an array, a bool, a str or None",
            numeric or isinstance(value, bool | str | type(None)),
        )
    if not fits:
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
    if is_array(value):
        library_of({name: value})  # refuses what does not hold real numbers one by one


def check_reduction(reduction: Any, allowed: tuple[str, ...]) -> str:
    """Return a reduction that is allowed here.

    Raises:
        ValueError: it is none of these.
    """
    if reduction not in allowed:
        raise ValueError(f"reduction: expected {', '.join(map(repr, allowed))}, got {reduction!r}")
    return str(reduction)


def show(value: Setting) -> str:
    """Return a setting as `repr` prints it: an array by its shape."""
    return f"<array of shape {list(value.shape)}>" if is_array(value) else repr(value)
