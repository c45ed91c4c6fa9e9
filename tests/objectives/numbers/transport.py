"""Worked numbers of `prefuse.objectives.transport`."""

from __future__ import annotations

from tests.objectives.numbers.batches import F1, F1B
from tests.objectives.numbers.shared import Row, wl

ROWS: list[Row] = [
    # libraries.md 1.1.2: TRL 1.16 on F1
    ("aot", {"beta": 0.1}, F1, 0.632677, wl(-0.023129, -0.023751, 0.023129, 0.023751)),
    ("aot", {"beta": 0.5}, F1, 0.430474, {}),
    ("aot", {"beta": 0.1, "label_smoothing": 0.1}, F1, 0.645177, wl(-0.018129, -0.018751, 0.018129, 0.018751)),
    ("aot", {"beta": 0.5, "label_smoothing": 0.1}, F1, 0.492974, {}),
    ("aot_unpaired", {"beta": 0.1}, F1, 0.632677, wl(-0.023129, -0.023751, 0.023129, 0.023751)),
    ("aot_unpaired", {"beta": 0.5}, F1, 0.430474, {}),
    # libraries.md 1.1.2: TRL 1.16 on F1b, where sorting matters
    ("aot", {"beta": 0.1}, F1B, 0.685335, wl(-0.016667, -0.015834, -0.017083, 0.016667, 0.015834, 0.017083)),
    ("aot", {"beta": 0.5}, F1B, 0.664388, {}),
    ("aot", {"beta": 0.1, "label_smoothing": 0.1}, F1B, 0.687001, {}),
    ("aot", {"beta": 0.5, "label_smoothing": 0.1}, F1B, 0.672721, {}),
    ("aot_unpaired", {"beta": 0.1}, F1B, 0.685751, wl(-0.016250, -0.017499, -0.015834, 0.017499, 0.015834, 0.016250)),
    ("aot_unpaired", {"beta": 0.5}, F1B, 0.674698, {}),
    ("aot_unpaired", {"beta": 0.1, "label_smoothing": 0.1}, F1B, 0.687418, {}),
    ("aot_unpaired", {"beta": 0.5, "label_smoothing": 0.1}, F1B, 0.683031, {}),
]
