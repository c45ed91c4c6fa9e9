"""A test that is listed as evidence for an objective has to compute it: see `tests.evidence`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator
from typing import Any
from unittest import mock

import pytest

from prefuse.scoring import execution
from prefuse.scoring.plan import CallPlan
from tests.evidence import named

WAYS = ((execution, "score"), (execution, "value_and_grad"), (CallPlan, "bind"), (CallPlan, "bind_tensors"))
"""Every way in which columns reach an objective: functions of a plan."""


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    mark = pyfuncitem.get_closest_marker("evidence")
    if mark is None:
        return (yield)
    parameters = pyfuncitem.callspec.params if hasattr(pyfuncitem, "callspec") else {}
    claimed, computed = named(pyfuncitem.function, mark, parameters), set()

    def recorded(owner: Any, way: str) -> Any:
        original = getattr(owner, way)

        def call(plan: CallPlan, *arguments: Any) -> Any:
            computed.update(re.findall(r"\w+", plan.definition.name))  # that of a composition has its parts' names
            return original(plan, *arguments)

        return call

    with contextlib.ExitStack() as patches:
        for owner, way in WAYS:
            patches.enter_context(mock.patch.object(owner, way, recorded(owner, way)))
        result = yield
    if claimed - computed:
        pytest.fail(f"listed as evidence for {', '.join(sorted(claimed - computed))}, and did not compute it")
    return result
