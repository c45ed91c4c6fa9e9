"""Pairs in order: from easy to hard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ._numbers import count, floats, like
from ._rows import Rows, table
from .pairs import as_rows
from .ranking import Pairs, best_versus_each_indices, positions_within


def curry_stages(
    rows: Rows,
    *,
    stages: int = 3,
    prompt: str = "prompt",
    response: str = "response",
    score: str = "score",
    shared: Sequence[str] = (),
) -> list[Rows]:
    """The stages of Curry-DPO (Pattnaik et al. 2024, arXiv:2403.07230), the easiest pairs first.

    All pairs of a prompt share its best response as chosen. Stage i has of each prompt its i-th easiest pair: the one
    with the i-th largest gap in score. Of four responses R1 > R2 > R3 > R4 those are (R1, R4), (R1, R3), (R1, R2).
    Train on the stages one after the other; in the paper's best variant the model after one is the next one's
    reference.

    Args:
        rows: one per response.
        stages: how many; a prompt with fewer pairs is missing in the last ones, further pairs are left out.
        prompt, response, score, shared: as in `best_versus_worst`.

    Returns:
        Pairs of each stage, as `best_versus_worst` has them.
    """
    count("stages", stages)
    given = table(rows)
    ids = given.group_ids(prompt)
    pairs = best_versus_each_indices(given.numbers(score), ids)
    sizes = np.bincount(ids[pairs.chosen], minlength=1)
    stage = positions_within(np.concatenate([[0], np.cumsum(sizes)]))
    return [
        as_rows(
            given,
            Pairs(pairs.chosen[stage == i], pairs.rejected[stage == i]),
            prompt=prompt,
            response=response,
            shared=shared,
        )
        for i in range(stages)
    ]


def ranking_difficulty(ref_chosen_logps: Any, ref_rejected_logps: Any) -> Any:
    """How far the reference ranks pairs the wrong way, in nats (Chen et al. 2024, arXiv:2405.19534).

    ``c = log π_ref(l) - log π_ref(w)``: a DPO model ranks the pair right exactly if its loss is at most
    ``-log σ(βc)`` (`prefuse.metrics.ranking_threshold`), that is, if its log-ratios differ by c or more.

    Args:
        ref_chosen_logps, ref_rejected_logps: log-probabilities of the responses under the reference, [N], in nats.
    """
    chosen, rejected = floats("ref_chosen_logps", ref_chosen_logps), floats("ref_rejected_logps", ref_rejected_logps)
    if chosen.shape != rejected.shape:
        raise ValueError(f"ref_rejected_logps: expected shape {chosen.shape}, got {rejected.shape}")
    return like(ref_chosen_logps, rejected - chosen)


def by_difficulty(
    rows: Rows, *, chosen_logps: str = "ref_chosen_logps", rejected_logps: str = "ref_rejected_logps"
) -> Rows:
    """Pairs from the easiest to the hardest, with their `ranking_difficulty` in the column `difficulty`.

    Args:
        rows: one per pair.
        chosen_logps, rejected_logps: the columns of the reference's log-probabilities, in nats.
    """
    given = table(rows)
    difficulty = ranking_difficulty(given.numbers(chosen_logps), given.numbers(rejected_logps))
    order = np.argsort(difficulty, kind="stable")
    return table(given.selected(order)).with_columns({"difficulty": difficulty[order]})
