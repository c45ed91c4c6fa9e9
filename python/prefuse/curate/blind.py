"""Responses written blind: to the same prompt, without its image."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ._rows import Part, Rows, hooked, table


def blind_responses(
    rows: Rows, generate: Callable[[Rows], Iterable[Any]], *, image: str = "image", blind: str = "blind"
) -> Rows:
    """Add to each pair what the model answers without seeing the image, as BPO does (Li et al. 2025, arXiv:2503.14189).

    The initial model writes the blind response once, before training; it is taken to be worse than the chosen one,
    without a judge. In the loss all responses are conditioned on the full prompt with the image: the objective `bpo`
    reads the third one as its role ``blind``.

    Args:
        rows: one per pair.
        generate: given the rows without the image column, one response for each.
        image: the column that holds the image, which stays in the result.
        blind: the column to put the responses in.

    Raises:
        ValueError: there is no such image column, or `generate` returns too few or too many.
    """
    given = table(rows)
    given.require(image)
    everything = np.arange(len(given))
    seen = given.gathered([Part(everything, {name: name for name in given.names if name != image})])
    return given.with_columns({blind: hooked("generate", generate, len(given), seen)})


def blind_as_pairs(rows: Rows, *, rejected: str = "rejected", blind: str = "blind") -> Rows:
    """Rows with `blind_responses` as two pairs each: all (chosen, rejected), then all (chosen, blind).

    For trainers that know pairs only, and how the paper's released script trains: the mean loss over the rows is half
    of `bpo`.

    Args:
        rows: one per pair, with the blind response.
        rejected, blind: the columns of the two responses; the latter goes.
    """
    given = table(rows)
    given.require(rejected, blind)
    everything = np.arange(len(given))
    others = {name: name for name in given.names if name not in (rejected, blind)}
    human, blinded = (given.gathered([Part(everything, others | {name: rejected})]) for name in (rejected, blind))
    return table(human).followed_by([blinded])
