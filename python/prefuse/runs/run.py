"""Logged numbers under one set of names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

STEPS = ("train/global_step", "global_step", "step", "_step")
"""The names under which a row of a log holds its step, the first that is there."""

EVALUATION = "eval/"


class Series(NamedTuple):
    """One number over the steps of a run.

    Attributes:
        steps: `[n]`, int64, ascending.
        values: `[n]`, float64; NaN and infinities as they were logged.
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """What one training has logged.

    Attributes:
        name: of the run.
        series: by name, as TRL calls them (``loss``, ``rewards/margins``, ``logps/chosen``, …); those of an evaluation
            begin with ``eval/``.
    """

    name: str
    series: Mapping[str, Series]

    @property
    def last_step(self) -> int:
        """The last step of which anything was logged; 0 where nothing was."""
        return max((int(found.steps[-1]) for found in self.series.values()), default=0)

    def __repr__(self) -> str:
        return f"Run({self.name!r}, {len(self.series)} series, last step {self.last_step})"


def run_of(name: str, rows: Iterable[Mapping[str, Any]]) -> Run:
    """A run from rows of a log: a step, and numbers by name. What is no number is left out.

    A row without a step continues the one before it. Of two values of one step the later one counts, as after a
    training that was resumed from a checkpoint.
    """
    found: dict[str, dict[int, float]] = {}
    step = 0
    for row in rows:
        step = next((int(row[key]) for key in STEPS if _number(row.get(key)) is not None), step)
        for key, value in row.items():
            number = _number(value)
            if key not in STEPS and number is not None:
                found.setdefault(canonical(key), {})[step] = number
    return Run(name, {key: _series(values) for key, values in found.items()})


def canonical(name: str) -> str:
    """A name as TRL gives it to the trainer: without ``train/``, and with ``eval/`` for ``eval_``."""
    if name.startswith("eval_"):
        return EVALUATION + name.removeprefix("eval_")
    return name.removeprefix("train/")


def _series(values: Mapping[int, float]) -> Series:
    steps = sorted(values)
    return Series(np.array(steps, np.int64), np.array([values[step] for step in steps], np.float64))


def _number(value: Any) -> float | None:
    """A logged value as a number; None where it is none."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
