"""Worked numbers of `prefuse.objectives.pointwise`."""

from __future__ import annotations

import numpy as np

from tests.objectives.numbers.batches import F1_POINTS, F2_POINTS, F2_POINTS_KL, Columns
from tests.objectives.numbers.shared import Row, column


def point(logp: float, ref_logp: float = 0.0, **values: object) -> Columns:
    return column({}, logps=logp, ref_logps=ref_logp, **values)


GPO = {"logps": [-12.0, -15.0], "ref_logps": [-13.0, -14.5], "score": [0.4, -0.25]}

ROWS: list[Row] = [
    # libraries.md 1.3: KTO
    ("kto", {"beta": 0.1, "kl": 0.0}, F1_POINTS, 0.484390, {}),
    ("kto", {"beta": 0.5, "kl": 0.0}, F1_POINTS, 0.423744, {}),
    ("kto", {"beta": 0.1, "kl": 0.5}, F1_POINTS, 0.484404, {}),
    ("kto", {"beta": 0.5, "kl": 0.5}, F1_POINTS, 0.425268, {}),
    ("kto", {"beta": 0.1, "kl": 0.0, "desirable_weight": 4 / 3}, F1_POINTS, 0.565121, {}),
    ("kto", {"beta": 0.1, "kl": 1.125}, F1_POINTS, 0.484448, {}),
    ("kto", {"beta": 0.1}, F2_POINTS_KL, 0.5003857, {}),
    ("kto", {"beta": 0.5}, F2_POINTS_KL, 0.5017799, {}),
    ("kto", {"beta": 0.1, "desirable_weight": 1.5, "undesirable_weight": 0.5}, F2_POINTS_KL, 0.5265085, {}),
    ("kto", {"beta": 0.1, "kl": -0.25}, F2_POINTS, 0.5003864, {}),
    ("apo_zero_unpaired", {"beta": 0.1}, F2_POINTS, 0.5003864, {}),
    ("kto", {"beta": 0.1, "kl": 0.3}, F2_POINTS, 0.500386, {}),
    # libraries.md 1.5: BCO with the batch's own mean as δ; sums in online DPO's IPO
    ("bco", {"beta": 0.1}, F2_POINTS, 0.694384, {}),
    # general.md, gpo: half the sum of the pair's two squares; token_rl_data.md: DRO, NPO, SimNPO, CRRAFT
    ("gpo", {"beta": 1.0}, {k: np.array(v) for k, v in GPO.items()}, 0.211250, {}),
    ("gpo", {"beta": 0.1}, {k: np.array(v) for k, v in GPO.items()}, 6.5, {}),
    ("dro", {"tau": 0.1}, point(-5.0, -5.5, reward=1.0, value=0.3), 0.211250, {"logps": [-0.065], "value": [-0.65]}),
    ("npo", {}, point(-6.0, -6.2), 14.063944, {}),
    ("simnpo", {"beta": 0.1}, {"logps": np.array([-6.0]), "lengths": np.array([8])}, 13.127003, {}),
    (
        "crraft",
        {"average": "tokens"},
        column({}, logps=-5.0, lengths=5, score=0.768525),
        0.768525,
        {"logps": [-0.153705]},
    ),
    ("crraft", {}, column({}, logps=-5.0, score=0.768525), 3.842625, {"logps": [-0.768525]}),
    # pairwise.md, SPPO: one half of the soft pair
    ("sppo_point", {"beta": 0.1}, point(-20.0, -22.0, win_prob=0.8), 0.5, {"logps": [-1.0]}),
    # pairwise.md, ASFT: the two halves of the pair
    ("asft_unpaired", {}, column({}, logps=-12.0, lengths=10, label=True), 2.4, {"logps": [-0.2]}),
    ("asft_unpaired", {}, column({}, logps=-30.0, lengths=15, label=False), 0.145413, {"logps": [0.010435]}),
    # general.md, nbpo: its gradients are of the ascent direction; the values of the final form mean nothing
    ("nbpo", {"form": "likelihood"}, point(1.0, flip=-2.0, label=True), 0.440190, {}),
    (
        "nbpo",
        {"form": "likelihood"},
        point(1.0, flip=-2.0, label=False),
        1.032584,
        {"logps": [0.486330], "flip": [-0.215556]},
    ),
    ("nbpo", {"form": "surrogate"}, point(1.0, flip=-2.0, label=True), -0.643914, {}),
    ("nbpo", {"form": "surrogate"}, point(1.0, flip=-2.0, label=False), -0.356086, {}),
    ("nbpo", {}, point(1.0, flip=-2.0, label=True), 0.368712, {"logps": [-0.236883], "flip": [0.087144]}),
    ("nbpo", {}, point(1.0, flip=-2.0, label=False), 2.905512, {"logps": [0.699000], "flip": [-0.643914]}),
    # token_rl_data.md, the survey's table
    ("ulma", {}, point(-5.0, -5.5, label=False, demonstration=True), 5.0, {"logps": [-1.0]}),
    ("ulma", {}, point(-5.0, -5.5, label=True, demonstration=False), 0.668460, {}),
    ("ulma", {}, point(-5.0, -5.5, label=False, demonstration=False), 0.718460, {"logps": [0.051250]}),
]

VARIANTS = [
    # libraries.md 1.5: the four losses of BCO's running mean, by pairs
    ("bco", "trl-0.24", {}, F2_POINTS, 0.694384),
]
