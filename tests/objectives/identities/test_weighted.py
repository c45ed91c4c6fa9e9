"""Relations that objectives of `prefuse.objectives.weighted` hold exactly, whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.objectives.identities.shared import COLUMNS, SIZE, TOKEN_SUMS, gradients, losses, same

pytestmark = pytest.mark.evidence("identities")


def test_wpo_is_weighted_dpo():
    """The weight scales loss and gradient alike: it takes no gradient of its own."""
    tokens = {name: value for name, value in COLUMNS.items() if "token" in name or name.endswith("mask")}
    weight = np.exp(
        sum(
            np.where(mask, tokens[f"{role}_token_logps"] - tokens[f"{role}_token_log_sum_sq"], 0).sum(1) / mask.sum(1)
            for role in ("chosen", "rejected")
            for mask in [tokens[f"{role}_mask"]]
        )
    )
    assert weight.max() > 1
    for variant, factor in (
        ("trl-1.16", weight),
        ("original", np.minimum(weight, 1)),
        ("trl-0.24", np.minimum(weight, 1)),
    ):
        same(losses("wpo", beta=0.2, variant=variant), factor * losses("dpo", TOKEN_SUMS, beta=0.2))
        expected = factor * gradients("dpo", TOKEN_SUMS, beta=0.2)["chosen_logps"]
        found = gradients("wpo", beta=0.2, variant=variant)["chosen_token_logps"]
        same(found, expected[:, None] * COLUMNS["chosen_mask"])


def test_beta_dpo_has_a_floor():
    """A batch ordered so wrongly that β would be negative gets 10⁻³."""
    same(losses("beta_dpo", beta=0.1, sensitivity=1.0, centre=1e6), losses("dpo", beta=1e-3))


def test_mallows_dispersion_scales_beta():
    one = COLUMNS | {"dispersion": np.full(SIZE, 0.5)}
    same(losses("mallows_po", one, beta=0.4), losses("dpo", beta=0.2))
