"""Training frameworks on prefuse: one module each, one line for the user, and the way back.

`prefuse.integrations.NAME.accelerate()` replaces the functions in which the framework makes its log-probabilities and
returns an `Acceleration`, which says what runs on prefuse and puts everything back. Importing these modules imports
nothing of the frameworks.
"""

from __future__ import annotations

import importlib
from types import ModuleType

NAMES = ("llamafactory", "megatron", "nemo_rl", "openrlhf", "swift", "verl")
"""The frameworks, as their modules here are called."""

__all__ = ["NAMES"]


def __getattr__(name: str) -> ModuleType:
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; the frameworks are {', '.join(NAMES)}")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted((*__all__, *NAMES))
