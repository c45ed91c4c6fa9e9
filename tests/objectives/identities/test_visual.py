"""Relations that objectives of `prefuse.objectives.visual` hold exactly, whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.objectives.identities.shared import COLUMNS, SIZE, gradients, losses, same
from tests.objectives.pairs_and_points import evaluate

pytestmark = pytest.mark.evidence("identities")


def test_opa_dpo_is_a_sum_of_two_dpo():
    roles = ("revised", "rejected")
    ones = {f"{role}_token_severity": np.ones_like(COLUMNS[f"{role}_token_severity"]) for role in roles}
    tokens = {
        f"{ref}{role}_logps": (COLUMNS[f"{ref}{role}_token_logps"] * COLUMNS[f"{role}_mask"]).sum(1)
        for ref in ("", "ref_")
        for role in roles
    }
    given = COLUMNS | ones | {name: tokens[name] for name in ("rejected_logps", "ref_rejected_logps")}
    revised = given | {f"{ref}chosen_logps": tokens[f"{ref}revised_logps"] for ref in ("", "ref_")}
    two = losses("dpo", given, beta=0.2) + losses("dpo", revised, beta=0.2)
    same(losses("opa_dpo", given, beta=0.2, image_weight=0.0, anchor_weight=0.0), two)
    same_image = given | {f"{ref}chosen_damaged_logps": given[f"{ref}chosen_logps"] for ref in ("", "ref_")}
    same_image |= {
        name.replace("revised", "revised_damaged"): column for name, column in given.items() if "revised_" in name
    }
    image = losses("opa_dpo", same_image, beta=0.2, image_weight=0.5, anchor_weight=0.0) - two
    same(image, 0.5 * 2 * np.log(2))


def test_bpo_with_the_rejected_response_as_blind_is_twice_dpo():
    columns = COLUMNS | {"blind_logps": COLUMNS["rejected_logps"], "ref_blind_logps": COLUMNS["ref_rejected_logps"]}
    assert_allclose(losses("bpo", columns, beta=0.2), 2 * losses("dpo", beta=0.2), rtol=1e-13)
    assert_allclose(losses("bpo", columns, beta=0.2, combine="mean"), losses("dpo", beta=0.2), rtol=1e-13)


def test_bpo_is_symmetric_in_its_two_negatives():
    swapped = COLUMNS | {
        "rejected_logps": COLUMNS["blind_logps"],
        "ref_rejected_logps": COLUMNS["ref_blind_logps"],
        "blind_logps": COLUMNS["rejected_logps"],
        "ref_blind_logps": COLUMNS["ref_rejected_logps"],
    }
    assert_allclose(losses("bpo", beta=0.2), losses("bpo", swapped, beta=0.2), rtol=1e-13)


def test_bpo_gradients_cancel():
    g = gradients("bpo", beta=0.2)
    assert_allclose(g["chosen_logps"] + g["rejected_logps"] + g["blind_logps"], 0.0, atol=1e-15)


def test_bpo_is_the_mean_of_a_data_set_of_two_pairs():
    """The released script's view: rows (w, l) and (w, b) of one DPO data set."""
    blind = {f"{ref}rejected_logps": COLUMNS[f"{ref}blind_logps"] for ref in ("", "ref_")}
    rows = {name: np.concatenate([COLUMNS[name], (COLUMNS | blind)[name]]) for name in COLUMNS}
    data_set = evaluate("dpo", {"beta": 0.2}, rows)
    half_sum = evaluate("bpo", {"beta": 0.2, "combine": "mean"}, COLUMNS)
    assert_allclose(half_sum.loss, data_set.loss, rtol=1e-13)
    both_rows = data_set.gradients["chosen_logps"].reshape(2, SIZE).sum(0)
    assert_allclose(half_sum.gradients["chosen_logps"], both_rows, rtol=1e-12)
