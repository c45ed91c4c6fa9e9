"""Worked numbers of `prefuse.objectives.visual`."""

from __future__ import annotations

import numpy as np

from tests.objectives.numbers.batches import BLIND, COMMON, opa
from tests.objectives.numbers.shared import Row, wl

DAMAGED = {"chosen_damaged_logps": np.array([-20.0]), "ref_chosen_damaged_logps": np.array([-20.5])}

ROWS: list[Row] = [
    # pairwise.md, BPO
    ("bpo", {"beta": 0.1}, BLIND, 1.088955, wl(-0.083914, 0.040131) | {"blind_logps": [0.043782]}),
    # pairwise.md, BPO: the released script's mean over two rows is half of the sum
    ("bpo", {"beta": 0.1, "combine": "mean"}, BLIND, 1.088955 / 2, wl(-0.083914 / 2, 0.040131 / 2)),
    # token_rl_data.md, OPA-DPO: the weighted pair beside log 2, the anchor, and image terms of log 2
    ("opa_dpo", {"image_weight": 0.0, "anchor_weight": 0.0}, opa(0.3), 0.693147 + 0.656350, {}),
    ("opa_dpo", {"image_weight": 0.5, "anchor_weight": 0.0}, opa(0.3), 2 * 0.693147 + 0.656350, {}),
    ("opa_dpo", {"image_weight": 0.0}, opa(0.6), 0.678260 + 0.656350 + 0.663597 + 0.708260, {}),
    # token_rl_data.md, the survey's table
    (
        "multimodal_dpo",
        {"delta": 0.1},
        COMMON | DAMAGED,
        1.778369,
        wl(-0.133890, 0.040131) | {"chosen_damaged_logps": [0.046257]},
    ),
]
