"""What trainings of frameworks log and end at, and how far two of them are apart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor


class Run(NamedTuple):
    """What a training left behind."""

    losses: list[float]
    """Of each call, which the log rounds to four digits."""
    logged: list[dict[str, float]]
    weights: dict[str, Tensor]


@contextlib.contextmanager
def noting(kind: Any, scored: Any, method: str, made: list[Any], losses: list[float]) -> Iterator[None]:
    """Notes the instances of `kind` that are made, and the losses that a method of the class `scored` returns."""
    init, compute = kind.__init__, getattr(scored, method)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        made.append(self)

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = compute(self, *args, **kwargs)
        losses.append(float(loss))
        return loss

    with mock.patch.object(kind, "__init__", __init__), mock.patch.object(scored, method, noted):
        yield


def run_of(trainer: Any, losses: list[float], changing: tuple[str, ...]) -> Run:
    """What a trainer logged at its steps, without names that have a part in `changing`, and its weights."""
    logged = [
        {name: float(value) for name, value in entry.items() if not any(part in name for part in changing)}
        for entry in trainer.state.log_history
    ]
    weights = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    return Run(losses, [entry for entry in logged if entry], weights)


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
