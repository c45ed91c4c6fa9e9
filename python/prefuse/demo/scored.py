"""One batch under one objective: the call to `prefuse.preference_loss` and the columns the demo knows the answer to."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefuse.functional import sequence_logps
from prefuse.language import Objective, Score
from prefuse.losses.preference import preference_loss

from .batches import IGNORED, Batch

# What a response's own docstring scores under these names, and another function's.
_TRUTHS = {"label": (1.0, 0.0), "reward": (1.0, 0.0), "score": (1.0, 0.0), "win_prob": (1.0, 0.0)}


class Scored(NamedTuple):
    """What a pass over a batch gives.

    Attributes:
        score: the objective's.
        logps: [R] log-probabilities of the responses, in nats, without gradients.
        reference: [R] those of the reference model; None where it was not asked.
        computed: tokens that went through the model's layers.
    """

    score: Score
    logps: Tensor
    reference: Tensor | None
    computed: int


def roles_of(objective: Objective) -> tuple[str, ...]:
    """What stands in a batch: chosen and rejected, and the further roles of a pair objective."""
    return tuple(dict.fromkeys(("chosen", "rejected", *objective.roles)))


def needs_reference(objective: Objective) -> bool:
    """Whether it reads anything of the reference model."""
    return any({"ref", "kl", "rkl"} & set(name.split("_")) for name in objective.columns)


def score(objective: Objective, logits: Tensor, batch: Batch, reference: Tensor | None) -> Score:
    """Scores a batch. The logits belong to this call: a backward pass writes their gradient over them.

    Args:
        objective: of any kind whose columns the demo has.
        logits: [R, T, V] of the policy.
        batch: the tokens those logits are of.
        reference: logits of the reference model, for objectives that read one.

    Raises:
        TypeError: the objective needs a column the demo does not have; the message names it.
    """
    return preference_loss(
        objective,
        logits=logits,
        labels=batch.labels,
        reference=reference,
        shift=True,
        inplace=True,
        **known_columns(objective, batch),
        **_mismatched(objective, logits, batch, reference),
    )


def rehearse(objective: Objective) -> None:
    """Scores two made-up pairs, so that an objective the demo cannot feed fails before anything is trained.

    Raises:
        TypeError: the objective needs a column the demo does not have; the message names it.
    """
    rows = 2 * len(roles_of(objective))
    tokens = torch.zeros(rows, 3, dtype=torch.int64)
    labels = torch.tensor([[IGNORED, 0, 0]]).repeat(rows, 1)
    logits = torch.zeros(rows, 3, 2)
    score(objective, logits, Batch(tokens, labels, 2), logits if needs_reference(objective) else None)


def margins(objective: Objective, scored: Scored, batch: Batch) -> Tensor:
    """reward(chosen) − reward(rejected), [B].

    Of an objective that does not define both rewards: log-ratios to the reference, or without one log-probabilities.
    """
    both = _rewards(objective, scored.score, batch)
    if both is None:
        ratios = scored.logps if scored.reference is None else scored.logps - scored.reference
        both = ratios[: batch.pairs], ratios[batch.pairs : 2 * batch.pairs]
    return both[0] - both[1]


def _rewards(objective: Objective, score: Score, batch: Batch) -> tuple[Tensor, Tensor] | None:
    found = score.rewards
    if objective.kind == "pair":
        return (found["chosen"], found["rejected"]) if {"chosen", "rejected"} <= set(found) else None
    if not isinstance(found, Tensor) or found.shape != (len(batch.tokens),):
        return None
    return found[: batch.pairs], found[batch.pairs : 2 * batch.pairs]


def share_above(differences: Tensor) -> float:
    """Share of differences above 0, a tie counting one half."""
    return ((differences > 0).double() + (differences == 0).double() / 2).mean().item()


def known_columns(objective: Objective, batch: Batch) -> dict[str, Any]:
    """Columns that follow from which response of a pair is the chosen one, and which rows are of one prompt."""
    columns = {}
    if objective.kind == "group":
        columns["groups"] = torch.arange(len(batch.tokens)) % batch.pairs
    for name, (own, other) in _TRUTHS.items():
        for role in roles_of(objective):
            if f"{role}_{name}" in objective.columns:
                columns[f"{role}_{name}"] = torch.full((batch.pairs,), own if role == "chosen" else other)
        if name in objective.columns:  # of a pair: that its chosen one wins
            columns[name] = torch.full((batch.pairs if objective.kind == "pair" else len(batch.tokens),), other)
            columns[name][: batch.pairs] = own
    return columns


def _mismatched(objective: Objective, logits: Tensor, batch: Batch, reference: Tensor | None) -> dict[str, Any]:
    """KTO's estimate of the KL wants completions of other prompts: that is what a rejected docstring is."""
    columns: dict[str, Any] = {}
    for name, source in (("kl_logps", logits), ("ref_kl_logps", reference)):
        if name in objective.columns and source is not None:
            rows = slice(batch.pairs, 2 * batch.pairs)
            logps = sequence_logps(source[rows].detach(), batch.labels[rows], shift=True)
            columns[name] = logps.repeat(len(batch.tokens) // batch.pairs)
    return columns
