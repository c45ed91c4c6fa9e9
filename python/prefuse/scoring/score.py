"""What an objective gives back."""

from __future__ import annotations

from typing import Any, Protocol

from prefuse._display.html import code, table

from .arrays import Array


class Source(Protocol):
    """Where a score's rewards and metrics come from."""

    def rewards(self, extras: Array) -> dict[str, Array]:
        """Return the rewards by role."""

    def metrics(self, extras: Array) -> dict[str, Any]:
        """Return the metrics by name."""


class Score:
    """Loss, losses, rewards and metrics of one batch.

    Attributes:
        loss: the reduced loss, a number (nats for log-likelihood losses); with `reduction="none"` the same as `losses`.
        plan: how the fused head ran, where the score came from hidden states; else None.
        statistics: token statistics that were asked for beside, by name: of `preference_loss`; else empty.

    With torch `loss` and `losses` carry gradients; rewards and metrics never do.
    """

    __slots__ = ("_extras", "_gradients", "_losses", "_source", "loss", "plan", "statistics")

    def __init__(
        self, loss: Array, losses: Array, source: Source, extras: Array, gradients: dict[str, Array] | None = None
    ) -> None:
        self.loss = loss
        self._losses = losses
        self._source = source
        self._extras = extras
        self._gradients = gradients
        self.plan: Any = None
        self.statistics: dict[str, Array] = {}

    @property
    def losses(self) -> Array:
        """One value per pair, response or group, in the caller's order (groups by ascending id)."""
        if isinstance(self._losses, int):  # so many at the head of the extras
            self._losses = self._extras[: self._losses]
        elif callable(self._losses):  # what makes them carry gradients
            self._losses = self._losses()
        return self._losses

    @property
    def rewards(self) -> Any:
        """Implicit rewards, detached: a dict by role for pairs, one array [R] otherwise; an empty dict without any.

        Where an objective that is not of pairs names values beside its reward, a dict as well, the reward under "".
        """
        rewards = self._source.rewards(self._extras)
        return rewards[""] if rewards.keys() == {""} else rewards

    @property
    def metrics(self) -> dict[str, Any]:
        """Batch means under the names TRL's trainers log: `rewards/chosen`, `rewards/accuracies`, `logps/rejected`, …

        They become Python floats when asked for, not before.
        """
        return self._source.metrics(self._extras)

    @property
    def gradients(self) -> dict[str, Array]:
        """d(loss)/d(column) by argument name, each in its column's shape and dtype.

        Raises:
            AttributeError: the score came from a call on torch tensors, whose gradients autograd gives.
        """
        if self._gradients is None:
            raise AttributeError(
                "gradients: use objective.value_and_grad(...) to have them, or score.loss.backward() for autograd's"
            )
        return self._gradients

    def with_loss(self, loss: Array) -> Score:
        """Return the score with another loss in its place, which alone carries gradients."""
        return self.with_tensors(loss, self.losses.detach())

    def with_tensors(self, loss: Array, losses: Array) -> Score:
        """Return the score with another loss and other losses, as they came through a module's forward pass."""
        score = Score(loss, losses, self._source, self._extras)
        score.plan, score.statistics = self.plan, self.statistics
        return score

    def to(self, device: Any) -> Score:
        """Return the score with its tensors on a torch device."""
        gradients = self._gradients and {name: value.to(device) for name, value in self._gradients.items()}
        return Score(
            self.loss.to(device), self.losses.to(device), _Moved(self._source, device), self._extras, gradients
        )

    def __repr__(self) -> str:
        return f"Score({', '.join(f'{name}={value}' for name, value in self._figures().items())})"

    def _repr_html_(self) -> str:
        rows = [(code(name), value) for name, value in self._figures().items()]
        if self.plan is not None:
            rows.append((code("plan"), f"{self.plan.name}: {self.plan.reason}"))
        if self._gradients:
            rows.append((code("gradients"), f"to {', '.join(self._gradients)}"))
        return table(rows)

    def _figures(self) -> dict[str, str]:
        loss = f"{self.loss.item():.6g}" if getattr(self.loss, "shape", ()) == () else f"<{len(self.losses)} values>"
        return {"loss": loss, **{name: f"{float(value):.4g}" for name, value in self.metrics.items()}}


class _Moved:
    """A source whose rewards are handed out on another device."""

    def __init__(self, source: Source, device: Any) -> None:
        self._source = source
        self._device = device

    def rewards(self, extras: Array) -> dict[str, Array]:
        return {role: value.to(self._device) for role, value in self._source.rewards(extras).items()}

    def metrics(self, extras: Array) -> dict[str, Any]:
        return self._source.metrics(extras)
