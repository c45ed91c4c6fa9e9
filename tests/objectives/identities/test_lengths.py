"""Relations that objectives of `prefuse.objectives.lengths` hold exactly, whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.objectives.identities.shared import COLUMNS, SIZE, TOKEN_SUMS, losses, same

pytestmark = pytest.mark.evidence("identities")

EQUAL_LENGTHS = COLUMNS | {"chosen_lengths": np.full(SIZE, 5), "rejected_lengths": np.full(SIZE, 5)}


@pytest.mark.parametrize(
    ("name", "parameters"), [("ld_dpo", {"alpha": 1.0}), ("ld_dpo", {"alpha": 1.0, "scope": "policy"})]
)
def test_reduces_to_dpo_on_tokens(name, parameters):
    same(losses(name, beta=0.2, **parameters), losses("dpo", TOKEN_SUMS, beta=0.2))


def test_sampo_with_every_token_is_dpo():
    every = {f"{role}_token_sampled": np.ones_like(COLUMNS[f"{role}_mask"]) for role in ("chosen", "rejected")}
    same(losses("sampo", COLUMNS | every, beta=0.2), losses("dpo", TOKEN_SUMS, beta=0.2))


def test_length_regularisation_vanishes_at_equal_lengths():
    same(losses("r_dpo", EQUAL_LENGTHS, beta=0.2, alpha=0.3), losses("dpo", beta=0.2))
