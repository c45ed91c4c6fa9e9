"""Relations that objectives of `prefuse.objectives.dpo_family` hold exactly, whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.objectives.identities.shared import COLUMNS, MARGIN, SIZE, gradients, losses, same
from tests.objectives.pairs_and_points import evaluate

pytestmark = pytest.mark.evidence("identities")


def test_f_dpo_coefficient_is_one_minus_alpha():
    alpha = losses("f_dpo", divergence="alpha", alpha=0.7, beta=0.2)
    same(losses("f_dpo", divergence="alpha", coefficient=0.3, beta=0.2), alpha)
    same(losses("f_dpo", divergence="alpha", coefficient=1.0, beta=0.2), losses("dpo", beta=0.2))


def test_discopop_is_logistic_below_and_exponential_above():
    moved = lambda by: COLUMNS | {"chosen_logps": COLUMNS["chosen_logps"] - MARGIN + by}  # noqa: E731
    same(losses("discopop", moved(-30.0), beta=0.2), losses("dpo", moved(-30.0), beta=0.2))
    same(losses("discopop", moved(30.0), beta=0.2), np.exp(-0.2 * 30.0), rtol=1e-9)
    same(losses("discopop", moved(0.0), beta=0.2), (np.log(2) + 1) / 2)


def test_robust_is_unbiased_under_label_flips():
    flipped = COLUMNS.copy()
    for ref in ("", "ref_"):
        flipped[f"{ref}chosen_logps"] = COLUMNS[f"{ref}rejected_logps"]
        flipped[f"{ref}rejected_logps"] = COLUMNS[f"{ref}chosen_logps"]
    noisy = 0.9 * losses("robust", beta=0.2) + 0.1 * losses("robust", flipped, beta=0.2)
    assert_allclose(noisy, losses("dpo", beta=0.2), rtol=1e-12)


def test_conservative_dpo_has_its_minimum_at_the_log_odds():
    margin = np.log(0.9 / 0.1) / 0.1
    columns = {name: np.zeros(1) for name in ("rejected_logps", "ref_chosen_logps", "ref_rejected_logps")}
    columns["chosen_logps"] = np.array([margin])
    score = evaluate("dpo", {"beta": 0.1, "label_smoothing": 0.1}, columns)
    assert_allclose(score.gradients["chosen_logps"], 0.0, atol=1e-15)
    assert_allclose(score.loss, -0.9 * np.log(0.9) - 0.1 * np.log(0.1), rtol=1e-13)


def test_f_dpo_limits():
    assert_allclose(losses("f_dpo", beta=0.2), losses("dpo", beta=0.2), rtol=1e-13)
    alpha_one = losses("f_dpo", divergence="alpha", alpha=1.0, beta=0.2)
    assert_allclose(alpha_one, losses("f_dpo", divergence="forward_kl", beta=0.2), rtol=1e-12)
    alpha_small = losses("f_dpo", divergence="alpha", alpha=1e-7, beta=0.2)
    assert_allclose(alpha_small, losses("dpo", beta=0.2), rtol=1e-5)
    low = {name: value - 300.0 if not name.startswith("ref_") else value for name, value in COLUMNS.items()}
    assert_allclose(losses("f_dpo", low, divergence="js", beta=0.2), losses("dpo", low, beta=0.2), rtol=1e-12)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js", "alpha", "jeffreys"])
def test_f_dpo_with_equal_log_ratios_is_log_two(divergence):
    columns = COLUMNS | {"ref_rejected_logps": COLUMNS["rejected_logps"] - 1.5}
    columns |= {"ref_chosen_logps": COLUMNS["chosen_logps"] - 1.5}
    assert_allclose(losses("f_dpo", columns, divergence=divergence), np.log(2), rtol=1e-12)


def test_ipo_of_the_scaling_paper():
    """daa-scaling: (βΔ - 1)² is β² times summed IPO at τ = β/2."""
    assert_allclose((0.3 * MARGIN - 1) ** 2, 0.3**2 * losses("ipo", beta=0.15), rtol=1e-12)


def test_hinge_gradient_is_all_or_nothing():
    expected = np.where(0.5 * MARGIN < 1, -0.5 / SIZE, 0.0)
    np.testing.assert_array_equal(gradients("hinge", beta=0.5)["chosen_logps"], expected)
