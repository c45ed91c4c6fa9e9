"""What every integration does alike: finding the framework, checking that its places are known, saying so if not."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable
from importlib import metadata
from types import ModuleType
from typing import Any, NamedTuple

from prefuse._patches import original


class Framework(NamedTuple):
    """A framework that prefuse takes hold of.

    Attributes:
        name: of its distribution.
        module: of ours, below `prefuse.integrations`.
        tried: the versions that it was tried with.
    """

    name: str
    module: str
    tried: tuple[str, ...]

    def version(self) -> str:
        """The installed one.

        Raises:
            ImportError: none is.
        """
        try:
            return metadata.version(self.name)
        except metadata.PackageNotFoundError as error:
            raise ImportError(
                f"prefuse.integrations.{self.module}: {self.name} is not installed; tried with {self._tried()}",
                name=self.name,
            ) from error

    def find(self, path: str) -> ModuleType:
        """A module of the framework's.

        Raises:
            RuntimeError: there is none of that name, or it cannot be imported.
        """
        try:
            return importlib.import_module(path)
        except Exception as error:  # whatever it, or what it imports, raises
            raise self.moved(f"the module {path} ({type(error).__name__}: {error})") from error

    def check(self, owner: Any, name: str, parameters: tuple[str, ...]) -> Any:
        """The function `name` of `owner` as the framework made it.

        Raises:
            RuntimeError: it is not there, or has other parameters than `parameters`.
        """
        function = original(owner, name)
        if function is None or tuple(inspect.signature(function).parameters) != parameters:
            raise self.moved(f"{_path(owner)}.{name}({', '.join(parameters)})")
        return function

    def check_source(self, owner: Any, name: str, digests: frozenset[str] | set[str]) -> Any:
        """The function `name` of `owner`, whose source has one of the known `digests` (see `digest`).

        Raises:
            RuntimeError: it is not there, or has another source.
        """
        function = original(owner, name)
        if function is None or digest(function) not in digests:
            raise self.moved(f"{_path(owner)}.{name} with a source that prefuse knows")
        return function

    def moved(self, what: str) -> RuntimeError:
        """The error for a place that is not as it was."""
        return RuntimeError(
            f"prefuse.integrations.{self.module} was tried with {self.name} {self._tried()}, and the installed "
            f"{self.name} {self.version()} differs where prefuse takes hold of it: not found is {what}. Nothing was "
            "changed"
        )

    def _tried(self) -> str:
        return ", ".join(self.tried)


def digest(function: Callable[..., Any]) -> str:
    """16 hexadecimal digits of a function's source; empty where there is none."""
    try:
        return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]
    except (OSError, TypeError):
        return ""


def _path(owner: Any) -> str:
    module = getattr(owner, "__module__", None)
    name = getattr(owner, "__qualname__", None) or getattr(owner, "__name__", repr(owner))
    return f"{module}.{name}" if module else str(name)
