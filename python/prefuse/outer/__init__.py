"""Loops around a loss: references that move, rounds of self-play, mixtures, pairs of learners, searches.

The papers whose idea is a procedure, as small functions over torch modules and optimisers. What a step computes is an
objective of `prefuse.objectives`; what is sampled, judged and trained stays with the caller. `callbacks` has those that
fit between the steps of a `transformers` or TRL trainer, and is imported only where it is asked for.
"""

from .beam import Beams, beam_search
from .extragradient import Snapshot, extragradient_step
from .extrapolation import extrapolate_logps, extrapolate_weights
from .fast_slow import FastSlow, Learner, fit_shares, merge_weights
from .hindsight import hindsight_matching_loss, hindsight_preference_loss, oppo_loss, unit_norm_penalty
from .hybrid import hypo_loss, hypo_steps
from .improvement import self_improve
from .mixture import ReferenceMixture, geometric_mixture
from .ranking_oracle import rank_descent_step, rank_gradient
from .reference import frozen_copy, refresh_reference
from .rounds import Round, growing_rounds, preference_rounds, run_rounds
from .selection import Selection, all_pairs, best_and_worst, knockout, win_matrix

__all__ = [
    "Beams",
    "FastSlow",
    "Learner",
    "ReferenceMixture",
    "Round",
    "Selection",
    "Snapshot",
    "all_pairs",
    "beam_search",
    "best_and_worst",
    "extragradient_step",
    "extrapolate_logps",
    "extrapolate_weights",
    "fit_shares",
    "frozen_copy",
    "geometric_mixture",
    "growing_rounds",
    "hindsight_matching_loss",
    "hindsight_preference_loss",
    "hypo_loss",
    "hypo_steps",
    "knockout",
    "merge_weights",
    "oppo_loss",
    "preference_rounds",
    "rank_descent_step",
    "rank_gradient",
    "refresh_reference",
    "run_rounds",
    "self_improve",
    "unit_norm_penalty",
    "win_matrix",
]
