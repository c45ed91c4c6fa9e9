"""Stand-ins of frameworks: modules in `sys.modules` with functions of the right names, parameters and meaning.

They are written from what the frameworks' functions are described to give, in plain PyTorch. `make test-verl` and its
like run the same tests beside the real package, which is taken wherever it is installed.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import pytest

Modules = dict[str, types.ModuleType]
Contents = Mapping[str, Mapping[str, Any]]


def is_real(name: str) -> bool:
    """Whether the real package is installed; in an environment that is made for it, it has to be."""
    found = importlib.util.find_spec(name) is not None
    if not found and os.environ.get("REAL_FRAMEWORK") == name:
        pytest.fail(f"REAL_FRAMEWORK={name}, which is not installed here")
    return found


def modules_of(contents: Contents) -> Modules:
    """Modules by path with these contents, and the packages above them."""
    modules: Modules = {}
    for path in contents:
        parts = path.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            modules.setdefault(name, types.ModuleType(name))
    for path, module in modules.items():
        module.__path__ = []
        module.__spec__ = importlib.machinery.ModuleSpec(path, None)
        vars(module).update(contents.get(path, {}))
        parent, _, last = path.rpartition(".")
        if parent:
            setattr(modules[parent], last, module)
    return modules


def install(monkeypatch: pytest.MonkeyPatch, name: str, version: str, contents: Contents) -> Modules:
    """`modules_of` these in `sys.modules`, and a distribution `name` of this version."""
    modules = modules_of(contents)
    for path, module in modules.items():
        monkeypatch.setitem(sys.modules, path, module)
    own: Callable[[str], str] = metadata.version
    monkeypatch.setattr(metadata, "version", lambda asked: version if asked == name else own(asked))
    return modules
