"""The example on Ray Train: two workers, each with half of the batch and half of every weight, are one.

Ray is not among the tests' requirements. `make test-ray` installs it, in an environment of its own; elsewhere the tests
here are skipped, with ``CI=true`` too.
"""

from __future__ import annotations

import math
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="needs Ray: make test-ray")

ROOT = Path(__file__).parents[2]
STEPS = 4


@pytest.fixture(scope="module")
def logs() -> Iterator[dict[int, Any]]:
    """What the example returns, by the number of its workers."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    main = runpy.run_path(str(ROOT / "examples" / "ray_train.py"))["main"]
    yield {workers: main(workers, steps=STEPS) for workers in (1, 2)}
    ray.shutdown()


def test_two_workers_are_one(logs: dict[int, Any]) -> None:
    assert len(logs[1]) == 2
    for name, alone in logs[1].items():
        together = logs[2][name]
        assert len(together) == len(alone) == STEPS
        for mine, expected in zip(together, alone, strict=True):
            assert mine["loss"] == pytest.approx(expected["loss"], rel=1e-4), name
            assert mine["weights"] == pytest.approx(expected["weights"], rel=1e-6), name


def test_a_worker_of_the_hand_written_loop_holds_half(logs: dict[int, Any]) -> None:
    (of_loop, of_trainer), (loop, trainer) = logs[1].values(), logs[2].values()
    assert loop[-1]["held"] / of_loop[-1]["held"] == pytest.approx(0.5, abs=0.01)
    assert trainer[-1]["held"] == of_trainer[-1]["held"]  # accelerate runs DDP on CPUs


def test_training_changes_the_loss(logs: dict[int, Any]) -> None:
    dpo, simpo = logs[2].values()
    assert dpo[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)  # policy and reference are still the same
    assert dpo[-1]["loss"] < 0.6 and simpo[-1]["loss"] < 0.7 * simpo[0]["loss"]
