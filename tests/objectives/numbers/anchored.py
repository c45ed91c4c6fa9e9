"""Worked numbers of `prefuse.objectives.anchored`."""

from __future__ import annotations

from tests.objectives.numbers.batches import COMMON, F1, F1_WIN_RATES, F2, SURVEY, WIN_RATES
from tests.objectives.numbers.shared import Row, column, wl

ROWS: list[Row] = [
    # pairwise.md, SPPO
    ("sppo", {"beta": 1e-3}, WIN_RATES, 64004.0, wl(-298.0, 198.0)),
    ("sppo", {"beta": 0.1}, WIN_RATES, 0.5, wl(-1.0, 0.0)),
    ("sppo_hard", {"beta": 0.1}, COMMON, 18.0, {}),
    # token_rl_data.md, the survey's table
    ("nca", {"beta": 0.1}, SURVEY, 1.379288, {}),
    ("bco_pair", {"beta": 0.1, "delta": 0.0}, SURVEY, 1.371657, {}),
    ("sppo_hard", {"beta": 0.1}, SURVEY, 47.29, {}),
    ("apo_zero", {"beta": 0.1}, SURVEY, 0.992502, {}),
    ("apo_down", {"beta": 0.1}, SURVEY, 1.004998, {}),
    # libraries.md 1.1.2: TRL 1.16 on F1
    ("nca", {"beta": 0.1}, F1, 1.356528, wl(-0.012031, -0.010627, 0.011720, 0.0125)),
    ("nca", {"beta": 0.5}, F1, 1.266719, {}),
    ("bco_pair", {"beta": 0.1}, F1, 1.325434, wl(-0.024688, -0.023751, 0.023440, 0.025)),
    ("bco_pair", {"beta": 0.5}, F1, 1.114262, {}),
    ("sppo_hard", {"beta": 0.1}, F1, 38.8125, wl(-4.75, -4.0, 3.75, 5.0)),
    ("sppo_hard", {"beta": 0.5}, F1, 0.8125, {}),
    ("apo_zero", {"beta": 0.1}, F1, 0.968781, wl(-0.012498, -0.012469, 0.012451, 0.0125)),
    ("apo_zero", {"beta": 0.5}, F1, 0.847488, {}),
    ("apo_down", {"beta": 0.1}, F1, 0.984410, wl(0.000068, 0.000000, 0.012430, 0.012469)),
    ("apo_down", {"beta": 0.5}, F1, 0.926015, {}),
    # libraries.md 1.2 and 1.7: TRL 0.24, the original DPO code, OpenRLHF, HALOs, open-instruct, NeMo-RL, SPPO
    ("sppo", {"beta": 0.1}, F1_WIN_RATES, 4.593750, {}),
    # libraries.md 1.6: Liger on F2
    ("nca", {"beta": 0.1}, F2, 1.395995, {}),
    ("bco_pair", {"beta": 0.1, "delta": 0.0}, F2, 1.396733, {}),
    ("sppo_hard", {"beta": 0.1}, F2, 57.436989, {}),
    ("apo_zero", {"beta": 0.1}, F2, 1.000773, {}),
    ("apo_down", {"beta": 0.1}, F2, 0.955873, {}),
    # pairwise.md, SPPO: the single form at P = .8 is the soft one at (.8, .2); libraries.md 1.3: kto_pair
    ("sppo", {"beta": 0.1, "labels": "single"}, column(COMMON, win_prob=0.8), 1.0, wl(-1.0, 1.0)),
    ("kto_pair", {}, F1, 0.476603, {}),
]

VARIANTS = [
    # libraries.md 1.1.2 and 1.3: TRL 1.16
    ("sppo", "trl-1.16", {}, F1, 38.8125),
    ("sppo", "trl-1.16", {"beta": 0.5}, F1, 0.8125),
    ("sppo_hard", "liger", {}, F2, 57.436989),
    ("bco_pair", "trl-1.16", {}, F2, 1.396733),
    # libraries.md 1.5: the four losses of BCO's running mean, by pairs
    ("bco_pair", "trl-0.24", {}, F2, 1.388768),
]
