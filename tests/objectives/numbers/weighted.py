"""Worked numbers of `prefuse.objectives.weighted`."""

from __future__ import annotations

from tests.objectives.numbers.batches import COMMON, F1, F1_TOKENS, T0
from tests.objectives.numbers.shared import Row, column, wl

ROWS: list[Row] = [
    # libraries.md 1.1.4: LD-DPO and WPO as TRL 1.16 has them
    ("wpo", {"beta": 0.1, "variant": "trl-1.16"}, F1_TOKENS, 0.241440, {}),
    ("wpo", {"beta": 0.5, "variant": "trl-1.16"}, F1_TOKENS, 0.163777, {}),
    ("wpo", {"beta": 0.1}, F1_TOKENS, 0.241440, {}),
    ("wpo", {"beta": 0.1, "label_smoothing": 0.1}, F1_TOKENS, 0.246248, {}),
    # libraries.md 1.7.14: β-DPO without dropping pairs
    ("beta_dpo", {"beta": 0.1, "centre": 0.0}, F1, 0.589978, {}),
    ("beta_dpo", {"beta": 0.1, "centre": 2.0}, F1, 0.659387, {}),
    ("beta_dpo", {"beta": 0.1, "centre": 1.25}, F1, 0.632677, {}),
    # from the formulas, with gradients by differences in 30 digits
    ("mallows_po", {}, column(COMMON, dispersion=0.5), 0.598139, wl(-0.022508, 0.022508)),
    ("ns_dpo", {}, column(COMMON, age=2.0), 0.462996, wl(-0.036218, 0.036218)),
    # token_rl_data.md, the survey's table
    ("dpo_rc", {}, column(T0, chosen_score=1.0, rejected_score=0.2), 0.496766, wl(-0.037006, 0.037006)),
    ("dpo_rc", {}, column(T0, chosen_score=0.2, rejected_score=1.0), 0.0, wl(0.0, 0.0)),
]
