"""Feedback after the fact: RLHS, hindsight simulation (Liang et al. 2025, arXiv:2501.08617)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ._rows import Rows, finite, hooked, table


def hindsight_scores(
    rows: Rows,
    simulate: Callable[[Rows], Iterable[Any]],
    rate: Callable[[Rows], Iterable[float]],
    *,
    outcome: str = "outcome",
    score: str = "score",
) -> Rows:
    """Score responses only when their consequences are known, so that promising much does not pay.

    First it is simulated what follows from acting on each response, e.g. what a customer who believed it would buy and
    what they would get; then the response is rated with that outcome in view. `best_versus_worst` makes pairs of the
    result.

    Args:
        rows: one per response; a score they have is replaced.
        simulate: given the rows, one outcome for each.
        rate: given the rows with their outcomes, one number for each, the higher the better.
        outcome, score: the columns to put them in.

    Raises:
        ValueError: one of the two returns too few or too many, or a rating that is not finite.
    """
    given = table(rows)
    seen = given.with_columns({outcome: hooked("simulate", simulate, len(given), given.rows)})
    ratings = finite("rate", hooked("rate", rate, len(given), seen))
    return table(seen).with_columns({score: ratings})
