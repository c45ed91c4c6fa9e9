"""Every objective once more, as plain float64 PyTorch written from its definition: a module for each of the package's.

Nothing here knows the package. Formulas are the textbook ones, two-sided and unstabilised, so that an error in the
stable form that the package uses would show. A function takes the columns by the names a caller of the package uses,
then the hyper-parameters, and returns one loss per item (or one for the batch), those of pairs and points the rewards
as well. Padding may hold anything: every function picks the tokens that a mask keeps before it computes. A function
with `reads` takes its columns as attributes of its first argument; `reads` says which they are, also where a
structural option decides it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

_FORMULAS: dict[str, Callable[..., Any]] = {}
for _found in pkgutil.iter_modules(__path__):
    _module = importlib.import_module(f"{__name__}.{_found.name}")
    _FORMULAS |= {name: value for name, value in vars(_module).items() if callable(value)}


def formula(name: str) -> Callable[..., Any]:
    """The reference of this name."""
    return _FORMULAS[name]
