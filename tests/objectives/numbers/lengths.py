"""Worked numbers of `prefuse.objectives.lengths`."""

from __future__ import annotations

from tests.objectives.numbers.batches import F1_TOKENS, SURVEY, T0, tokens
from tests.objectives.numbers.shared import Row

LD_GRADIENT = {
    "chosen_token_logps": [[-0.02344] * 3 + [0.0], [-0.024375] * 2 + [-0.012188] * 2],
    "rejected_token_logps": [[0.02344] * 3 + [0.01172] * 2, [0.024375] * 2 + [0.0] * 3],
}

ROWS: list[Row] = [
    # token_rl_data.md, the survey's table, and general.md, daa-scaling (whose notes print the other sign): R-DPO
    ("r_dpo", {"beta": 0.1, "alpha": 0.01}, SURVEY, 0.693147, {}),
    ("r_dpo", {"beta": 0.1, "alpha": -0.01}, T0, 0.611755, {}),
    # libraries.md 1.1.4: LD-DPO and WPO as TRL 1.16 has them
    ("ld_dpo", {"beta": 0.1, "alpha": 0.5}, F1_TOKENS, 0.650529, LD_GRADIENT),
    ("ld_dpo", {"beta": 0.5, "alpha": 0.5}, F1_TOKENS, 0.502320, {}),
    ("ld_dpo", {"beta": 0.1, "alpha": 0.0}, F1_TOKENS, 0.668772, {}),
    ("ld_dpo", {"beta": 0.5, "alpha": 0.0}, F1_TOKENS, 0.583612, {}),
    ("ld_dpo", {"beta": 0.1, "alpha": 1.0}, F1_TOKENS, 0.632677, {}),
    # from the formulas, with gradients by differences in 30 digits
    (
        "sampo",
        {},
        tokens("chosen", [[0.5, -0.2, 0.9]], [[0.0] * 3], sampled=[[1, 0, 1]])
        | tokens("rejected", [[-0.1, 0.4]], [[0.0] * 2], sampled=[[1, 1]]),
        0.639659,
        {
            "chosen_token_logps": [[-0.047253, 0.0, -0.047253]],
            "rejected_token_logps": [[0.047253, 0.047253]],
        },
    ),
]
