"""Relations that objectives of `prefuse.objectives.diffusion` hold exactly, whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from prefuse import objectives
from tests.objectives.identities.shared import PAIRS, list_losses, pair_losses
from tests.objectives.lists_and_tokens import random_columns as random_lists

pytestmark = pytest.mark.evidence("identities")


def test_seppo_and_d3po_reduce():
    columns = random_lists("diffusion_dpo", {}, seed=45)
    ahead = columns | {"chosen_ref_error": columns["chosen_error"] + 0.1}  # the model is ahead of the checkpoint
    assert_allclose(list_losses("seppo", ahead, beta=3.0), list_losses("diffusion_dpo", ahead, beta=3.0), rtol=1e-14)
    assert_allclose(list_losses("d3po", {n: PAIRS[n] for n in objectives.d3po.columns}), pair_losses("dpo"), rtol=1e-14)
    at_reference = columns | {f"{r}_error": columns[f"{r}_ref_error"] for r in ("chosen", "rejected")}
    assert_allclose(list_losses("diffusion_dpo", at_reference), np.log(2), rtol=1e-14)
