"""Making, choosing and ordering the pairs that a preference objective is trained on.

Small functions over rows: a list of dicts, a `pandas.DataFrame` or a `datasets.Dataset` goes in and the same kind comes
out, never changed in place. What is numeric takes NumPy arrays or torch tensors, and answers in kind. Whatever draws
random numbers takes a `seed`, an int or a `numpy.random.Generator`, and gives the same result for the same int.

Words that mean the same everywhere: rows of responses have the columns `prompt`, `response` and `score` (the higher the
better); rows of pairs have `prompt`, `chosen` and `rejected`, and what else is known of the two responses as
`chosen_<name>` and `rejected_<name>`, as the objectives and TRL's trainers read them. Each function takes the names of
the columns it reads. Scores must be finite; equal scores are no preference and make no pair.
"""

from .blind import blind_as_pairs, blind_responses
from .code import (
    MutualScores,
    Selected,
    code_and_test_pairs,
    correctness_pairs,
    efficiency_pairs,
    minimax_selection,
    mutual_ranking,
    mutual_ranking_of_edges,
)
from .curriculum import by_difficulty, curry_stages, ranking_difficulty
from .degradation import Phrase, degraded, key_phrases, without_key_phrases
from .diagnostics import DriftReport, LengthReport, drift_report, length_report
from .directional import best_in_direction, directional_selection, directions
from .ensembles import best_of_n, best_of_n_kl, ensemble_scores
from .filtering import filter_weights, filtered, reward_fit
from .hindsight import hindsight_scores
from .history import mix_history
from .inspection import Check, Inspection, inspect
from .on_policy import AlignmentSplit, on_policy_alignment, severity_weights
from .pairs import all_pairs, best_versus_worst, nash_pairs, upper_versus_lower
from .ranking import (
    Pairs,
    Ranking,
    all_pairs_indices,
    best_versus_each_indices,
    best_versus_worst_indices,
    rank_within_groups,
    upper_versus_lower_indices,
)
from .rationales import add_rationales
from .rejection import first_round_pairs, rejection_sampling, rejection_sampling_indices, tournament_pairs
from .self_play import add_win_rates, win_rates
from .trees import step_pairs, step_weights, tree_lists
from .uncertainty import (
    certain_pairs,
    certainty_weights,
    ensemble_disagreement,
    information_gain,
    posterior_disagreement,
    to_query,
)

__all__ = [
    "AlignmentSplit",
    "Check",
    "DriftReport",
    "Inspection",
    "LengthReport",
    "MutualScores",
    "Pairs",
    "Phrase",
    "Ranking",
    "Selected",
    "add_rationales",
    "add_win_rates",
    "all_pairs",
    "all_pairs_indices",
    "best_in_direction",
    "best_of_n",
    "best_of_n_kl",
    "best_versus_each_indices",
    "best_versus_worst",
    "best_versus_worst_indices",
    "blind_as_pairs",
    "blind_responses",
    "by_difficulty",
    "certain_pairs",
    "certainty_weights",
    "code_and_test_pairs",
    "correctness_pairs",
    "curry_stages",
    "degraded",
    "directional_selection",
    "directions",
    "drift_report",
    "efficiency_pairs",
    "ensemble_disagreement",
    "ensemble_scores",
    "filter_weights",
    "filtered",
    "first_round_pairs",
    "hindsight_scores",
    "information_gain",
    "inspect",
    "key_phrases",
    "length_report",
    "minimax_selection",
    "mix_history",
    "mutual_ranking",
    "mutual_ranking_of_edges",
    "nash_pairs",
    "on_policy_alignment",
    "posterior_disagreement",
    "rank_within_groups",
    "ranking_difficulty",
    "rejection_sampling",
    "rejection_sampling_indices",
    "reward_fit",
    "severity_weights",
    "step_pairs",
    "step_weights",
    "to_query",
    "tournament_pairs",
    "tree_lists",
    "upper_versus_lower",
    "upper_versus_lower_indices",
    "win_rates",
    "without_key_phrases",
]
