"""The fixture `processes`, 1 and 2 of them, with DeepSpeed's extension built; and a table of what was measured.

DeepSpeed is not among the tests' requirements: it compiles that extension for minutes. `make test-deepspeed` installs
it, in an environment of its own; elsewhere the tests here are skipped, with ``CI=true`` too.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from tests.distributed.processes import Processes, started
from tests.real_deepspeed import MEASURED

BUILD = """
from deepspeed.accelerator import get_accelerator
builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
builder.load()
"""
"""What `deepspeed.init_distributed` would build in every process, within the time that a process may take to answer."""

MINUTES = 30
"""Until the build counts as stuck."""


@pytest.fixture(scope="session")
def extension() -> None:
    """DeepSpeed on the CPU, and its extension compiled."""
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs DeepSpeed: make test-deepspeed")
    os.environ["DS_ACCELERATOR"] = "cpu"
    done = subprocess.run([sys.executable, "-c", BUILD], capture_output=True, text=True, timeout=60 * MINUTES)
    if done.returncode:
        pytest.fail(f"DeepSpeed's extension was not built; it takes ninja and g++:\n{done.stderr}", pytrace=False)


@pytest.fixture(scope="session", params=[1, 2], ids=["1 process", "2 processes"])
def processes(request: pytest.FixtureRequest, extension: None) -> Iterator[Processes]:
    yield from started(request.param)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table for docs/distributed.md: the largest differences of each kind of case."""
    if not MEASURED:
        return
    from importlib.metadata import version

    write = terminalreporter.write_line
    write(f"\nDeepSpeed {version('deepspeed')}, torch {torch.__version__}, transformers {version('transformers')}")
    write("| cases | number | loss | gradients | parameters |")
    write("| --- | --- | --- | --- | --- |")
    for kind, found in MEASURED.items():
        worst = [max(of_case[name] for of_case in found) for name in ("loss", "gradients", "parameters")]
        write(f"| {kind} | {len(found)} | {' | '.join(format(value, '.1e') for value in worst)} |")
