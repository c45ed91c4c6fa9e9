"""The two trainings of the demo: supervised on docstrings, then on preferences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prefuse.functional import response_lengths, sequence_logps
from prefuse.language import Objective
from prefuse.packing import share

from .batches import Batch
from .model import logits_of
from .scored import needs_reference, rewards, score, share_above

_WARM_UP_STEPS = 20
_LAST_RATE = 0.1  # of the highest learning rate
_LONGEST_GRADIENT = 1.0
_WEIGHT_DECAY = 0.05
_BETAS = (0.9, 0.95)
_SHORTEST_SHARED = 8  # tokens; the demo's prompts are short


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
    trainer = _Trainer(model, steps, rate)
    for step in range(1, steps + 1):
        batch = next(batches)
        tokens, labels = batch.tokens[: batch.pairs], batch.labels[: batch.pairs]
        logps = sequence_logps(logits_of(model, tokens), labels, shift=True, inplace=True)
        loss = -logps.sum() / response_lengths(labels, shift=True).sum()
        trainer.update(loss)
        report(step, loss.item())


def prefer(
    objective: Objective,
    policy: nn.Module,
    reference: nn.Module,
    batches: Iterator[Batch],
    steps: int,
    rate: float,
    report: Callable[[Step], None],
    share_prompts: bool = False,
) -> None:
    """Preference training of `policy` against the frozen `reference`, with any objective the demo can feed.

    The other arguments are as in `fine_tune`; `share_prompts` computes what rows begin with alike once.
    """
    trainer = _Trainer(policy, steps, rate)
    for step in range(1, steps + 1):
        batch = next(batches)
        packed = share(batch.tokens, minimum=_SHORTEST_SHARED) if share_prompts else None
        with torch.no_grad():
            reference_logits = logits_of(reference, batch.tokens, packed) if needs_reference(objective) else None
        logits = logits_of(policy, batch.tokens, packed)
        logps = sequence_logps(logits.detach(), batch.labels, shift=True)
        scored = score(objective, logits, batch, reference_logits)
        trainer.update(scored.loss)
        chosen, rejected = logps[: batch.pairs], logps[batch.pairs : 2 * batch.pairs]
        margins = torch.sub(*(rewards(objective, scored, batch) or (chosen, rejected)))
        report(
            Step(
                step=step,
                tokens=batch.tokens.numel(),
                computed=batch.tokens.numel() if packed is None else packed.tree.tokens,
                loss=scored.loss.item(),
                accuracy=share_above(margins),
                margin=margins.mean().item(),
                chosen_logp=chosen.mean().item(),
                rejected_logp=rejected.mean().item(),
            )
        )


class _Trainer:
    """AdamW with a linear warm-up and decay and a clipped gradient."""

    def __init__(self, model: nn.Module, steps: int, rate: float) -> None:
        self._parameters = list(model.parameters())
        self._optimizer = torch.optim.AdamW(self._parameters, lr=rate, betas=_BETAS, weight_decay=_WEIGHT_DECAY)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer,
            lambda step: min(1.0, (step + 1) / _WARM_UP_STEPS) * (1.0 - (1.0 - _LAST_RATE) * step / steps),
        )

    def update(self, loss: Tensor) -> None:
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, _LONGEST_GRADIENT)
        self._optimizer.step()
        self._schedule.step()
