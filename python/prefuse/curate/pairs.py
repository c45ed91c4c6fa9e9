"""Pairs from scored responses.

One row per response in; one row per pair out, with the prompt, `chosen` and `rejected`, and every other column of the
two responses as `chosen_<name>` and `rejected_<name>`: the names that objectives and TRL's trainers read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ._rows import Indices, Part, Rows, Table, table
from .ranking import (
    Pairs,
    all_pairs_indices,
    best_versus_worst_indices,
    upper_versus_lower_indices,
)


def best_versus_worst(
    rows: Rows,
    *,
    prompt: str = "prompt",
    response: str = "response",
    score: str = "score",
    shared: Sequence[str] = (),
    min_gap: float = 0.0,
) -> Rows:
    """One pair per prompt: its best response against its worst.

    The usual pairs of best-of-n data, as in UltraFeedback's binarisation and iterative DPO. Prompts whose responses all
    score the same, or that have one response only, give none.

    Args:
        rows: one per response.
        prompt, response, score: the columns' names. Rows of equal prompts are one group, wherever they stand.
        shared: further columns that belong to the prompt: copied as they are, from the chosen row.
        min_gap: pairs whose scores differ by less are left out.

    Raises:
        ValueError: a column is not there, a score is not finite, a prompt is missing.
    """
    given = table(rows)
    pairs = best_versus_worst_indices(given.numbers(score), given.group_ids(prompt), min_gap=min_gap)
    return as_rows(given, pairs, prompt=prompt, response=response, shared=shared)


def all_pairs(
    rows: Rows,
    *,
    prompt: str = "prompt",
    response: str = "response",
    score: str = "score",
    shared: Sequence[str] = (),
    min_gap: float = 0.0,
) -> Rows:
    """Every two responses to a prompt whose scores differ, as in InstructGPT (Ouyang et al. 2022, arXiv:2203.02155).

    By prompt, then by rank of the chosen, then of the rejected. Arguments as in `best_versus_worst`.
    """
    given = table(rows)
    pairs = all_pairs_indices(given.numbers(score), given.group_ids(prompt), min_gap=min_gap)
    return as_rows(given, pairs, prompt=prompt, response=response, shared=shared)


def upper_versus_lower(
    rows: Rows,
    *,
    prompt: str = "prompt",
    response: str = "response",
    score: str = "score",
    shared: Sequence[str] = (),
    min_gap: float = 0.0,
) -> Rows:
    """Every response of a prompt's better half against every one of its worse half (UPO, arXiv:2409.11212).

    Of an odd number the middle one is left out. Arguments as in `best_versus_worst`.
    """
    given = table(rows)
    pairs = upper_versus_lower_indices(given.numbers(score), given.group_ids(prompt), min_gap=min_gap)
    return as_rows(given, pairs, prompt=prompt, response=response, shared=shared)


def nash_pairs(
    rows: Rows,
    *,
    prompt: str = "prompt",
    response: str = "response",
    score: str = "score",
    shared: Sequence[str] = (),
    own: str = "from_policy",
    min_score: float = 5.0,
    min_gap: float = 2.0,
    min_gap_own: float = 1.0,
) -> Rows:
    """The pairs of direct Nash optimisation, DNO-Prct (Rosset et al. 2024, arXiv:2404.03715).

    The policy's own responses and a teacher's were judged, on a scale to 6. A chosen response must reach `min_score`;
    it must beat the rejected one by `min_gap`, or by `min_gap_own` where the chosen one is the policy's own.

    Args:
        rows: one per response.
        prompt, response, score, shared: as in `best_versus_worst`.
        own: the column that is true for the policy's own responses.
        min_score, min_gap, min_gap_own: in units of the scores.
    """
    given = table(rows)
    scores = given.numbers(score)
    pairs = all_pairs_indices(scores, given.group_ids(prompt), min_gap=min(min_gap, min_gap_own))
    least = np.where(given.numbers(own)[pairs.chosen] != 0.0, min_gap_own, min_gap)
    kept = (scores[pairs.chosen] >= min_score) & (scores[pairs.chosen] - scores[pairs.rejected] >= least)
    return as_rows(
        given, Pairs(pairs.chosen[kept], pairs.rejected[kept]), prompt=prompt, response=response, shared=shared
    )


def as_rows(given: Table[Rows], pairs: Pairs[Any], *, prompt: str, response: str, shared: Sequence[str] = ()) -> Rows:
    """Rows of pairs from those of responses."""
    given.require(prompt, response, *shared)
    return given.gathered(
        [
            Part(pairs.chosen, {name: name for name in (prompt, *shared)} | {response: "chosen"}),
            Part(pairs.rejected, {response: "rejected"}),
            *sides(given, pairs.chosen, pairs.rejected, without=(prompt, response, *shared)),
        ]
    )


def sides(given: Table[Rows], chosen: Indices, rejected: Indices, *, without: Sequence[str]) -> list[Part]:
    """The remaining columns of both sides, under their names as a pair has them."""
    others = [name for name in given.names if name not in without]
    return [
        Part(chosen, {name: f"chosen_{name}" for name in others}),
        Part(rejected, {name: f"rejected_{name}" for name in others}),
    ]
