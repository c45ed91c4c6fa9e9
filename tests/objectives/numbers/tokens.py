"""Worked numbers of `prefuse.objectives.tokens`."""

from __future__ import annotations

import numpy as np

from tests.objectives.numbers.batches import Columns, tokens
from tests.objectives.numbers.shared import Row, one_response, pad


def token_pairs(chosen, rejected, **token_columns) -> Columns:
    """Token columns of a batch of pairs from ragged lists of log-ratios, padded with NaN."""
    columns = {}
    for role, rows in (("chosen", chosen), ("rejected", rejected)):
        lengths, width = np.array([len(row) for row in rows]), max(map(len, rows))
        columns[f"{role}_mask"] = np.arange(width)[None, :] < lengths[:, None]
        columns[f"{role}_token_logps"] = pad(rows, width)
        columns[f"ref_{role}_token_logps"] = pad([[0.0] * len(row) for row in rows], width)
        for name, by_role in token_columns.items():
            columns[f"{role}_token_{name}"] = pad(by_role[role == "rejected"], width)
    return columns


UNPAIRED = {
    "token_logps": np.array([[0.5, -0.15, 0.6], [-0.1, 0.4, np.nan]]),
    "ref_token_logps": np.array([[0.0, 0.0, 0.0], [0.0, 0.0, np.nan]]),
    "mask": np.array([[True, True, True], [True, True, False]]),
    "label": np.array([1, 0]),
    "kl_logratio": np.array([0.3, -0.1]),
}

OREO = one_response(ref_logps=[0.0] * 3, logps=[0.5, -0.2, 0.3], value=[0.4, 0.6, 0.9], reward=1.0)

SPARSE = token_pairs(
    [[0.5, -0.2, 0.9]],
    [[-0.1, 0.4]],
    rkl=([[0.05, 0.2, 0.1]], [[0.3, 0.15]]),
    reward_weight=([[1.0, 0.0, 0.5]], [[0.2, 1.0]]),
    kl_weight=([[0.5, 0.5, 0.0]], [[1.0, 0.25]]),
)

COMMON_MASK = {f"{role}_token_kl_weight": SPARSE[f"{role}_token_reward_weight"] for role in ("chosen", "rejected")}

TDPO = token_pairs([[1.0, 0.2]], [[-0.5, 0.25, -0.25]], rkl=([[0.5, 0.3]], [[0.5, 0.5, 0.5]]))

F2_TDPO = token_pairs(
    [[-2.388509], [-1.216280]], [[-2.401820], [-1.141082]], rkl=([[5.924103], [5.263302]], [[1.781328], [4.390307]])
)

# From the formulas, with gradients by differences in 30 digits.
H_W, H_L = [[0.5, -0.2, 0.9]], [[-0.1, 0.4]]

TURNS = tokens("chosen", [[0.4, -0.1, 0.2, 0.3]], [[0.0] * 4], turn=[[0, 1, 2, 3]])
TURNS |= tokens("rejected", [[-0.2, 0.5]], [[0.0] * 2], turn=[[0, 1]])

ROWS: list[Row] = [
    # token_rl_data.md, OREO
    ("oreo_value", {}, OREO, 0.168205, {"value": [[-0.388, -0.264667, -0.060667]]}),
    ("oreo", {"divergence": "none"}, OREO, 0.168205, {"logps": [[-0.011640, -0.007940, -0.001820]]}),
    ("oreo", {"divergence": "none", "level": "response"}, OREO, 0.338724, {"logps": [[-0.034920] * 3]}),
    (
        "oreo",
        {"divergence": "none", "level": "step"},
        OREO | {"step_start": [[True, False, True]]},
        0.173502,
        {"logps": [[-0.01746, -0.01746, -0.00273]]},
    ),
    # token_rl_data.md, TDPO, each sum spread over several tokens; libraries.md 1.7.11 on F2
    (
        "tdpo1",
        {},
        TDPO,
        0.644397,
        {
            "chosen_token_logps": [[-0.047502] * 2],
            "rejected_token_logps": [[0.047502] * 3],
            "chosen_token_rkl": [[-0.047502] * 2],
            "rejected_token_rkl": [[0.047502] * 3],
        },
    ),
    (
        "tdpo2",
        {},
        TDPO,
        0.627924,
        {
            "chosen_token_logps": [[-0.046630] * 2],
            "rejected_token_logps": [[0.046630] * 3],
            "chosen_token_rkl": [[0.0] * 2],
            "rejected_token_rkl": [[0.023315] * 3],
        },
    ),
    ("tdpo1", {}, F2_TDPO, 0.580417, {}),
    ("tdpo1", {"beta": 0.5}, F2_TDPO, 0.315698, {}),
    (
        "tdpo2",
        {},
        F2_TDPO,
        0.634790,
        {"chosen_token_logps": [[-0.022404], [-0.024548]], "rejected_token_rkl": [[0.011202], [0.012274]]},
    ),
    ("tdpo2", {"beta": 0.5}, F2_TDPO, 0.454472, {}),
    # token_rl_data.md, SparsePO
    ("sparse_po", {}, SPARSE, 0.675432, {}),
    ("sparse_po", {"reward_penalty": 1e-3, "kl_penalty": 1e-3}, SPARSE, 0.680382, {}),
    ("sparse_po", {}, SPARSE | COMMON_MASK, 0.670412, {}),
    (
        "d2po",
        {"discount": 0.9},
        token_pairs(H_W, H_L),
        0.654475,
        {
            "chosen_token_logps": [[-0.048029, -0.043226, -0.038903]],
            "rejected_token_logps": [[0.048029, 0.043226]],
        },
    ),
    (
        "tis_dpo",
        {"shift": 0.1},
        token_pairs(H_W, H_L, contrast=([[0.3, -1.0, 2.0]], [[-0.2, 0.6]])),
        0.533806,
        {
            "chosen_token_logps": [[-0.055834, -0.025088, -0.185376]],
            "rejected_token_logps": [[0.050521, 0.022701]],
        },
    ),
    (
        "mapo",
        {},
        token_pairs(H_W, H_L, activation=([[0.2, 0.9, -0.4]], [[1.0, 0.0]]), rkl=([[0.05, 0.2, 0.1]], [[0.3, 0.15]])),
        0.690458,
        {"chosen_token_logps": [[-0.023015, -0.049865, 0.0]], "rejected_token_logps": [[0.049865, 0.0]]},
    ),
    # From the formula: log-ratios 0.5, -0.15, 0.6 beside -0.1, 0.4, a margin of 0.065.
    (
        "humanline_dpo",
        {"low": -0.15, "high": 0.6},
        token_pairs(H_W, H_L),
        0.661175,
        {"chosen_token_logps": [[-0.048376, 0.0, 0.0]], "rejected_token_logps": [[0.048376, 0.048376]]},
    ),
    # From the formula: sums 0.75 of a desirable and 0.3 of an undesirable response, z = 0.1.
    (
        "humanline_kto",
        {"low": -0.2, "high": 0.45},
        UNPAIRED,
        0.494378,
        {"token_logps": [[0.0, -0.012487, 0.0], [0.012499, 0.012499, 0.0]]},
    ),
    # token_rl_data.md, the survey's table
    ("dmpo", {}, TURNS, 0.671128, {"chosen_token_logps": [[-0.048887, -0.034671, -0.021878, -0.010363]]}),
    ("dmpo", {}, TURNS, 0.671128, {"rejected_token_logps": [[0.048887, 0.023157]]}),
]
