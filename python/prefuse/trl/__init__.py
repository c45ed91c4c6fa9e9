"""TRL on prefuse. Importing this imports nothing of TRL's; what needs it says so when it is used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefuse.trl.acceleration import Acceleration, accelerate
    from prefuse.trl.config import PreferenceConfig
    from prefuse.trl.trainer import PreferenceTrainer

_HOMES = {
    "Acceleration": "prefuse.trl.acceleration",
    "PreferenceConfig": "prefuse.trl.config",
    "PreferenceTrainer": "prefuse.trl.trainer",
    "accelerate": "prefuse.trl.acceleration",
}
"""Which module each public name comes from."""

_NEEDS = {"PreferenceConfig": "TRL 1.16", "PreferenceTrainer": "TRL 1.16"}
"""What is not tried with other versions; `accelerate` looks at the installed one itself."""

__all__ = ["Acceleration", "PreferenceConfig", "PreferenceTrainer", "accelerate"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "trl":
            raise
        raise ImportError(
            f"prefuse.trl.{name} needs {_NEEDS.get(name, 'TRL')}, and finds {_found()}: {error}",
            name=error.name,
        ) from error


def _found() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("trl")
    except PackageNotFoundError:
        return "none"


def __dir__() -> list[str]:
    return sorted(__all__)
