"""Finite differences of a loss whose detached parts are held at the value they have.

Where a weight or a baseline takes no gradient, the gradient is not the loss's derivative, but it is that of the loss in
which they are numbers. The references detach with ``Tensor.detach``: here a first pass writes down what it returns, and
the passes at shifted columns get the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch

from prefuse.language import Objective

from .numbers.batches import Columns

Loss = Callable[[dict[str, torch.Tensor]], torch.Tensor]


def detaches(objective: Objective) -> bool:
    """Whether an objective's loss has parts through which no gradient passes."""
    traced = objective._traced(None)
    return "stop_gradient(" in traced.trace.graph.text(traced.loss.node)


@contextmanager
def written_down(values: list[torch.Tensor]) -> Iterator[None]:
    detach = torch.Tensor.detach

    def note(tensor: torch.Tensor) -> torch.Tensor:
        values.append(detach(tensor).clone())
        return values[-1]

    with mock.patch.object(torch.Tensor, "detach", note):
        yield


@contextmanager
def given_again(values: list[torch.Tensor]) -> Iterator[None]:
    left = iter(values)
    with mock.patch.object(torch.Tensor, "detach", lambda _: next(left)):
        yield
    assert next(left, None) is None


def slopes(loss: Loss, columns: Columns, column: str, step: float = 1e-6) -> np.ndarray:
    """d(loss)/d(column) by central differences, what is detached staying as it is."""
    tensors = {name: torch.tensor(value) for name, value in columns.items()}
    values: list[torch.Tensor] = []
    with written_down(values):
        loss(tensors)
    found = np.zeros(columns[column].size)
    for k in np.flatnonzero(np.isfinite(columns[column])):
        ends = []
        for sign in (1.0, -1.0):
            moved = tensors[column].clone()
            moved.view(-1)[k] += sign * step
            with given_again(values):
                ends.append(loss(tensors | {column: moved}).item())
        found[k] = (ends[0] - ends[1]) / (2 * step)
    return found.reshape(columns[column].shape)
