"""Worked numbers of the wider family: rows as in `worked_numbers`, from the papers' formulas or the authors' code."""

from __future__ import annotations

import numpy as np

from .fixtures import COMMON, CONFIDENT, F1, F1_FALLEN, F1_TOKENS, F2, GOLD, RATIONALE, SURVEY, T0
from .worked_numbers import Row, wl

LD_GRADIENT = {
    "chosen_token_logps": [[-0.02344] * 3 + [0.0], [-0.024375] * 2 + [-0.012188] * 2],
    "rejected_token_logps": [[0.02344] * 3 + [0.01172] * 2, [0.024375] * 2 + [0.0] * 3],
}
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
    # token_rl_data.md, the survey's table, and general.md, daa-scaling (whose notes print the other sign): R-DPO
    ("r_dpo", {"beta": 0.1, "alpha": 0.01}, SURVEY, 0.693147, {}),
    ("r_dpo", {"beta": 0.1, "alpha": -0.01}, T0, 0.611755, {}),
    # libraries.md 1.1.4: LD-DPO and WPO as TRL 1.16 has them
    ("ld_dpo", {"beta": 0.1, "alpha": 0.5}, F1_TOKENS, 0.650529, LD_GRADIENT),
    ("ld_dpo", {"beta": 0.5, "alpha": 0.5}, F1_TOKENS, 0.502320, {}),
    ("ld_dpo", {"beta": 0.1, "alpha": 0.0}, F1_TOKENS, 0.668772, {}),
    ("ld_dpo", {"beta": 0.5, "alpha": 0.0}, F1_TOKENS, 0.583612, {}),
    ("ld_dpo", {"beta": 0.1, "alpha": 1.0}, F1_TOKENS, 0.632677, {}),
    ("wpo", {"beta": 0.1, "variant": "trl-1.16"}, F1_TOKENS, 0.241440, {}),
    ("wpo", {"beta": 0.5, "variant": "trl-1.16"}, F1_TOKENS, 0.163777, {}),
    ("wpo", {"beta": 0.1}, F1_TOKENS, 0.241440, {}),
    ("wpo", {"beta": 0.1, "label_smoothing": 0.1}, F1_TOKENS, 0.246248, {}),
    # libraries.md 1.7.14: β-DPO without dropping pairs
    ("beta_dpo", {"beta": 0.1, "centre": 0.0}, F1, 0.589978, {}),
    ("beta_dpo", {"beta": 0.1, "centre": 2.0}, F1, 0.659387, {}),
    ("beta_dpo", {"beta": 0.1, "centre": 1.25}, F1, 0.632677, {}),
    # libraries.md 1.4: AlphaPO; on F2 as TRL ran it
    ("alphapo", {"beta": 0.1, "gamma": 0.5}, F1, 0.942665, {}),
    ("alphapo", {"beta": 2.0, "gamma": 0.5}, F1, 0.515529, {}),
    ("alphapo", {"beta": 0.1, "gamma": 0.5, "alpha": -0.25}, F1, 0.956691, {}),
    ("alphapo", {"beta": 2.0, "gamma": 0.5, "alpha": -0.25}, F1, 0.678918, {}),
    ("alphapo", {"beta": 0.1, "gamma": 0.5}, F2, 1.005976, {}),
    ("alphapo", {"beta": 2.0, "gamma": 0.5}, F2, 1.730744, {}),
    ("alphapo", {"beta": 0.1, "gamma": 0.5, "alpha": -0.25}, F2, 0.985389, {}),
    # token_rl_data.md, the survey's table: SimPER and SLiC-HF; general.md, rso; libraries.md 1.7.3
    ("simper", {}, SURVEY, 0.104487, {}),
    ("slic", {"delta": 1.0, "alpha": 1.0}, SURVEY, 5.0, {}),
    ("slic", {"delta": 10.0, "alpha": 0.0}, T0, 7.0, wl(-1.0, 1.0)),
    ("slic", {"delta": 1.0, "alpha": 0.0}, F1, 0.75, {}),
    ("slic", {"delta": 1.0, "alpha": 0.1}, F1, 1.10, {}),
    # pairwise.md, TPO
    ("tpo", {}, COMMON | GOLD, 1.644397, wl(-0.004750, 0.004750) | {"gold_logps": [-0.125]}),
    (
        "tpo_l",
        {},
        COMMON | GOLD | {"chosen_logps": np.array([-12.0])},
        0.743147,
        wl(-0.1, 0.066667) | {"gold_logps": [-0.00625]},
    ),
    # pairwise.md, ASFT
    ("asft", {}, CONFIDENT, 2.545413, wl(-0.2, 0.010435)),
    ("asft", {"weight": 0.1}, CONFIDENT, 1.334541, {}),
    ("asft", {"beta": 0.5, "alpha": 0.0}, CONFIDENT, 1.258866, wl(-0.043193, 0.010928)),
    # libraries.md 1.1.3: TRL's coefficient above 1
    ("f_dpo", {"divergence": "alpha", "coefficient": 2.0}, F1, 0.627717, wl(-0.030501, -0.062133, 0.006806, 0.022857)),
]
