"""Worked numbers of `prefuse.objectives.likelihood`."""

from __future__ import annotations

import numpy as np

from tests.objectives.numbers.batches import COMMON, CONFIDENT, F1, F1_FALLEN, RATIONALE, SURVEY, T0
from tests.objectives.numbers.shared import Row, column, wl

RATIONALE_GRADIENT = wl(-0.040131, 0.040131)

ROWS: list[Row] = [
    # libraries.md 1.7.10: DPOP where the chosen response fell
    ("dpop", {"beta": 0.1, "penalty": 50.0}, F1_FALLEN, 1.052903, {}),
    ("dpop", {"beta": 0.1, "penalty": 5.0}, F1_FALLEN, 0.693225, {"chosen_logps": [-0.151875, -0.024688]}),
    ("dpop", {"beta": 0.1, "penalty": 1.0}, F1_FALLEN, 0.668538, {}),
    ("dpop", {"beta": 0.1}, SURVEY, 0.678260, {}),
    # libraries.md 1.7.18 and 1.7.2, token_rl_data.md: RPO by tokens and by responses; pairwise.md, 3D: SFT-DPO
    ("rpo", {"beta": 0.1, "nll": "token_mean"}, F1, 1.632677, wl(-0.165986, -0.166608, 0.023129, 0.023751)),
    ("rpo", {"beta": 0.1, "alpha": 0.2}, F1, 0.836843, {}),
    ("rpo", {"beta": 0.1, "alpha": 0.5}, F1, 1.143093, {}),
    ("rpo", {"beta": 0.1}, SURVEY, 1.678260, {}),
    ("rpo", {"beta": 0.1, "alpha": 0.01, "nll": "sum"}, COMMON, 0.713015, wl(-0.050131, 0.040131)),
    # token_rl_data.md, CGPO
    ("codpo", {"beta": 0.1}, SURVEY, 5.678260, {}),
    # token_rl_data.md, the survey's table, and libraries.md 1.7.15: Cal-DPO
    ("cal_dpo", {"beta": 0.1}, SURVEY, 47.844355, {}),
    ("cal_dpo", {"beta": 0.1, "variant": "original"}, SURVEY, 24.199355, {}),
    ("cal_dpo", {"beta": 0.1, "variant": "original"}, F1, 19.663588, {}),
    ("cal_dpo", {"beta": 0.5, "variant": "original"}, F1, 0.663587, {}),
    # pairwise.md, Rationale-PO
    (
        "rationale_dpo",
        {"beta": 0.1, "gamma": 0.05},
        RATIONALE,
        2.513015,
        RATIONALE_GRADIENT | {"rationale_logps": [-0.05]},
    ),
    (
        "rationale_dpo",
        {"beta": 0.1, "gamma": 0.05, "variant": "original"},
        RATIONALE,
        2.639943,
        RATIONALE_GRADIENT | {"rationale_logps": [-0.044040]},
    ),
    # pairwise.md, SPO-deg: three classes, logits (1, 0, -1), label 0; γ = 0 is DPO
    ("spo_degree", {"beta": 0.1, "weight": 1.0}, COMMON | {"degree_loss": np.array([0.407606])}, 0.920621, {}),
    ("spo_degree", {"beta": 0.1, "weight": 0.0}, COMMON | {"degree_loss": np.array([0.407606])}, 0.513015, {}),
    # from the formulas, with gradients by differences in 30 digits
    (
        "rationale_orpo",
        {"gamma": 0.5},
        column(CONFIDENT, rationale_logps=-40.0, rationale_lengths=20),
        2.230979,
        wl(-0.103812, 0.002054) | {"rationale_logps": [-0.025]},
    ),
    # general.md, overopt-metrics: averages are equal, the chosen log-ratio is 1
    ("average_hinge", {}, T0, 1.069315, {}),
    ("average_hinge", {"weight": 0.0}, T0, 1.0, wl(-1 / 8, 1 / 10)),
]

VARIANTS = [
    # libraries.md 1.7.2, 1.7.6, 1.7.18: likelihood terms
    ("rpo", "trl-0.24", {}, F1, 1.632677),
    ("rpo", "openrlhf", {"alpha": 0.2}, F1, 0.836843),
    ("rpo", "llamafactory", {"alpha": 0.5}, F1, 1.143093),
    ("cal_dpo", "original", {}, F1, 19.663588),
]
