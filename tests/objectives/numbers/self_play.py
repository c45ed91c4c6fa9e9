"""Worked numbers of `prefuse.objectives.self_play`."""

from __future__ import annotations

import numpy as np

from tests.objectives.numbers.batches import (
    CALIBRATION,
    COMMON,
    F2_ONLINE,
    JUDGED,
    OTHER,
    OTHER_SIDE,
    PREVIOUS,
    SRPO,
    SURVEY,
    T0,
)
from tests.objectives.numbers.shared import Row, column, one_list, pad, wl

WINS = [0.5, 0.7, 0.6, 0.3, 0.5, 0.4, 0.4, 0.6, 0.5]

TWO_TOKENS = {"logps": [[-1.0, -2.0]], "ref_logps": [[-1.2, -1.5]], "mask": [[True, True]], "preference": [0.7]}

ROWS: list[Row] = [
    # general.md, mcts-dpo, upo, dno, inpo
    ("dno", {}, column(T0, chosen_win_prob=0.8, rejected_win_prob=0.3), 0.677588, wl(-0.008503, 0.008503)),
    ("inpo", {"eta": 0.1, "tau": 0.1 / 3}, PREVIOUS, 16.267778, wl(-8.066667, 8.066667)),
    ("inpo", {}, PREVIOUS, 9807.601111, wl(-198.066667, 198.066667)),
    # pairwise.md, EGPO and online IPO
    ("egpo", {}, JUDGED, 6.25, wl(-5.0, 5.0)),
    ("psi_po", {}, JUDGED, 6.25, wl(-5.0, 5.0)),
    ("online_ipo", {}, JUDGED, 2.25, wl(-3.0, 3.0)),
    # general.md, copg; token_rl_data.md, the survey's table: reward distillation
    ("copg", {"beta": 0.5}, column(T0, chosen_score=2.5, rejected_score=1.0), -1.6875, wl(-0.75, 0.75)),
    ("copg", {"beta": 0.5}, column(T0, chosen_score=1.5, rejected_score=1.0), -0.1875, {}),
    ("reward_distillation", {}, column(SURVEY, chosen_score=0.5, rejected_score=0.0), 0.2209, {}),
    # pairwise.md, VPO; libraries.md 1.5 and token_rl_data.md, the survey's table: XPO
    ("vpo", {}, CALIBRATION, 0.514015, wl(-0.040131, 0.040131) | {"calibration_logps": [0.001]}),
    (
        "vpo",
        {"alpha": 1.0, "mode": "offline"},
        column(COMMON, calibration_logps=-20.0, ref_calibration_logps=-22.0),
        0.313015,
        wl(-0.040131, 0.040131) | {"calibration_logps": [-0.1]},
    ),
    ("vpo", {}, column(SURVEY, calibration_logps=-7.0, ref_calibration_logps=0.0), 0.671260, {}),
    ("xpo", {}, F2_ONLINE, 0.690893, {}),
    ("xpo", {"alpha": 1e-2}, F2_ONLINE, 0.645591, {}),
    ("xpo", {"link": "ipo"}, F2_ONLINE, 24.560322, {}),
    ("xpo", {"link": "ipo", "alpha": 1e-2}, F2_ONLINE, 24.515022, {}),
    # general.md, ofs-dpo
    ("ofs_dpo", {"alpha": 0.5}, T0 | OTHER, 0.955187, {}),
    ("ofs_dpo", {"alpha": 0.5, "module": "slow"}, OTHER_SIDE, 0.310167, {}),
    # pairwise.md, SRPO
    ("srpo", {"alpha": 0.0}, SRPO, 0.5625, {}),
    ("srpo", {"alpha": 1.0}, SRPO, 0.3528, {}),
    (
        "srpo",
        {},
        SRPO,
        0.457650,
        wl(-0.075, 0.075)
        | {"improved_logps": [-0.117], "worsened_logps": [0.117]}
        | {"kept_rejected_logps": [0.042], "kept_chosen_logps": [-0.042]},
    ),
    # pairwise.md, HyPO: two samples; the value is λ/k Σ a·logp
    (
        "hypo_kl",
        {"weight": 0.1},
        {"logps": np.array([-2.0, -3.0]), "ref_logps": np.array([-2.5, -2.9]), "groups": np.array([4, 4])},
        0.03,
        {"logps": [0.03, -0.03]},
    ),
    # general.md, copg; pairwise.md, online IPO in its batch form
    (
        "copg_list",
        {"beta": 0.5},
        one_list([1.0, -0.5, 0.2], score=[2.5, 1.0, 0.0]),
        3.3975,
        {"logps": [-1.425, -0.3, 1.725]},
    ),
    (
        "online_ipo_list",
        {},
        one_list([1.0, -0.5, 0.2], win_prob=WINS),
        0.126667,
        {"logps": [-0.466667, 0.533333, -0.066667]},
    ),
    # pairwise.md, Nash-MD, the last by the formula; libraries.md 1.5
    ("nash_md", {"credit": "own"}, TWO_TOKENS, 0.68, {"logps": [[-0.18, -0.25]]}),
    ("nash_md", {"credit": "whole"}, TWO_TOKENS, 0.69, {"logps": [[-0.23, -0.23]]}),
    ("nash_md", {}, TWO_TOKENS, 0.73, {"logps": [[-0.23, -0.25]]}),
    (
        "nash_md",
        {"variant": "trl-1.10"},
        {
            "logps": pad([[-0.423358, -4.201231, -2.472275], [-3.595217, -0.244511, -2.037348, -1.735858]], 4),
            "ref_logps": pad([[-1.993148, -0.575343, -2.139865], [-1.090285, -2.387491, -0.800731, -2.118148]], 4),
            "mask": np.arange(4) < np.array([[3], [4]]),
            "preference": [0.7, 0.3],
        },
        1.234795,
        {},
    ),
]
