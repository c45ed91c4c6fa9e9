"""A test that is listed as evidence for an objective has to compute it: see `tests.evidence`."""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any
from unittest import mock

import pytest

from prefuse.scoring.plan import Plan
from tests.evidence import named

WAYS = ("score", "value_and_grad", "bind", "bind_tensors")
"""Every way in which columns reach an objective."""


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    mark = pyfuncitem.get_closest_marker("evidence")
    if mark is None:
        return (yield)
    parameters = pyfuncitem.callspec.params if hasattr(pyfuncitem, "callspec") else {}
    claimed, computed = named(pyfuncitem.function, mark, parameters), set()

    def recorded(way: str) -> Any:
        original = getattr(Plan, way)

        def call(self: Plan, *arguments: Any) -> Any:
            computed.update(re.findall(r"\w+", self.definition.name))  # that of a composition has its parts' names
            return original(self, *arguments)

        return call

    with mock.patch.multiple(Plan, **{way: recorded(way) for way in WAYS}):
        result = yield
    if claimed - computed:
        pytest.fail(f"listed as evidence for {', '.join(sorted(claimed - computed))}, and did not compute it")
    return result
