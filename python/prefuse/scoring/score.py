"""What an objective gives back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .arrays import Array


class Score:
    """Loss, losses, rewards and metrics of one batch.

    Attributes:
        loss: the reduced loss, a number (nats for log-likelihood losses); with `reduction="none"` the same as `losses`.
        losses: one value per pair, response or group, in the caller's order (groups by ascending id).

    With torch both carry gradients; rewards and metrics never do.
    """

    __slots__ = ("_gradients", "_metrics", "_rewards", "loss", "losses")

    def __init__(
        self,
        loss: Array,
        losses: Array,
        rewards: Callable[[], dict[str, Array]],
        metrics: Callable[[], dict[str, Any]],
        gradients: dict[str, Array] | None = None,
    ) -> None:
        self.loss = loss
        self.losses = losses
        self._rewards = rewards
        self._metrics = metrics
        self._gradients = gradients

    @property
    def rewards(self) -> Any:
        """Implicit rewards, detached: a dict by role for pairs, one array [R] otherwise; empty dict if there are none."""
        rewards = self._rewards()
        return rewards[""] if "" in rewards else rewards

    @property
    def metrics(self) -> dict[str, Any]:
        """Batch means under the names TRL's trainers log: `rewards/chosen`, `rewards/accuracies`, `logps/rejected`, …"""
        return self._metrics()

    @property
    def gradients(self) -> dict[str, Array]:
        """d(loss)/d(column) by argument name, each in its column's shape.

        Raises:
            AttributeError: the score came from a call on torch tensors, whose gradients autograd gives.
        """
        if self._gradients is None:
            raise AttributeError(
                "gradients: call objective.value_and_grad(...) for them, or loss.backward() for autograd's"
            )
        return self._gradients

    def __repr__(self) -> str:
        loss = f"{float(self.loss):.6g}" if getattr(self.loss, "shape", ()) == () else repr(self.loss)
        metrics = ", ".join(f"{name}={value:.4g}" for name, value in self.metrics.items())
        return f"Score(loss={loss}, {metrics})" if metrics else f"Score(loss={loss})"
