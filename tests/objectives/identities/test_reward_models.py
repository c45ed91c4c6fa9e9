"""Relations that objectives of `prefuse.objectives.reward_models` hold exactly, whatever the numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.objectives.identities.shared import list_losses

pytestmark = pytest.mark.evidence("identities")


def test_gpm_of_one_block_is_bradley_terry():
    rng = np.random.default_rng(44)
    r_w, r_l = rng.normal(size=(2, 6))
    columns = {"chosen_even": r_w, "rejected_even": r_l, "chosen_odd": np.ones(6), "rejected_odd": np.ones(6)}
    blocks = {name: values[:, None] for name, values in columns.items()}
    found = list_losses("gpm", blocks, temperature=1.0)
    assert_allclose(found, list_losses("bradley_terry", {"chosen_reward": r_w, "rejected_reward": r_l}), rtol=1e-13)


def test_gpm_scores_a_cycle_and_nothing_against_itself():
    angles = 2 * np.pi * np.arange(3) / 3
    v = np.stack([np.cos(angles), np.sin(angles)], 1)
    for chosen, rejected in ((0, 1), (1, 2), (2, 0)):
        columns = {"chosen_even": v[[chosen], :1], "chosen_odd": v[[chosen], 1:]}
        columns |= {"rejected_even": v[[rejected], :1], "rejected_odd": v[[rejected], 1:]}
        assert_allclose(list_losses("gpm", columns, temperature=1.0), np.log1p(np.exp(-math.sqrt(3) / 2)), rtol=1e-12)
        itself = columns | {"rejected_even": v[[chosen], :1], "rejected_odd": v[[chosen], 1:]}
        assert_allclose(list_losses("gpm", itself), np.log(2), rtol=1e-14)
