"""The loops that fit between a trainer's steps, as callbacks of `transformers.Trainer` and TRL's trainers.

Importing this module imports `transformers`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback

from ._weights import check_count, check_share, copied, in_float32, load
from .extrapolation import extrapolate_weights
from .reference import frozen_copy, refresh_reference


class ReferenceRefresh(TrainerCallback):  # type: ignore[misc]
    """Refreshes a trainer's reference every so many optimiser steps: TR-DPO (arXiv:2404.09656).

        trainer.add_callback(ReferenceRefresh(trainer.ref_model, every=512))

    Unlike TRL's ``sync_ref_model`` it takes any module, and any trainer.
    """

    def __init__(self, reference: nn.Module | None, *, every: int = 512, alpha: float = 1.0) -> None:
        """Refresh a reference.

        Args:
            reference: the module that the trainer takes reference log-probabilities from.
            every: optimiser steps between updates.
            alpha: α of `refresh_reference`: 1 a hard update, 0.5-0.6 with a small `every` a soft one.

        Raises:
            TypeError: no reference (a trainer with adapters has none).
            ValueError: no interval, or α outside [0, 1].
        """
        check_count("every", every)
        check_share("alpha", alpha)
        self._reference, self._every, self._alpha = _reference(reference), every, alpha

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse log-probabilities that were computed beforehand: they would not change with the reference."""
        _refuse_precomputed(args)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refresh after every so many steps."""
        if state.global_step % self._every == 0:
            refresh_reference(self._reference, kwargs["model"], alpha=self._alpha)


class WeightAverage(TrainerCallback):  # type: ignore[misc]
    """Keeps an exponential moving average of the weights while a trainer trains.

    Attributes:
        average: the averaged module, frozen, its 16-bit weights in float32: in 16 bits small
            steps would be rounded away. None before training began.
    """

    def __init__(self, *, decay: float = 0.999) -> None:
        """Average with this decay per optimiser step, in [0, 1].

        Raises:
            ValueError: a decay outside [0, 1].
        """
        check_share("decay", decay)
        self.average: nn.Module | None = None
        self._decay = decay

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start from the weights before the first step; a second training goes on with the average of the first."""
        if self.average is None:
            self.average = in_float32(frozen_copy(kwargs["model"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the new weights in."""
        assert self.average is not None
        refresh_reference(self.average, kwargs["model"], alpha=1.0 - self._decay)


class Acceleration(TrainerCallback):  # type: ignore[misc]
    """Accelerated PO between the rounds of one trainer (arXiv:2410.06293): a round is a call of ``trainer.train()``.

    A round begins at, and refers to, the extrapolation of the last two rounds' results; it leaves what it trained.
    The optimiser is the trainer's business: a new ``train()`` makes a new one.
    """

    def __init__(self, reference: nn.Module | None, *, alpha: float = 0.3) -> None:
        """Accelerate.

        Args:
            reference: the trainer's, refreshed as each round begins.
            alpha: α, 0.1-0.6; 0 refreshes the reference only, which is iterative DPO.

        Raises:
            TypeError: no reference (a trainer with adapters has none).
            ValueError: a negative α.
        """
        if alpha < 0.0:
            raise ValueError(f"alpha: expected 0 or more, got {alpha!r}")
        self._reference, self._alpha = _reference(reference), alpha
        self._trained: list[dict[str, Tensor]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Extrapolate from the last two rounds, if there were any, and refresh the reference."""
        _refuse_precomputed(args)
        policy = kwargs["model"]
        if len(self._trained) < 2:
            self._trained.append(copied(policy))
        else:
            previous, current = self._trained
            load(policy, extrapolate_weights(current, previous, alpha=self._alpha))
        refresh_reference(self._reference, policy)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep what the round trained."""
        self._trained = [self._trained[-1], copied(kwargs["model"])]


def _reference(reference: nn.Module | None) -> nn.Module:
    if not isinstance(reference, nn.Module):
        raise TypeError(
            f"reference: expected a module, got {type(reference).__name__}; a trainer without a reference model of its "
            "own (adapters, precomputed log-probabilities) has nothing to refresh"
        )
    return reference


def _refuse_precomputed(args: Any) -> None:
    if getattr(args, "precompute_ref_log_probs", False):
        raise ValueError("precompute_ref_log_probs: is True, but the reference changes during training; expected False")
