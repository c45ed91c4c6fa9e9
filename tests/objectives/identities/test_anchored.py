"""Relations that objectives of `prefuse.objectives.anchored` hold exactly, whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.objectives.identities.shared import COLUMNS, PAIR, SIZE, H, gradients, losses, same

pytestmark = pytest.mark.evidence("identities")


def test_sppo_of_one_number_and_of_points():
    p = COLUMNS["win_prob"]
    two = COLUMNS | {"chosen_win_prob": p, "rejected_win_prob": 1 - p}
    same(losses("sppo", beta=0.1, labels="single"), losses("sppo", two, beta=0.1))
    half = COLUMNS | {"score": p - 0.5}
    same(losses("gpo", half, beta=0.1), 2 * losses("sppo_point", beta=0.1))


def test_kto_pair_below_the_reference_is_half_of_apo_zero():
    below = COLUMNS | {f"{role}_logps": COLUMNS[f"ref_{role}_logps"] - 1 - np.arange(SIZE) for role in PAIR}
    same(losses("kto_pair", below, beta=0.2), losses("apo_zero", below, beta=0.2) / 2)


def test_apo_down_pays_for_distance_alone_where_the_rejected_response_stays():
    stays = COLUMNS | {"ref_rejected_logps": COLUMNS["rejected_logps"]}
    same(losses("apo_down", stays, beta=0.2), 1.0)
    assert not gradients("apo_down", stays, beta=0.2)["chosen_logps"].any()


def test_sppo_hard_is_twice_sppo_with_certain_wins():
    certain = COLUMNS | {"chosen_win_prob": np.ones(SIZE), "rejected_win_prob": np.zeros(SIZE)}
    assert_allclose(losses("sppo_hard", beta=0.1), 2 * losses("sppo", certain, beta=0.1), rtol=1e-13)
    even = COLUMNS | {"chosen_win_prob": np.full(SIZE, 0.5), "rejected_win_prob": np.full(SIZE, 0.5)}
    assert_allclose(losses("sppo", even, beta=0.1), (H["chosen"] ** 2 + H["rejected"] ** 2) / 2, rtol=1e-13)


def test_biased_nca_is_bco():
    """nca without its middle term is bco_pair with half weight on the rejected term."""
    middle, rest = (0.5 * np.log1p(np.exp(0.2 * H[role])) for role in ("chosen", "rejected"))
    assert_allclose(losses("nca", beta=0.2) - middle, losses("bco_pair", beta=0.2, delta=0.0) - rest, rtol=1e-12)
