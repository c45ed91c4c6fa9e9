"""What trainings of frameworks log and end at, and how far two of them are apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Run(NamedTuple):
    """What a training left behind."""

    losses: list[float]
    """Of each call, which the log rounds to four digits."""
    logged: list[dict[str, float]]
    weights: dict[str, Tensor]


def differences(one: Run, other: Run) -> dict[str, float]:
    """By the name of what is logged, the largest difference, relative where numbers are above 1."""
    assert [sorted(entry) for entry in one.logged] == [sorted(entry) for entry in other.logged]
    pairs = zip(one.losses, other.losses, strict=True)
    found = {"exact losses": max(abs(a - b) / max(1.0, abs(a)) for a, b in pairs)}
    for a, b in zip(one.logged, other.logged, strict=True):
        for name, value in a.items():
            distance = abs(value - b[name]) / max(1.0, abs(value))
            found[name] = max(found.get(name, 0.0), distance)
    found["weights"] = max(float((value - other.weights[name]).abs().max()) for name, value in one.weights.items())
    return found


def same_bits(one: Run, other: Run) -> bool:
    """Whether two trainings are the same in every number."""
    same = one.losses == other.losses and one.logged == other.logged
    return same and all(torch.equal(v, other.weights[n]) for n, v in one.weights.items())
