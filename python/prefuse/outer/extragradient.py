"""The extra step of EGPO (arXiv:2503.08942), and the snapshot that it goes back to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from ._weights import copied, load

T = TypeVar("T")


class Snapshot:
    """A module's weights and its optimiser's state as they were, to go back to any number of times.

    The optimiser's state is copied whole: moments, step counts, learning rates. A scheduler or a gradient scaler has a
    state of its own, which is not.
    """

    def __init__(self, policy: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        self._policy, self._optimizer = policy, optimizer
        self._weights = copied(policy)
        self._state = None if optimizer is None else copy.deepcopy(optimizer.state_dict())

    def restore(self) -> None:
        """Put weights, buffers and optimiser back; parameters stay the same objects."""
        load(self._policy, self._weights)
        if self._optimizer is not None:
            # What load_state_dict is given becomes the optimiser's own, and its next step would write into it.
            self._optimizer.load_state_dict(copy.deepcopy(self._state))  # type: ignore[arg-type]


def extragradient_step(
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    targets: Callable[[], T],
    loss: Callable[[T], Tensor],
) -> tuple[float, float]:
    """One step of extragradient preference optimization (Zhou et al. 2025, EGPO, arXiv:2503.08942, algorithm 1).

    A step to a midpoint with the win rates as the policy stands; then from the start again, optimiser state included,
    a step with the midpoint's win rates. Gradients are taken at the start both times.

    Args:
        policy: trained in place.
        optimizer: over its parameters.
        targets: samples the opponents y'' from the policy as it stands and returns what `loss` wants of them, such as
            win rates against them; called twice, without gradients.
        loss: the scalar loss against such targets, at the policy as it stands, with gradients: that of
            `prefuse.objectives.egpo`. Called twice.

    Returns:
        The loss before the step to the midpoint, and that of the step that counts.
    """
    start = Snapshot(policy, optimizer)
    first = _update(optimizer, loss, _without_gradients(targets))
    middle = _without_gradients(targets)
    start.restore()
    return first, _update(optimizer, loss, middle)


def _without_gradients(targets: Callable[[], T]) -> T:
    with torch.no_grad():
        return targets()


def _update(optimizer: torch.optim.Optimizer, loss: Callable[[T], Tensor], targets: T) -> float:
    optimizer.zero_grad()
    value = loss(targets)
    value.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return value.item()
