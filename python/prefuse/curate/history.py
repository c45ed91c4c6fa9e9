"""Pairs of earlier rounds among those of this one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ._numbers import Seed, generator
from ._rows import Rows, table


def mix_history(
    current: Rows, previous: Sequence[Rows], *, share: float = 0.3, decay: float = 0.5, seed: Seed = 0
) -> Rows:
    """Add pairs of earlier rounds, fewer the older, as DNO does (Rosset et al. 2024, arXiv:2404.03715).

    Of round t-1 the share 0.3 of its pairs at random, of round t-2 half that share, and so on.

    Args:
        current: this round's pairs.
        previous: those of earlier rounds, the latest first, with the same columns.
        share: of the latest earlier round, in [0, 1].
        decay: by what the share is multiplied from round to round back, in [0, 1].
        seed: int or generator.

    Returns:
        The current pairs, then those drawn, round by round in the order they had.
    """
    for name, value in (("share", share), ("decay", decay)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name}: expected a number in [0, 1], got {value}")
    random = generator(seed)
    drawn = []
    for age, rows in enumerate(previous):
        given = table(rows, f"previous[{age}]")
        kept = int(share * decay**age * len(given) + 1e-9)
        drawn.append(given.selected(np.sort(random.permutation(len(given))[:kept])))
    now = table(current, "current")
    for age, rows in enumerate(drawn):
        names = table(rows).names
        if len(now) and names and set(names) != set(now.names):
            raise ValueError(f"previous[{age}]: expected the columns {now.names}, like current, got {names}")
    return now.followed_by(drawn)
