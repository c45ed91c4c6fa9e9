"""The batches that the worked numbers refer to, as the columns a caller passes.

COMMON, T0 and SURVEY are single pairs; F1, F1B and F2 are batches of 2, 3 and 2 pairs. `points` turns a batch of
pairs into a batch of points: the chosen responses, then the rejected ones.
"""

from __future__ import annotations

import numpy as np

Columns = dict[str, np.ndarray]


def pairs(w, l, ref_w, ref_l, n_w=None, n_l=None, **extra) -> Columns:  # noqa: E741
    columns = {"chosen_logps": w, "rejected_logps": l, "ref_chosen_logps": ref_w, "ref_rejected_logps": ref_l}
    found = {name: np.asarray(value, dtype=np.float64) for name, value in (columns | extra).items()}
    if n_w is not None:
        found |= {"chosen_lengths": np.asarray(n_w), "rejected_lengths": np.asarray(n_l)}
    return found


def points(batch: Columns) -> Columns:
    both = lambda name: np.concatenate([batch[f"{name}chosen_logps"], batch[f"{name}rejected_logps"]])  # noqa: E731
    size = len(batch["chosen_logps"])
    return {"logps": both(""), "ref_logps": both("ref_"), "label": np.arange(2 * size) < size}


COMMON = pairs([-20], [-30], [-22], [-28], [10], [15])
T0 = pairs([-12], [-15], [-13], [-14.5], [8], [10])
SURVEY = pairs([-5], [-6], [-5.5], [-6.2], [5], [8])
F1 = pairs([-3.5, -3.5], [-6.5, -3], [-3.75, -4.5], [-5.25, -3], [3, 4], [5, 2])
F1B = pairs([-3, -2, -4], [-2.5, -4, -3], [-3, -2.5, -3], [-4, -2, -2.5], [1, 1, 1], [1, 1, 1])
F2 = pairs(
    [-7.096864, -7.612934],
    [-3.844921, -5.224437],
    [-4.708355, -6.396654],
    [-1.443101, -4.083355],
    [3, 4],
    [2, 3],
)
BLIND = pairs([-20], [-30], [-22], [-28], blind_logps=[-25], ref_blind_logps=[-24.5])
CONFIDENT = pairs([-12], [-30], [0], [0], [10], [15])  # the pair of the SimPO, ASFT and ORPO entries
WIN_RATES = COMMON | {"chosen_win_prob": np.array([0.8]), "rejected_win_prob": np.array([0.3])}
F1_WIN_RATES = F1 | {"chosen_win_prob": np.array([0.9, 0.7]), "rejected_win_prob": np.array([0.2, 0.45])}
F1_POINTS, F2_POINTS = points(F1), points(F2)
F2_POINTS_KL = F2_POINTS | {
    "kl_logps": np.array([-5.0, -6.0, -4.0, -7.0]),
    "ref_kl_logps": np.array([-5.5, -6.25, -4.25, -7.25]),
}


def padded(rows) -> np.ndarray:
    """Ragged rows as an array, filled up with zeros."""
    width = max(len(row) for row in rows)
    return np.array([[*row, *[0.0] * (width - len(row))] for row in rows])


def tokens(role: str, policy, reference, **extra) -> Columns:
    """The token columns of one role; the mask follows from the lengths of the rows."""
    width = max(len(row) for row in policy)
    found = {f"{role}_mask": np.arange(width) < np.array([len(row) for row in policy])[:, None]}
    found |= {f"{role}_token_logps": padded(policy), f"ref_{role}_token_logps": padded(reference)}
    return found | {f"{role}_token_{name}": padded(rows) for name, rows in extra.items()}


F1_TOKENS = tokens(
    "chosen",
    [[-1.0, -0.5, -2.0], [-0.25, -1.5, -0.75, -1.0]],
    [[-1.25, -0.75, -1.75], [-0.5, -1.25, -1.25, -1.5]],
    log_sum_sq=[[-0.9, -0.4, -1.1], [-0.2, -0.8, -0.6, -0.7]],
) | tokens(
    "rejected",
    [[-1.5, -2.5, -0.5, -1.25, -0.75], [-2.0, -1.0]],
    [[-1.0, -2.0, -0.75, -1.0, -0.5], [-1.75, -1.25]],
    log_sum_sq=[[-0.8, -1.2, -0.3, -0.9, -0.5], [-1.0, -0.6]],
)
F1_FALLEN = F1 | {"ref_chosen_logps": np.array([-3.25, -3.75])}
DENOISED = pairs([-0.10], [-0.15], [-0.12], [-0.14])
RATIONALE = COMMON | {"rationale_logps": np.array([-40.0])}
OTHER = {"chosen_other_logps": np.array([-12.4]), "rejected_other_logps": np.array([-14.9])}
OTHER_SIDE = pairs([-12.4], [-14.9], [-13], [-14.5], chosen_other_logps=[-12], rejected_other_logps=[-15])
PREVIOUS = T0 | {"chosen_previous_logps": np.array([-12.5]), "rejected_previous_logps": np.array([-14.8])}
JUDGED = pairs([0.2], [-0.3], [0], [0], chosen_win_prob=[0.7], rejected_win_prob=[0.4], win_prob=[0.7])
CALIBRATION = COMMON | {"calibration_logps": np.array([-25.0]), "ref_calibration_logps": np.array([-26.0])}
# Rows 0 and 1 of F2 are the policy's samples, 2 and 3 the reference's; the policy won the first comparison only.
F2_ONLINE = pairs(
    [-7.096864, -5.224437],
    [-3.844921, -7.612934],
    [-4.708355, -4.083355],
    [-1.443101, -6.396654],
) | {"chosen_from_policy": np.array([True, False])}
SRPO_RATIOS = {
    "chosen": 0.4,
    "rejected": -0.6,
    "improved": 1.0,
    "worsened": -0.5,
    "kept_chosen": 0.3,
    "kept_rejected": 0.2,
}
SRPO = {f"{role}_logps": np.array([h - 10.0]) for role, h in SRPO_RATIOS.items()}
SRPO |= {f"ref_{role}_logps": np.array([-10.0]) for role in SRPO_RATIOS}


def opa(chosen: float) -> Columns:
    """The worked pair of OPA-DPO as its revised and rejected responses, with a chosen one of this log-ratio."""
    revised = tokens("revised", [[0.3, -0.1, 0.4]], [[0.0] * 3], severity=[[1.5, 1, 1]], recognition=[[3, 1, 1]])
    damaged = tokens("revised_damaged", [[0.3, -0.1, 0.4]], [[0.0] * 3], recognition=[[3, 1, 1]])
    rejected = tokens("rejected", [[-0.2, 0.5]], [[0.0] * 2], severity=[[2.5, 1]])
    sums = {f"{role}_logps": np.array([chosen]) for role in ("chosen", "chosen_damaged")}
    return revised | damaged | rejected | sums | {f"ref_{name}": np.zeros(1) for name in sums}


GOLD = {"gold_logps": np.array([-8.0]), "gold_lengths": np.array([8])}
