"""The generated kernel of every registered objective: values and gradients in the emulator, both ways."""

import functools

import pytest

from tests.codegen import catalogue
from tests.codegen.harness import Library

pytestmark = pytest.mark.needs("compiler")


@functools.cache
def _library():
    return Library([run for log in catalogue.runs().values() for run in log])


@pytest.mark.evidence("emulated")
@pytest.mark.parametrize("name", catalogue.NAMES)
def test_objective(name):
    runs = catalogue.runs()[name]
    assert len(runs) == 2
    for run in runs:
        _library().check(run)
