"""Worked numbers of `prefuse.objectives.robustness`."""

from __future__ import annotations

import numpy as np

from tests.objectives.numbers.batches import COMMON, SURVEY, T0, tokens
from tests.objectives.numbers.shared import Row, column, wl

AFTER_A_PREFIX = tokens("chosen", [[0.5, 0.2, -0.1]], [[0.0] * 3]) | tokens("rejected", [[0.4, -0.6]], [[0.0] * 2])
AFTER_A_PREFIX |= {"chosen_start": np.array([1]), "rejected_start": np.array([1])}

VISITS = {"chosen_visits": np.array([10.0]), "rejected_visits": np.array([3.0])}

ROWS: list[Row] = [
    # token_rl_data.md, the survey's table: χPO, GDPO, Dr. DPO on one pair, ties
    ("gdpo", {}, column(SURVEY, win_prob=0.8), 0.684188, {}),
    ("dr_dpo", {}, SURVEY, 0.678260, {}),
    ("dpo_rk", {"nu": 1.5}, column(SURVEY, tie=False), 0.898399, {}),
    ("dpo_rk", {"nu": 1.5}, column(SURVEY, tie=True), 1.609654, {}),
    ("dpo_d", {"nu": 0.5}, column(SURVEY, tie=False), 1.083687, {}),
    ("dpo_d", {"nu": 0.5}, column(SURVEY, tie=True), 1.098687, {}),
    # general.md, mcts-dpo, upo, dno, inpo
    ("mcts_dpo", {}, column(T0, chosen_visits=10, rejected_visits=3), 0.655572, wl(-0.023180, 0.023180)),
    ("upo", {"alpha": 0.0}, column(T0, uncertainty=0.1), 0.635957, {}),
    ("upo", {"alpha": 0.0}, column(T0, uncertainty=0.035076), 0.626218, {}),
    # from the formulas, with gradients by differences in 30 digits
    ("ropo", {}, COMMON, 1.526034, wl(-0.093706, 0.093706)),
    # general.md, mcts-dpo, from a position on; with the length to the power 1
    (
        "mcts_dpo",
        {"suffix": True},
        AFTER_A_PREFIX | VISITS,
        0.674913,
        {"chosen_token_logps": [[0, -0.025174, -0.025174]]},
    ),
    ("mcts_dpo", {"link": "ipo", "length_power": 1.0}, T0, 23.280625, {}),
    # token_rl_data.md, the survey's table
    ("group_robust_dpo", {}, column(T0, group_weight=1.6), 0.993531, wl(-0.074011, 0.074011)),
    ("em_dpo", {}, column(T0, responsibility=0.35), 0.217335, wl(-0.016190, 0.016190)),
]
