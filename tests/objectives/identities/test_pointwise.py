"""Relations that objectives of `prefuse.objectives.pointwise` hold exactly, whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.objectives.identities.shared import COLUMNS, SIZE, gradients, losses, same
from tests.objectives.numbers.batches import points
from tests.objectives.pairs_and_points import evaluate

pytestmark = pytest.mark.evidence("identities")


def test_nbpo_without_flips_is_bco():
    never = COLUMNS | {"flip": np.full(SIZE, -60.0)}
    expected = losses("bco", beta=0.2, delta=0.0)
    same(losses("nbpo", never, beta=0.2, form="likelihood"), expected)
    same(gradients("nbpo", never, beta=0.2)["logps"], gradients("bco", beta=0.2, delta=0.0)["logps"])
    always = never | {"flip": np.full(SIZE, 60.0), "label": np.zeros(SIZE, bool)}
    same(losses("nbpo", always, beta=0.2, form="likelihood"), 0.0)


def test_npo_at_the_reference_and_its_limit():
    level = COLUMNS | {"logps": COLUMNS["ref_logps"]}
    same(losses("npo", level, beta=0.2), 2 / 0.2 * np.log(2))
    assert_allclose(SIZE * gradients("npo", beta=1e-7)["logps"], 1.0, rtol=1e-5)  # gradient ascent on the likelihood
    same(losses("simnpo", COLUMNS | {"lengths": np.ones(SIZE, int)}, beta=0.2), losses("npo", COLUMNS | FREE, beta=0.2))


FREE = {"ref_logps": np.zeros(SIZE)}


def test_crraft_with_certain_rewards_is_raft():
    sure = COLUMNS | {"score": np.ones(SIZE)}
    same(losses("crraft", sure), -COLUMNS["logps"])
    found = evaluate("crraft", {"average": "tokens"}, sure).loss
    assert_allclose(found, -COLUMNS["logps"].sum() / COLUMNS["lengths"].sum(), rtol=1e-13)


def test_kto_without_baseline_is_unpaired_apo_zero():
    kto = evaluate("kto", {"beta": 0.2, "kl": 0.0}, points(COLUMNS))
    unpaired = evaluate("apo_zero_unpaired", {"beta": 0.2}, points(COLUMNS))
    assert_allclose(kto.losses, unpaired.losses, rtol=1e-14)
    assert_allclose(2 * kto.loss, evaluate("apo_zero", {"beta": 0.2}, COLUMNS).loss, rtol=1e-13)


def test_kto_passes_no_gradient_to_its_baseline():
    found = gradients("kto", beta=0.2)
    for name in ("kl_logps", "ref_kl_logps"):
        assert name not in found or not found[name].any()
