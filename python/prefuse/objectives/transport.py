"""Pair objectives that compare sorted batches: alignment by optimal transport in one dimension.

Sorting runs over the batch of one call, so unlike the other objectives the loss of a pair depends on its
neighbours, and a larger batch is a different loss. Equal values keep their input order.
"""

from __future__ import annotations

from ..language import Expression, PairView, Paper, pair_objective
from ._terms import POSITIVE, PROBABILITY, logistic

_AOT = Paper("2406.05882", "Distributional Preference Alignment of LLMs via Optimal Transport", "Melnyk et al. 2024")


@pair_objective(paper=_AOT, equation="eq. 11, algorithm 2", bounds={"beta": POSITIVE, "label_smoothing": PROBABILITY})
def aot(pair: PairView, *, beta: float = 0.1, label_smoothing: float | None = None) -> Expression:
    """Alignment via optimal transport, paired.

    ``δ = sort(log π(w) - log π(l)) - sort(log π_ref(w) - log π_ref(l))``, both ascending over the batch, then
    ``-(1-ε) log σ(βδ) - ε log σ(-βδ)``: the policy's margins must dominate the reference's in distribution.

    beta: 0.01-0.5. label_smoothing: ε as in `dpo`.
    Libraries: TRL's ``aot``; its sort does not promise an order of ties.
    """
    chosen, rejected = pair.chosen, pair.rejected
    policy = (chosen.logp - rejected.logp).sort("batch")
    reference = (chosen.ref_logp - rejected.ref_logp).sort("batch")
    return logistic(beta * (policy - reference), label_smoothing)


@pair_objective(paper=_AOT, equation="eq. 11, algorithm 1", bounds={"beta": POSITIVE, "label_smoothing": PROBABILITY})
def aot_unpaired(pair: PairView, *, beta: float = 0.1, label_smoothing: float | None = None) -> Expression:
    """Alignment via optimal transport, unpaired.

    ``δ = sort(h(w)) - sort(h(l))`` over the batch, then the link of `aot`: chosen and rejected log-ratios are
    matched by rank, so the data need not come in pairs.

    beta: 0.01-0.5. label_smoothing: ε as in `dpo`.
    Libraries: TRL's ``aot_unpaired``, which TRL 0.x named ``aot_pair``.
    """
    margin = pair.chosen.logratio.sort("batch") - pair.rejected.logratio.sort("batch")
    return logistic(beta * margin, label_smoothing)
