"""Relations that objectives of `prefuse.objectives.reference_free` hold exactly, whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.objectives.identities.shared import COLUMNS, PAIR, SIZE, losses, same
from tests.objectives.pairs_and_points import evaluate

pytestmark = pytest.mark.evidence("identities")


def test_alphapo_limits():
    same(losses("alphapo", beta=3.0, alpha=0.0, gamma=0.7), losses("simpo", beta=3.0, gamma=0.7))
    same(losses("alphapo", beta=3.0, alpha=1e-5, gamma=0.7), losses("simpo", beta=3.0, gamma=0.7), rtol=1e-3)
    simper = evaluate("alphapo", {"beta": 1.0, "alpha": -1.0}, COLUMNS).rewards
    same(losses("simper"), simper["rejected"] - simper["chosen"])


def test_slic_is_the_hinge_without_a_reference():
    free = COLUMNS | {"ref_chosen_logps": np.zeros(SIZE), "ref_rejected_logps": np.zeros(SIZE)}
    same(losses("slic", delta=5.0, alpha=0.0), 5.0 * losses("hinge", free, beta=0.2))


def test_tpo_from_cpo_and_simpo():
    own = COLUMNS | {"gold_logps": COLUMNS["chosen_logps"], "gold_lengths": COLUMNS["chosen_lengths"]}
    same(losses("tpo", own, beta=0.2, alpha=1.0), losses("cpo", beta=0.2, alpha=1.0, nll="token_mean"))
    same(losses("tpo_l", beta=3.0, gamma=0.7, alpha=0.0), losses("simpo", beta=3.0, gamma=0.7))
    tied = COLUMNS | {"rejected_logps": COLUMNS["chosen_logps"]}
    same(losses("tpo", tied, alpha=0.0), np.log(2))


def test_asft_bounds_orpo_and_contains_sft():
    same(losses("asft", weight=0.0), losses("sft", nll="response_mean"))
    assert np.all(losses("asft", weight=0.4) >= losses("orpo", beta=0.4, nll="response_mean"))


def test_asft_is_a_sum_of_two_points():
    parameters = {"beta": 0.6, "weight": 0.4, "alpha": 0.3}
    sides = [
        {
            "logps": COLUMNS[f"{role}_logps"],
            "lengths": COLUMNS[f"{role}_lengths"],
            "label": np.full(SIZE, role == "chosen"),
        }
        for role in PAIR
    ]
    same(losses("asft", **parameters), sum(losses("asft_unpaired", side, **parameters) for side in sides))


def test_simpo_reductions():
    columns = COLUMNS | {"chosen_lengths": np.full(SIZE, 5), "rejected_lengths": np.full(SIZE, 5)}
    reference_free = columns | {"ref_chosen_logps": np.zeros(SIZE), "ref_rejected_logps": np.zeros(SIZE)}
    assert_allclose(losses("simpo", columns, beta=2.0, gamma=0.0), losses("dpo", reference_free, beta=0.4), rtol=1e-13)
    assert_allclose(losses("simpo", beta=3.0, gamma=1.2), losses("simpo", beta=3.0, gamma_beta_ratio=0.4), rtol=1e-13)
    tied = columns | {"rejected_logps": columns["chosen_logps"]}
    assert_allclose(losses("simpo", tied, beta=2.0, gamma=0.7), np.log1p(np.exp(0.7)), rtol=1e-13)


def test_orpo_from_asft():
    """L_ORPO = L_ASFT + λ log[p_w (1 - p_l) + p_l (1 - p_w)], p the geometric mean of a response's probabilities."""
    p = np.exp(COLUMNS["chosen_logps"] / COLUMNS["chosen_lengths"])
    q = np.exp(COLUMNS["rejected_logps"] / COLUMNS["rejected_lengths"])
    weight = 0.4
    asft = -(1 + weight) * np.log(p) - weight * np.log1p(-q)
    expected = asft + weight * np.log(p * (1 - q) + q * (1 - p))
    assert_allclose(losses("orpo", beta=weight, nll="response_mean"), expected, rtol=1e-11)


def test_cpo_is_reference_free_dpo_with_likelihood():
    reference_free = COLUMNS | {"ref_chosen_logps": np.zeros(SIZE), "ref_rejected_logps": np.zeros(SIZE)}
    assert_allclose(losses("cpo", beta=0.2, alpha=0.0), losses("dpo", reference_free, beta=0.2), rtol=1e-13)
    likelihood = losses("cpo", beta=0.2, alpha=1.0) - losses("cpo", beta=0.2, alpha=0.0)
    assert_allclose(likelihood, losses("sft", nll="sum"), rtol=1e-11)
