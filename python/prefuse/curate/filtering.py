"""Policy filtration, PF-PPO (Shen and Zhang 2024, arXiv:2409.06957): train on responses whose reward can be trusted.

A reward model is least reliable in the middle of its range. So of the N responses to a prompt some are left out, or
resampled with other weights, by one of three rules: ``"best"`` (BoN) keeps the best, ``"best_random"`` (BR) the best
and others at random, ``"best_worst"`` (BW) the best and the worst.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._numbers import Array, Seed, count, floats, generator, like
from ._rows import Floats, Indices, Rows, table
from .ranking import positions_within, rank_within_groups, ranked

_BEST_OVER_OTHERS = 4.0  # of "best_random", in the authors' code: 0.4 against 0.1


def filter_weights(scores: Array, groups: Array, *, rule: str = "best_random") -> Array:
    """Probabilities with which to resample each group's responses, [N]; they sum to 1 over a group.

    Args:
        scores: rewards, [N].
        groups: which prompt a response answers, integers [N].
        rule: ``"best"``; ``"best_random"``, the best four times as likely as each other; ``"best_worst"``, half and
        half.

    Raises:
        ValueError: the rule is none of these, and what `rank_within_groups` raises.
    """
    _must_be_rule(rule)
    order, offsets = (np.asarray(part, np.int64) for part in rank_within_groups(scores, groups))
    sizes, rank = np.repeat(np.diff(offsets), np.diff(offsets)), positions_within(offsets)
    best, worst = rank == 0, rank == sizes - 1
    if rule == "best":
        share = best.astype(float)
    elif rule == "best_worst":
        share = (best.astype(float) + worst) / 2.0
    else:
        share = np.where(best, _BEST_OVER_OTHERS, 1.0) / (_BEST_OVER_OTHERS + sizes - 1.0)
    weights = np.empty(len(order))
    weights[order] = share
    return like(scores, weights)


def filtered(
    rows: Rows,
    *,
    rule: str = "best_random",
    others: int = 1,
    prompt: str = "prompt",
    score: str = "score",
    seed: Seed = 0,
) -> Rows:
    """Keep the responses that a rule keeps, in the order they had; a prompt's only response is kept.

    Args:
        rows: one per response.
        rule: see the module.
        others: how many random ones ``"best_random"`` keeps beside the best.
        prompt, score: the columns' names.
        seed: int or generator.
    """
    _must_be_rule(rule)
    count("others", others, least=0)
    given = table(rows)
    order, offsets = ranked(given.numbers(score), given.group_ids(prompt))
    rank, sizes = positions_within(offsets), np.repeat(np.diff(offsets), np.diff(offsets))
    if rule == "best_worst":
        kept = (rank == 0) | (rank == sizes - 1)
    else:
        kept = rank <= (others if rule == "best_random" else 0)
    if rule == "best_random":
        order = _others_shuffled(order, offsets, generator(seed))
    return given.selected(np.sort(order[kept]))


def reward_fit(rewards: Any, truth: Any) -> float:
    """How well rewards tell the truth: R² of a line through the mean true score of each distinct reward.

    Means weigh by how many responses have that reward. The paper takes the rule whose kept responses have the highest
    fit; round rewards first, so that many share one.

    Args:
        rewards: of the responses kept, [N].
        truth: their true scores, e.g. whether the program passed, [N].

    Returns:
        In [0, 1]; 1 where the mean true scores do not vary.

    Raises:
        ValueError: there are not at least two different rewards.
    """
    x, y = floats("rewards", rewards), floats("truth", truth)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"truth: expected one per reward, shape {x.shape}, got {y.shape}")
    levels, which = np.unique(x, return_inverse=True)
    if len(levels) < 2:
        raise ValueError(f"rewards: expected at least two different ones, got {len(levels)}")
    means = (np.bincount(which, weights=y) / np.bincount(which))[which]
    level, mean = x - x.mean(), means - means.mean()
    total = float(mean @ mean)
    return float((level @ mean) ** 2 / ((level @ level) * total)) if total > 0.0 else 1.0


def _others_shuffled(order: Indices, offsets: Indices, random: np.random.Generator) -> Indices:
    """Each group's best first, then the others in random order."""
    place: Floats = random.random(len(order))
    place[offsets[:-1][np.diff(offsets) > 0]] = -1.0
    group = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return order[np.lexsort((place, group))]


def _must_be_rule(rule: str) -> None:
    if rule not in ("best", "best_random", "best_worst"):
        raise ValueError(f'rule: expected "best", "best_random" or "best_worst", got {rule!r}')
