"""Relations inside the wider family that hold exactly, whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from .checking import evaluate, random_columns

SIZE = 9
COLUMNS = random_columns(SIZE, seed=22)
H = {role: COLUMNS[f"{role}_logps"] - COLUMNS[f"ref_{role}_logps"] for role in ("chosen", "rejected")}
MARGIN = H["chosen"] - H["rejected"]
EQUAL_LENGTHS = COLUMNS | {"chosen_lengths": np.full(SIZE, 5), "rejected_lengths": np.full(SIZE, 5)}


def losses(name, columns=COLUMNS, **parameters):
    return np.broadcast_to(evaluate(name, parameters, columns).losses, (SIZE,))


def gradients(name, columns=COLUMNS, **parameters):
    return evaluate(name, parameters, columns).gradients


def same(first, second, rtol=1e-12):
    assert_allclose(first, second, rtol=rtol, atol=1e-13)


TOKEN_SUMS = {
    f"{ref}{role}_logps": (COLUMNS[f"{ref}{role}_token_logps"] * COLUMNS[f"{role}_mask"]).sum(1)
    for role in ("chosen", "rejected")
    for ref in ("", "ref_")
}

# Settings at which an objective is DPO with the same β.
IS_DPO = [
    ("dpop", {"penalty": 0.0}),
    ("rpo", {"alpha": 0.0}),
    ("codpo", {"weight": 0.0}),
    ("spo_degree", {"weight": 0.0}),
    ("rationale_dpo", {"gamma": 0.0}),
    ("r_dpo", {"alpha": 0.0}),
    ("beta_dpo", {"sensitivity": 0.0}),
    ("ns_dpo", {"gamma": 1.0}),
]


@pytest.mark.parametrize(("name", "parameters"), IS_DPO)
def test_reduces_to_dpo(name, parameters):
    same(losses(name, beta=0.2, **parameters), losses("dpo", beta=0.2))
    for column, expected in gradients("dpo", beta=0.2).items():
        same(gradients(name, beta=0.2, **parameters)[column], expected)


@pytest.mark.parametrize(
    ("name", "parameters"), [("ld_dpo", {"alpha": 1.0}), ("ld_dpo", {"alpha": 1.0, "scope": "policy"})]
)
def test_reduces_to_dpo_on_tokens(name, parameters):
    same(losses(name, beta=0.2, **parameters), losses("dpo", TOKEN_SUMS, beta=0.2))


def test_sampo_with_every_token_is_dpo():
    every = {f"{role}_token_sampled": np.ones_like(COLUMNS[f"{role}_mask"]) for role in ("chosen", "rejected")}
    same(losses("sampo", COLUMNS | every, beta=0.2), losses("dpo", TOKEN_SUMS, beta=0.2))


def test_dpop_is_dpo_where_the_chosen_response_rose():
    risen = COLUMNS | {"ref_chosen_logps": COLUMNS["chosen_logps"] - 1.0}
    same(losses("dpop", risen, beta=0.2), losses("dpo", risen, beta=0.2))


def test_dpop_passes_no_gradient_through_its_penalty_at_the_kink():
    level = COLUMNS | {"ref_chosen_logps": COLUMNS["chosen_logps"]}
    same(gradients("dpop", level, beta=0.2)["chosen_logps"], gradients("dpo", level, beta=0.2)["chosen_logps"])


def test_codpo_is_rpo():
    same(losses("codpo", beta=0.2, weight=3.0), losses("rpo", beta=0.2, alpha=3.0))


def test_rationale_with_certainty_costs_log_two_in_the_original_code():
    certain = COLUMNS | {"rationale_logps": np.zeros(SIZE)}
    original = losses("rationale_dpo", certain, beta=0.2, variant="original")
    same(original, losses("dpo", beta=0.2) + np.log(2))
    same(losses("rationale_dpo", certain, beta=0.2), losses("dpo", beta=0.2))


def test_rationale_orpo_is_orpo_and_a_likelihood():
    rationale = COLUMNS["rationale_logps"] / COLUMNS["rationale_lengths"]
    same(losses("rationale_orpo", beta=0.2, gamma=3.0), losses("orpo", beta=0.2) - 3.0 * rationale)


def test_length_regularisation_vanishes_at_equal_lengths():
    same(losses("r_dpo", EQUAL_LENGTHS, beta=0.2, alpha=0.3), losses("dpo", beta=0.2))


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
    same(losses("tpo", own, beta=0.2, alpha=1.0), losses("cpo", beta=0.2, alpha=1.0))
    same(losses("tpo_l", beta=3.0, gamma=0.7, alpha=0.0), losses("simpo", beta=3.0, gamma=0.7))
    tied = COLUMNS | {"rejected_logps": COLUMNS["chosen_logps"]}
    same(losses("tpo", tied, alpha=0.0), np.log(2))


def test_asft_bounds_orpo_and_contains_sft():
    same(losses("asft", weight=0.0), losses("sft", nll="response_mean"))
    assert np.all(losses("asft", weight=0.4) >= losses("orpo", beta=0.4, nll="response_mean"))


def test_f_dpo_coefficient_is_one_minus_alpha():
    alpha = losses("f_dpo", divergence="alpha", alpha=0.7, beta=0.2)
    same(losses("f_dpo", divergence="alpha", coefficient=0.3, beta=0.2), alpha)
    same(losses("f_dpo", divergence="alpha", coefficient=1.0, beta=0.2), losses("dpo", beta=0.2))
