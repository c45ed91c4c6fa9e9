"""Statistical rejection sampling, RSO (Liu et al. 2023, arXiv:2309.06657): the optimal policy's samples, then pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ._numbers import Seed, at_least, count, generator, like, probabilities
from ._rows import Floats, Indices, Rows, Table, hooked, table
from .pairs import as_rows
from .ranking import Pairs, checked, group_count, positions_within, ranked

Judge = Callable[[Any, Any], Iterable[float]]
"""From two sets of rows of the caller's kind, the probability that each row of the first beats that of the second."""


def rejection_sampling_indices(scores: Any, groups: Any, *, keep: int = 8, beta: float = 0.5, seed: Seed = 0) -> Any:
    """Choose responses as the policy ``π ∝ π_sft e^{r/β}`` would draw them, without replacement (algorithm 1).

    In sweeps over what is left of a group: with M its highest score, a response of score r is accepted with probability
    ``e^{(r-M)/β}``; the accepted leave the group, until `keep` are. Two equal responses are two candidates.

    Args:
        scores: r of each response, [N].
        groups: which prompt it answers, integers [N].
        keep: how many of each group; all of a smaller one.
        beta: β of the sampler, 0.05-5, which need not be the loss's; at 0 the `keep` best.
        seed: int or generator.

    Returns:
        Indices of the accepted, group after group, in the order they were accepted.
    """
    values, ids = checked(scores, groups)
    count("keep", keep)
    at_least("beta", beta, 0.0)
    random = generator(seed)
    if beta == 0.0:
        order, offsets = ranked(values, ids)
        return like(scores, order[positions_within(offsets) < keep])
    left, accepted, taken = _by_group(ids), [np.zeros(0, np.int64)], np.zeros(group_count(ids), np.int64)
    while len(left):
        hit = _sweep(values[left], ids[left], beta, random)
        hit &= _running_count(hit, ids[left]) <= keep - taken[ids[left]]
        accepted.append(left[hit])
        taken += np.bincount(ids[left[hit]], minlength=len(taken))
        left = left[~hit & (taken[ids[left]] < keep)]
    chosen = np.concatenate(accepted)
    return like(scores, chosen[_by_group(ids[chosen])])


def rejection_sampling(
    rows: Rows, *, keep: int = 8, beta: float = 0.5, prompt: str = "prompt", score: str = "score", seed: Seed = 0
) -> Rows:
    """Keep `keep` responses of each prompt as RSO does; see `rejection_sampling_indices`.

    The paper samples 64 responses from the SFT model and keeps 8. Where only a pairwise ranker ρ exists, score a
    response by ``logit ρ(y ≻ y_b)`` against one random sample y_b.
    """
    given = table(rows)
    return given.selected(
        rejection_sampling_indices(given.numbers(score), given.group_ids(prompt), keep=keep, beta=beta, seed=seed)
    )


def first_round_pairs(
    rows: Rows,
    *,
    prompt: str = "prompt",
    response: str = "response",
    score: str = "score",
    shared: Sequence[str] = (),
    judge: Judge | None = None,
    seed: Seed = 0,
) -> Rows:
    """First-round ranking: the responses to a prompt in random pairs, each used once; 8 responses give 4 pairs.

    Args:
        rows: one per response.
        prompt, response, score, shared: as in `best_versus_worst`; with a judge no score is read.
        judge: given the rows of all first responses and those of all second ones, the probability that the first wins;
            without it the higher score does. Pairs at ½ are left out.
        seed: int or generator.
    """
    return _knockout(rows, 1, prompt, response, score, shared, judge, seed)


def tournament_pairs(
    rows: Rows,
    *,
    prompt: str = "prompt",
    response: str = "response",
    score: str = "score",
    shared: Sequence[str] = (),
    judge: Judge | None = None,
    seed: Seed = 0,
) -> Rows:
    """Tournament ranking: as `first_round_pairs`, then the winners play on; 8 responses give 4 + 2 + 1 pairs.

    Whoever has no opponent goes on to the next round, and so does the first of two equals. Pairs come round by round.
    """
    return _knockout(rows, None, prompt, response, score, shared, judge, seed)


def _sweep(values: Floats, ids: Indices, beta: float, random: np.random.Generator) -> Any:
    """Which of the responses, sorted by group, are accepted."""
    starts = np.flatnonzero(np.diff(ids, prepend=-1))
    highest = np.repeat(np.maximum.reduceat(values, starts), np.diff(starts, append=len(ids)))
    return random.random(len(values)) < np.exp((values - highest) / beta)


def _running_count(hit: Any, ids: Indices) -> Indices:
    """How many of the same group were hit up to here."""
    starts = np.flatnonzero(np.diff(ids, prepend=-1))
    total = np.cumsum(hit)
    before = total[starts] - hit[starts]
    return np.asarray(total - np.repeat(before, np.diff(starts, append=len(ids))), np.int64)


def _by_group(ids: Indices) -> Indices:
    """The order that puts groups one after the other, each as it was."""
    return np.asarray(ranked(np.zeros(len(ids)), ids).order)


def _knockout(
    rows: Rows,
    rounds: int | None,
    prompt: str,
    response: str,
    score: str,
    shared: Sequence[str],
    judge: Judge | None,
    seed: Seed,
) -> Rows:
    given = table(rows)
    given.require(prompt, response, *shared)
    ids, random = given.group_ids(prompt), generator(seed)
    decide = _by_score(given.numbers(score)) if judge is None else _by_judge(given, judge)
    alive = ranked(random.random(len(ids)), ids).order
    chosen, rejected = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    while rounds is None or len(chosen) <= rounds:
        first, second, alone = _opponents(alive, ids)
        if not len(first):
            break
        wins = decide(first, second)
        chosen.append(np.where(wins > 0.5, first, second)[wins != 0.5])
        rejected.append(np.where(wins > 0.5, second, first)[wins != 0.5])
        alive = np.concatenate([np.where(wins >= 0.5, first, second), alone])
        alive = alive[_by_group(ids[alive])]
    pairs = Pairs(np.concatenate(chosen), np.concatenate(rejected))
    return as_rows(given, pairs, prompt=prompt, response=response, shared=shared)


def _opponents(alive: Indices, ids: Indices) -> tuple[Indices, Indices, Indices]:
    """Neighbours of one group, two by two, and who is left over."""
    group = ids[alive]
    within = _running_count(np.ones(len(group), bool), group) - 1 if len(group) else group
    has_next = np.append(group[1:] == group[:-1], False)[: len(group)]
    first = np.flatnonzero((within % 2 == 0) & has_next)
    return alive[first], alive[first + 1], alive[(within % 2 == 0) & ~has_next]


def _by_score(scores: Floats) -> Callable[[Indices, Indices], Floats]:
    return lambda first, second: (1.0 + np.sign(scores[first] - scores[second])) / 2.0


def _by_judge(given: Table[Any], judge: Judge) -> Callable[[Indices, Indices], Floats]:
    def decide(first: Indices, second: Indices) -> Floats:
        returned = hooked("judge", judge, len(first), given.selected(first), given.selected(second))
        return probabilities("judge", returned)

    return decide
