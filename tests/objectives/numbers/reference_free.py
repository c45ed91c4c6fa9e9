"""Worked numbers of `prefuse.objectives.reference_free`."""

from __future__ import annotations

import numpy as np

from tests.objectives.numbers.batches import COMMON, CONFIDENT, F1, F2, GOLD, SURVEY, T0
from tests.objectives.numbers.shared import Row, wl

F2_GOLD = F2 | {"gold_logps": np.array([-3.81069, -3.81069]), "gold_lengths": np.array([2, 3])}
"""Two gold rows whose mean negative log-likelihood over five tokens is the 1.524276 of libraries.md 1.4."""

# The first token of F2's chosen rows, its prompt: classes 0 and 2 under the softmax of W X (libraries.md 0.1).
W = np.array([[1, 0, -1], [0, 1, 0.5], [-1, 0.5, 0], [0.5, -0.5, 1], [0, 0, 0.25]])

X = np.array([[(((7 * b + 5 * k) % 8) - 3.5) / 2 for k in range(3)] for b in range(2)])

LOGITS = X @ W.T

PROMPTS = LOGITS[[0, 1], [0, 2]] - np.log(np.exp(LOGITS).sum(1))

F2_PROMPTS = F2 | {"chosen_prompt_logps": PROMPTS, "chosen_prompt_tokens": np.ones(2)}

ROWS: list[Row] = [
    # pairwise.md, SimPO
    ("simpo", {"beta": 2.0, "gamma": 1.0}, COMMON, 1.313262, wl(-0.146212, 0.097474)),
    ("simpo", {"beta": 2.5, "gamma": 1.375}, CONFIDENT, 0.428701, wl(-0.087161, 0.058108)),
    ("simpo", {"beta": 2.5, "gamma_beta_ratio": 0.55}, CONFIDENT, 0.428701, wl(-0.087161, 0.058108)),
    # pairwise.md, ASFT: ORPO on the same pair
    ("orpo", {"beta": 1.0}, CONFIDENT, 1.509790, {}),
    # token_rl_data.md, the survey's table
    ("cpo", {"beta": 0.1, "nll": "token_mean"}, SURVEY, 1.644397, {}),
    ("simpo", {"beta": 2.0, "gamma": 1.0}, SURVEY, 1.701413, {}),
    ("orpo", {"beta": 0.1}, SURVEY, 1.093149, {}),
    # libraries.md 1.1.2: TRL 1.16 on F1
    ("sft", {}, F1, 1.0, wl(-0.142857, -0.142857, 0.0, 0.0)),
    # libraries.md 1.2 and 1.7: TRL 0.24, the original DPO code, OpenRLHF, HALOs, open-instruct, NeMo-RL, SPPO
    ("simpo", {"beta": 10.0, "gamma_beta_ratio": 0.3}, F1, 0.938858, {}),
    ("simpo", {"beta": 5.0, "gamma_beta_ratio": 0.3}, F1, 0.686981, {}),
    # libraries.md 1.4: CPO, SimPO and ORPO on F1 and F2
    ("cpo", {"beta": 0.1, "alpha": 0.0}, F1, 0.636407, {}),
    ("cpo", {"beta": 0.1, "nll": "token_mean"}, F1, 1.636407, {}),
    ("simpo", {"beta": 0.1, "gamma": 0.5}, F1, 0.950716, {}),
    ("simpo", {"beta": 2.0, "gamma": 0.5}, F1, 0.601737, {}),
    ("simpo", {"beta": 2.5, "gamma": 1.375}, F1, 0.973839, {}),
    ("orpo", {"beta": 0.1}, F1, 1.047060, {}),
    ("orpo", {"beta": 0.1, "nll": "response_mean"}, F1, 1.067893, {}),
    ("cpo", {"beta": 0.1, "alpha": 0.0}, F2, 0.844296, {}),
    ("cpo", {"beta": 0.1, "alpha": 0.0, "label_smoothing": 0.1}, F2, 0.816094, {}),
    ("simpo", {"beta": 0.1, "gamma": 0.5}, F2, 0.993034, {}),
    ("simpo", {"beta": 2.0, "gamma": 0.5}, F2, 1.398420, {}),
    ("orpo", {"beta": 0.1}, F2, 2.189902, {}),
    # libraries.md 1.6: Liger on F2
    ("cpo", {"beta": 0.1, "nll": "token_mean"}, F2, 2.945695, {}),
    ("cpo", {"beta": 0.1, "label_smoothing": 0.1, "alpha": 0.5, "nll": "token_mean"}, F2, 1.866793, {}),
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
    # libraries.md 1.4: hinge and IPO of CPO and TPO
    ("cpo", {"alpha": 0.0, "link": "hinge"}, F1, 0.875, {}),
    ("cpo", {"alpha": 0.0, "link": "ipo"}, F1, 21.412537, {}),
    ("cpo", {"alpha": 0.0, "link": "hinge"}, F2, 1.282022, {}),
    ("cpo", {"alpha": 0.0, "link": "ipo"}, F2, 28.135857, {}),
    ("tpo", {}, F2_GOLD, 2.231626, {}),
    ("tpo", {"beta": 0.1, "label_smoothing": 0.1}, F2_GOLD, 2.340369, {}),
    ("tpo", {"beta": 0.1, "link": "hinge"}, F2_GOLD, 2.806297, {}),
    ("tpo", {"beta": 0.1, "link": "ipo"}, F2_GOLD, 29.660128, {}),
    ("tpo_l", {"beta": 0.1, "gamma": 0.5, "alpha": 1.0}, F2_GOLD, 2.517309, {}),
    ("simpo", {"beta": 0.5, "gamma": 0.3, "link": "hinge"}, F1, 1.110417, {}),
]

VARIANTS = [
    # libraries.md 1.4, 1.6 and 1.7.6: SimPO, CPO and ORPO as TRL, Liger and LLaMA-Factory have them
    ("simpo", "liger", {}, F2, 3.094434),
    ("simpo", "trl-1.16", {"alpha": 0.0}, F2, 0.993034),
    ("simpo", "llamafactory", {}, F1, 0.950716),
    ("simpo", "halos", {}, F1, 0.938858),
    ("cpo", "liger", {}, F2, 2.945695),
    ("cpo", "trl-1.16", {}, F1, 1.636407),
    ("orpo", "trl-1.16", {}, F2_PROMPTS, 2.627623),
    ("orpo", "liger", {}, F2, 2.189902),
    ("orpo", "llamafactory", {}, F1, 1.067893),
    ("tpo", "trl-1.16", {"beta": 0.1, "link": "hinge"}, F2_GOLD, 2.806297),
    ("tpo_l", "trl-1.16", {"beta": 0.1}, F2_GOLD, 2.517309),
    ("alphapo", "trl-1.16", {}, F2, 1.005976),
    # libraries.md 1.7.2, 1.7.6, 1.7.18: likelihood terms
    ("slic", "halos", {}, F1, 1.10),
    ("sft", "trl-1.16", {}, F1, 1.0),
]
