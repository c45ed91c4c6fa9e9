"""Stand-ins of frameworks: modules in `sys.modules` with functions of the right names, parameters and meaning.

They are written from what the frameworks' functions are described to give, in plain PyTorch. Beside the real packages
the same is tested by `make test-verl` and its like (tests/real_frameworks).
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from importlib import metadata
from typing import Any

import pytest

Modules = dict[str, types.ModuleType]


def install(monkeypatch: pytest.MonkeyPatch, name: str, version: str, contents: dict[str, dict[str, Any]]) -> Modules:
    """Modules by path with these contents, their packages, and a distribution `name` of this version.

    Functions and classes are said to be of the module that they stand in.
    """
    modules: Modules = {}
    for path in contents:
        parts = path.split(".")
        for end in range(1, len(parts) + 1):
            modules.setdefault(".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
    for path, module in modules.items():
        module.__path__ = []  # type: ignore[attr-defined]
        vars(module).update(contents.get(path, {}))
        monkeypatch.setitem(sys.modules, path, module)
        parent, _, last = path.rpartition(".")
        if parent:
            setattr(modules[parent], last, module)
    for found in [name for name in sys.modules if name.startswith(f"{path.split('.')[0]}.") and name not in modules]:
        monkeypatch.delitem(sys.modules, found)
    own: Callable[[str], str] = metadata.version
    monkeypatch.setattr(metadata, "version", lambda asked: version if asked == name else own(asked))
    return modules
