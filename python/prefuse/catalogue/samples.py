"""Columns to try an objective on: plausible ones, extreme ones, and a grid of log-ratios."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefuse.scoring.objective import Objective
from prefuse.tracing.kinds import BATCH

Columns = dict[str, NDArray[Any]]

GROUPS, MEMBERS, TOKENS = 3, 4, 5
"""The size of a sample: so many groups (or a few more pairs), responses of each, tokens of each response."""

REFERENCE_LOGP, LENGTH = -20.0, 20
"""The reference's log-probability of a response in a grid of log-ratios, and its length."""


def sample(objective: Objective, seed: int = 0, extreme: float | None = None) -> Columns:
    """Random columns of every argument a call takes.

    Args:
        objective: what is to be called.
        seed: of the random numbers.
        extreme: a log-ratio; the first responses have it and its negative, lengths of 1 and 100 000 among them.
    """
    return _Sampler(objective, np.random.default_rng(seed), extreme).columns()


def log_ratio_grid(
    objective: Objective, chosen: NDArray[Any], rejected: NDArray[Any], columns: dict[str, Any]
) -> Columns:
    """Columns of a pair objective at given log-ratios (log-probabilities over the reference's, where it reads none).

    Args:
        objective: a pair objective.
        chosen: [B] log-ratios of the chosen response, in nats.
        rejected: [B], of the rejected one.
        columns: further columns it reads, a number or one value per pair; those that are not given are 1/2.

    Raises:
        ValueError: it is not of pairs, or reads columns by token.
    """
    if objective.kind != "pair":
        raise ValueError(f"objective: expected a pair objective, got {objective.name}, a {objective.kind} objective")
    ratios = {"chosen": chosen, "rejected": rejected}
    found: Columns = {}
    for name, info in objective.columns.items():
        if info.level.startswith("token"):
            raise ValueError(f"objective: {objective.name} reads {name} by token; expected log-ratios to be enough")
        role = next((role for role in ratios if role in name.split("_")), None)
        if name in columns:
            found[name] = np.broadcast_to(np.asarray(columns[name], np.float64), chosen.shape).copy()
        elif name.startswith("ref_") and name.endswith("logps"):
            found[name] = np.full(chosen.shape, REFERENCE_LOGP)
        elif name.endswith("logps"):
            found[name] = REFERENCE_LOGP + (ratios[role] if role else np.zeros(chosen.shape))
        elif name.endswith("lengths"):
            found[name] = np.full(chosen.shape, LENGTH)
        else:
            found[name] = np.full(() if info.level == BATCH else chosen.shape, 0.5)
    return found


class _Sampler:
    """Columns that fit each other."""

    def __init__(self, objective: Objective, random: np.random.Generator, extreme: float | None) -> None:
        self.objective = objective
        self.random = random
        self.extreme = extreme
        self.pairs = objective.kind == "pair"
        self.responses = GROUPS * MEMBERS
        self.lengths = random.integers(1, 30, self.responses)
        if extreme is not None:
            self.lengths[:4] = 1, 100_000, 1, 100_000
        self.bases: dict[str, NDArray[Any]] = {}

    def columns(self) -> Columns:
        return {name: self._column(name, info.level, info.dtype) for name, info in self.objective.columns.items()}

    def _column(self, name: str, level: str, dtype: str) -> NDArray[Any]:
        if name == "groups":
            return np.arange(self.responses) % GROUPS
        if name.endswith("mask"):
            return np.asarray(np.arange(TOKENS) < 1 + np.arange(self.responses)[:, None] % TOKENS)
        if level.startswith("token"):
            return self._token_column(name)
        if dtype == "int":
            return self.lengths
        if name.endswith("logps"):
            return self._log_probabilities(name)
        if name == "label":
            return np.asarray(self.lengths, np.int64)
        return np.asarray(self.random.uniform(0.05, 0.95, self._shape(level)))

    def _shape(self, level: str) -> tuple[int, ...]:
        shapes: dict[str, tuple[int, ...]] = {BATCH: (), "(i, j)": (GROUPS * MEMBERS**2,), "group": (GROUPS,)}
        return shapes.get(level, (self.responses,))

    def _log_probabilities(self, name: str) -> NDArray[Any]:
        """The policy's are a log-ratio away from the reference's."""
        base = self._base(name.removeprefix("ref_"))
        if name.startswith("ref_"):
            return base.copy()
        ratio = self.random.normal(0, 2, self.responses)
        if self.extreme is not None:
            sign = -1 if "rejected" in name else 1
            ratio[:4] = np.array([1, 1, -1, -1]) * self.extreme * sign
        return np.asarray(base + ratio)

    def _base(self, name: str) -> NDArray[Any]:
        """The reference's log-probabilities of one role."""
        if name not in self.bases:
            self.bases[name] = -self.random.uniform(0.2, 2.0, self.responses) * self.lengths
        return self.bases[name]

    def _token_column(self, name: str) -> NDArray[Any]:
        values = self.random.uniform(0.05, 0.95, (self.responses, TOKENS))
        if "logps" not in name:
            return values
        if self.extreme is not None and not name.startswith("ref_"):
            values[:2, 0] = -self.extreme if self.extreme < 0 else self.extreme
        return -values if self.extreme is None or name.startswith("ref_") else -np.abs(values)
