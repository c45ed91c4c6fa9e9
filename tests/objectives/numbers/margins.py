"""Worked numbers of `prefuse.objectives.margins`."""

from __future__ import annotations

from tests.objectives.numbers.batches import COMMON, F1, SURVEY, T0, Columns, pairs
from tests.objectives.numbers.shared import Row, column, wl

THREE_PAIRS = pairs([-3.5, -3.5, -4], [-6.5, -3, -2], [-3.75, -4.5, -3.5], [-5.25, -3, -3], [3, 4, 2], [5, 2, 1])


def unsafe(chosen: bool, rejected: bool) -> Columns:
    return column(T0, chosen_unsafe=chosen, rejected_unsafe=rejected)


ROWS: list[Row] = [
    # pairwise.md, 3D; token_rl_data.md, the survey's table: Flex-DPO and DPO-Shift
    ("flex_dpo", {}, COMMON, 0.529260, wl(-0.041096, 0.032877)),
    ("flex_dpo", {"beta_rejected": 0.075}, SURVEY, 0.675800, {}),
    # general.md, ranking-accuracy: DPO^γ; token_rl_data.md, the survey's table: weights .1 and .05
    ("dpo_gamma", {"gamma": 0.0}, T0, 0.554355, {}),
    ("dpo_gamma", {"gamma": 0.5}, T0, 0.586962, {}),
    ("dpo_gamma", {"gamma": 1.0}, T0, 0.620957, wl(-0.046257, 0.046257)),
    ("dpo_gamma", {"gamma": 2.0}, T0, 0.693147, {}),
    ("dpo_gamma", {"gamma": 0.5}, SURVEY, 0.661175, {}),
    # token_rl_data.md, the survey's table, and general.md, modpo: offsets
    ("odpo", {}, column(SURVEY, margin=0.2), 0.781755, {}),
    ("modpo", {}, column(T0, margin=0.25), 0.798139, {"chosen_logps": [-0.109967]}),
    ("modpo", {"link": "hinge"}, column(T0, margin=0.25), 1.2, {}),
    ("modpo", {"weight": 1.0}, column(T0, margin=0.2), 0.718460, {}),
    ("modpo", {}, column(SURVEY, margin=0.15), 0.820330, {}),
    # general.md, daa-scaling
    ("daa", {}, T0, 0.620957, {}),
    ("daa", {"link": "ipo"}, T0, 0.7225, {}),
    ("daa", {"link": "slic"}, T0, 0.85, {}),
    ("daa", {"beta": 0.5}, T0, 0.386871, {}),
    ("daa", {"beta": 0.5, "link": "ipo"}, T0, 0.0625, {}),
    ("daa", {"beta": 0.5, "link": "slic"}, T0, 0.25, {}),
    ("daa", {"alpha": -0.01}, T0, 0.611755, {}),
    # token_rl_data.md, the survey's table: χPO, GDPO, Dr. DPO on one pair, ties
    ("chi_po", {}, SURVEY, 0.657442, {}),
    # from the formulas, with gradients by differences in 30 digits
    (
        "alpha_dpo",
        {"beta": 2.0, "gamma": 1.0, "average": True},
        F1,
        0.879107,
        wl(-0.239250, -0.097340, 0.143550, 0.194680),
    ),
    (
        "alpha_dpo",
        {"beta": 2.0, "gamma": 1.0},
        THREE_PAIRS,
        0.995926,
        wl(-0.158496, -0.077161, -0.224246, 0.095098, 0.154323, 0.448493),
    ),
    (
        "alpha_dpo",
        {"beta": 2.0, "gamma": 1.0, "average": True},
        THREE_PAIRS,
        0.993669,
        wl(-0.157350, -0.078332, -0.224016, 0.094410, 0.156663, 0.448033),
    ),
    (
        "alpha_dpo",
        {"beta": 2.0, "gamma": 1.0, "average": True, "scaled": True},
        THREE_PAIRS,
        0.991267,
        wl(-0.164136, -0.083734, -0.202350, 0.098482, 0.167469, 0.404701),
    ),
    (
        "alpha_dpo",
        {"beta": 2.0, "gamma": 1.0, "mean": 0.5, "deviation": 2.0},
        THREE_PAIRS,
        0.987819,
        wl(-0.154902, -0.075028, -0.229992, 0.092941, 0.150055, 0.459983),
    ),
    # token_rl_data.md, the survey's table
    ("safe_dpo", {"delta": 0.5}, unsafe(False, True), 0.883382, wl(-0.058662, 0.058662)),
    ("safe_dpo", {"delta": 0.5}, unsafe(True, False), 1.070055, wl(0.065701, -0.065701)),
    ("safe_dpo", {"delta": 0.5}, unsafe(True, True), 0.0, wl(0.0, 0.0)),
    ("safe_dpo", {"delta": 0.5, "both_unsafe": "kept"}, unsafe(True, True), 0.620957, wl(-0.046257, 0.046257)),
    ("c_dpo", {}, column(T0, chosen_score=1.0, rejected_score=0.2, chosen_cost=0.9, rejected_cost=0.0), 0.770957, {}),
    (
        "c_dpo",
        {"multiplier": 0.5},
        column(T0, chosen_score=1.0, rejected_score=0.2, chosen_cost=0.9, rejected_cost=0.0),
        0.620957,
        {},
    ),
]
