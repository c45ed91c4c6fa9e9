"""The two trainings of the demo: supervised on docstrings, then on preferences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prefuse.functional import response_lengths, sequence_logps
from prefuse.language import Objective

from .batches import Batch
from .model import logits_of
from .scored import Scored, margins, share_above

_WARM_UP_STEPS = 20
_LAST_RATE = 0.1  # of the highest learning rate
_LONGEST_GRADIENT = 1.0
_WEIGHT_DECAY = 0.05
_BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class Step:
    """What one step of preference training showed on its own batch, before its update.

    `tokens` counts the batch's rows of logits, padding included, `computed` those that went through the model's layers;
    log-probabilities are nats per response.
    """

    step: int
    tokens: int
    computed: int
    loss: float
    accuracy: float
    margin: float
    chosen_logp: float
    rejected_logp: float


def fine_tune(
    model: nn.Module, batches: Iterator[Batch], steps: int, rate: float, report: Callable[[int, float], None]
) -> None:
    """Supervised training on the chosen responses: the mean negative log-probability per token.

    Args:
        model: trained in place.
        batches: where the pairs come from.
        steps: how many updates.
        rate: the highest learning rate.
        report: called after each step with its number, from 1, and its loss in nats per token.
    """
    trainer = _Trainer(model.parameters(), steps, rate, _WARM_UP_STEPS)
    for step in range(1, steps + 1):
        batch = next(batches)
        tokens, labels = batch.tokens[: batch.pairs], batch.labels[: batch.pairs]
        logps = sequence_logps(logits_of(model, tokens), labels, shift=True, inplace=True)
        loss = -logps.sum() / response_lengths(labels, shift=True).sum()
        trainer.update(loss)
        report(step, loss.item())


def prefer(
    objective: Objective,
    parameters: Iterable[nn.Parameter],
    score: Callable[[Batch], Scored],
    batches: Iterator[Batch],
    steps: int,
    rate: float,
    report: Callable[[Step], None],
    *,
    warm_up: int = _WARM_UP_STEPS,
) -> None:
    """Preference training with any objective the demo can feed.

    Args:
        objective: what `score` scores by.
        parameters: trained in place.
        score: a pass of policy and reference over a batch.
        batches: where the pairs come from.
        steps: how many updates.
        rate: the highest learning rate.
        report: called after each step.
        warm_up: steps in which the learning rate rises to `rate`.
    """
    trainer = _Trainer(parameters, steps, rate, warm_up)
    for step in range(1, steps + 1):
        batch = next(batches)
        scored = score(batch)
        trainer.update(scored.score.loss)
        chosen, rejected = scored.logps[: batch.pairs], scored.logps[batch.pairs : 2 * batch.pairs]
        found = margins(objective, scored, batch)
        report(
            Step(
                step=step,
                tokens=batch.tokens.numel(),
                computed=scored.computed,
                loss=scored.score.loss.item(),
                accuracy=share_above(found),
                margin=found.mean().item(),
                chosen_logp=chosen.mean().item(),
                rejected_logp=rejected.mean().item(),
            )
        )


class _Trainer:
    """AdamW with a linear warm-up and decay and a clipped gradient."""

    def __init__(self, parameters: Iterable[nn.Parameter], steps: int, rate: float, warm_up: int) -> None:
        self._parameters = list(parameters)
        self._optimizer = torch.optim.AdamW(self._parameters, lr=rate, betas=_BETAS, weight_decay=_WEIGHT_DECAY)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer,
            lambda step: min(1.0, (step + 1) / warm_up) * (1.0 - (1.0 - _LAST_RATE) * step / steps),
        )

    def update(self, loss: Tensor) -> None:
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, _LONGEST_GRADIENT)
        self._optimizer.step()
        self._schedule.step()
