"""Objectives for models that see: pairs against responses written, or scored, without the image.

Notation: ``h(y) = log π(y|x) - log π_ref(y|x)`` summed over the response, w chosen, l rejected.
"""

from __future__ import annotations

from ..language import Expression, PairView, log_sigmoid, pair_objective
from ._terms import POSITIVE, log_ratio_margin


@pair_objective(bounds={"beta": POSITIVE})
def bpo(pair: PairView, *, beta: float = 0.1, combine: str = "sum") -> Expression:
    """Blind preference optimization (Li, Yang, Wang, You, Li and Nie 2025, arXiv:2503.14189).

    ``-log σ(β [h(w) - h(l)]) - log σ(β [h(w) - h(b)])``: two DPO terms that share the chosen response. The third
    role, ``blind``, is a response that the initial model wrote without seeing the image; all log-probabilities,
    its own included, are conditioned on the full prompt with the image.

    beta: 0.05-0.5. combine: ``"sum"`` is the paper's loss, ``"mean"`` half of it.
    The authors' released script trains on the two pairs as separate rows of one data set, whose mean loss is
    ``combine="mean"``; other libraries do not have it.
    """
    human = -log_sigmoid(beta * log_ratio_margin(pair))
    blind = -log_sigmoid(beta * (pair.chosen.logratio - pair.response("blind").logratio))
    if combine == "sum":
        return human + blind
    if combine == "mean":
        return 0.5 * (human + blind)
    raise ValueError(f'bpo: combine must be "sum" or "mean", got {combine!r}')
