"""Worked numbers of `prefuse.objectives.reward_models`."""

from __future__ import annotations

import math

from tests.objectives.numbers.shared import Row

EMBEDDINGS = {"chosen_even": [[1.2, -0.3]], "chosen_odd": [[0.5, 0.8]]}
EMBEDDINGS |= {"rejected_even": [[0.3, 0.6]], "rejected_odd": [[-0.4, 0.1]]}

ONE_BLOCK = {name: [value[0][:1]] for name, value in EMBEDDINGS.items()}

ROWS: list[Row] = [
    # general.md, gpm: s = -0.63 with one block, -1.14 with two, -1.176 gated
    ("gpm", {"temperature": 0.1}, ONE_BLOCK, 6.301835, {}),
    ("gpm", {"temperature": 1.0}, ONE_BLOCK, 1.056960, {}),
    ("gpm", {"temperature": 1.0}, EMBEDDINGS, math.log1p(math.exp(1.14)), {}),
    ("gpm", {"temperature": 1.0, "gated": True}, EMBEDDINGS | {"gate": [[1.3, 0.7]]}, math.log1p(math.exp(1.176)), {}),
    # token_rl_data.md, DomainRM and the survey: Bradley-Terry with Δ = 0.7
    ("bradley_terry", {}, {"chosen_reward": [1.0], "rejected_reward": [0.3]}, 0.403186, {}),
]
