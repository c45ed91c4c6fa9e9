"""Relations that objectives of `prefuse.objectives.margins` hold exactly, whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.objectives.identities.shared import COLUMNS, SIZE, gradients, losses, same

pytestmark = pytest.mark.evidence("identities")


def test_margins_of_other_losses():
    zero = COLUMNS | {"margin": np.zeros(SIZE)}
    same(losses("odpo", zero, beta=0.2), losses("dpo", beta=0.2))
    same(losses("modpo", beta=0.2, weight=1.0), losses("odpo", beta=0.2))
    same(losses("modpo", zero, beta=0.2, weight=0.5), losses("dpo", beta=0.4))
    doubled = COLUMNS | {"margin": 2 * COLUMNS["margin"]}  # all weights times two is β by two
    same(losses("modpo", doubled, beta=0.2, weight=1.0), losses("modpo", beta=0.1, weight=0.5))
    same(losses("alpha_dpo", beta=3.0, alpha=0.0, gamma=0.7), losses("simpo", beta=3.0, gamma=0.7))
    same(losses("dpo_gamma", beta=0.2, gamma=1.0), losses("dpo", beta=0.2))
    same(losses("dpo_gamma", beta=0.2, gamma=0.0), losses("cpo", beta=0.2, alpha=0.0))
    same(losses("flex_dpo", beta_chosen=0.2, beta_rejected=0.2), losses("dpo", beta=0.2))


def test_alpha_dpo_shares_its_margin_out_over_the_batch():
    """Averaged over the batch the adaptive part of the margin is 0, whatever its weight."""
    logit = lambda **parameters: -np.log(np.expm1(losses("alpha_dpo", beta=0.5, gamma=0.7, **parameters)))  # noqa: E731
    for average in (False, True):
        parts = logit(alpha=0.0) - logit(alpha=1.0, average=average)
        assert_allclose(parts.mean(), 0.0, atol=1e-9)
        assert_allclose((parts**2).mean(), 1.0, rtol=1e-9)
    chosen, rejected = (COLUMNS[f"{role}_logps"] - COLUMNS[f"ref_{role}_logps"] for role in ("chosen", "rejected"))
    parts = logit(alpha=0.0) - logit(alpha=1.0, mean=0.5, deviation=2.0)
    assert_allclose(parts, (chosen - rejected - 0.5) / 2, rtol=1e-9)


def test_links_of_one_family():
    same(losses("daa", beta=0.2), losses("dpo", beta=0.2))
    same(losses("daa", beta=0.2, alpha=0.05), losses("r_dpo", beta=0.2, alpha=0.05))
    same(losses("daa", beta=0.2, link="slic"), losses("hinge", beta=0.2))
    same(losses("daa", beta=0.2, link="ipo"), 0.2**2 * losses("ipo", beta=0.1))
    same(losses("daa", beta=0.2, link="squared_hinge"), losses("hinge", beta=0.2) ** 2)
    same(losses("daa", beta=0.2, link="exponential"), np.expm1(losses("dpo", beta=0.2)))


def test_chi_po_stops_at_its_clip():
    far = COLUMNS | {"ref_chosen_logps": COLUMNS["chosen_logps"] - 50.0}
    same(losses("chi_po", far, limit=4.0), np.log1p(np.exp(-4.0)))
    assert not gradients("chi_po", far, limit=4.0)["chosen_logps"].any()
