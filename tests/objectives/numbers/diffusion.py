"""Worked numbers of `prefuse.objectives.diffusion`."""

from __future__ import annotations

from tests.objectives.numbers.batches import Columns
from tests.objectives.numbers.shared import Row, one_pair


def errors(sign: float) -> Columns:
    """d(w) = -0.02 and d(l) = 0.01."""
    found = {"chosen_error": 0.08, "chosen_ref_error": 0.1, "rejected_error": 0.11, "rejected_ref_error": 0.1}
    return {name: [value] for name, value in (found | {"sign": sign}).items()}


ROWS: list[Row] = [
    # token_rl_data.md, D3PO, Diffusion-DPO (β = 10 with the code's factor ½), SePPO
    ("d3po", {"beta": 0.1, "clip": 0.1}, one_pair(0.03, -0.25), 0.686402, {"rejected_logps": [0.0]}),
    (
        "diffusion_dpo",
        {"beta": 5.0},
        {"chosen_error": [0.10], "chosen_ref_error": [0.12], "rejected_error": [0.15], "rejected_ref_error": [0.14]},
        0.620957,
        {},
    ),
    (
        "seppo",
        {"beta": 100.0},
        {"chosen_error": [0.0], "chosen_ref_error": [0.02], "rejected_error": [0.01], "rejected_ref_error": [0.0]},
        0.048587,
        {},
    ),
    # token_rl_data.md, SePPO, with the sign it names
    ("seppo", {"beta": 100.0, "anchor": "given"}, errors(sign=-1.0), 0.313262, {}),
    ("seppo", {"beta": 100.0, "anchor": "given"}, errors(sign=1.0), 0.048587, {}),
]
