"""Worked numbers, six decimals: a module for each of the package's.

A row of `ROWS` is objective, hyper-parameters, columns, loss and gradients of the mean loss by argument name; of
`VARIANTS` objective, library, hyper-parameters, columns and loss; of `WEIGHTS` objective, hyper-parameters, columns and
`.losses`, for objectives whose value per item is the point. The numbers were computed by running the libraries or the
authors' code, or from the papers' formulas (those that no library has by mpmath with 50 digits); comments name the
entry. Where a comment names libraries.md, the number is what the library's code gave.
"""

from __future__ import annotations

import importlib
import pkgutil

_MODULES = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]

ROWS, VARIANTS, WEIGHTS = (
    [row for module in _MODULES for row in getattr(module, name, [])] for name in ("ROWS", "VARIANTS", "WEIGHTS")
)
