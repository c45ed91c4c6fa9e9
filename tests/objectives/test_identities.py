"""Relations between objectives that hold exactly, whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from .checking import evaluate, random_columns
from .fixtures import points

pytestmark = pytest.mark.evidence("identities")

SIZE = 9
COLUMNS = random_columns(SIZE, seed=21)
H = {role: COLUMNS[f"{role}_logps"] - COLUMNS[f"ref_{role}_logps"] for role in ("chosen", "rejected")}
MARGIN = H["chosen"] - H["rejected"]


def losses(name, columns=COLUMNS, **parameters):
    return np.broadcast_to(evaluate(name, parameters, columns).losses, (SIZE,))


def gradients(name, columns=COLUMNS, **parameters):
    return evaluate(name, parameters, columns).gradients


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


@pytest.mark.parametrize("name", ["robust", "dpo_norm", "aot", "aot_unpaired"])
def test_no_smoothing_and_equal_lengths_reduce_to_dpo(name):
    columns = {key: value[:1] for key, value in COLUMNS.items()}
    columns |= {"chosen_lengths": np.array([4]), "rejected_lengths": np.array([4])}
    beta = 0.8 if name == "dpo_norm" else 0.2
    actual = evaluate(name, {"beta": beta, "label_smoothing": 0.0}, columns)
    assert_allclose(actual.losses, evaluate("dpo", {"beta": 0.2}, columns).losses, rtol=1e-13)


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


def test_sppo_hard_is_twice_sppo_with_certain_wins():
    certain = COLUMNS | {"chosen_win_prob": np.ones(SIZE), "rejected_win_prob": np.zeros(SIZE)}
    assert_allclose(losses("sppo_hard", beta=0.1), 2 * losses("sppo", certain, beta=0.1), rtol=1e-13)
    even = COLUMNS | {"chosen_win_prob": np.full(SIZE, 0.5), "rejected_win_prob": np.full(SIZE, 0.5)}
    assert_allclose(losses("sppo", even, beta=0.1), (H["chosen"] ** 2 + H["rejected"] ** 2) / 2, rtol=1e-13)


def test_ipo_of_the_scaling_paper():
    """daa-scaling: (βΔ - 1)² is β² times summed IPO at τ = β/2."""
    assert_allclose((0.3 * MARGIN - 1) ** 2, 0.3**2 * losses("ipo", beta=0.15), rtol=1e-12)


def test_hinge_gradient_is_all_or_nothing():
    expected = np.where(0.5 * MARGIN < 1, -0.5 / SIZE, 0.0)
    np.testing.assert_array_equal(gradients("hinge", beta=0.5)["chosen_logps"], expected)


def test_aot_with_one_pair_is_conservative_dpo():
    columns = {key: value[:1] for key, value in COLUMNS.items()}
    smoothing = {"beta": 0.2, "label_smoothing": 0.1}
    expected = evaluate("dpo", smoothing, columns).losses
    for name in ("aot", "aot_unpaired"):
        assert_allclose(evaluate(name, smoothing, columns).losses, expected, rtol=1e-13)


def test_aot_ignores_the_order_of_the_batch():
    order = np.random.default_rng(4).permutation(SIZE)
    shuffled = {name: value[order] for name, value in COLUMNS.items()}
    for name in ("aot", "aot_unpaired"):
        first, second = evaluate(name, {}, COLUMNS), evaluate(name, {}, shuffled)
        assert_allclose(first.loss, second.loss, rtol=1e-13)
        assert_allclose(first.gradients["chosen_logps"][order], second.gradients["chosen_logps"], rtol=1e-12)


def test_biased_nca_is_bco():
    """nca without its middle term is bco_pair with half weight on the rejected term."""
    middle, rest = (0.5 * np.log1p(np.exp(0.2 * H[role])) for role in ("chosen", "rejected"))
    assert_allclose(losses("nca", beta=0.2) - middle, losses("bco_pair", beta=0.2, delta=0.0) - rest, rtol=1e-12)


def test_kto_without_baseline_is_unpaired_apo_zero():
    kto = evaluate("kto", {"beta": 0.2, "kl": 0.0}, points(COLUMNS))
    unpaired = evaluate("apo_zero_unpaired", {"beta": 0.2}, points(COLUMNS))
    assert_allclose(kto.losses, unpaired.losses, rtol=1e-14)
    assert_allclose(2 * kto.loss, evaluate("apo_zero", {"beta": 0.2}, COLUMNS).loss, rtol=1e-13)


def test_kto_passes_no_gradient_to_its_baseline():
    found = gradients("kto", beta=0.2)
    for name in ("kl_logps", "ref_kl_logps"):
        assert name not in found or not found[name].any()


def test_cpo_is_reference_free_dpo_with_likelihood():
    reference_free = COLUMNS | {"ref_chosen_logps": np.zeros(SIZE), "ref_rejected_logps": np.zeros(SIZE)}
    assert_allclose(losses("cpo", beta=0.2, alpha=0.0), losses("dpo", reference_free, beta=0.2), rtol=1e-13)
    likelihood = losses("cpo", beta=0.2, alpha=1.0) - losses("cpo", beta=0.2, alpha=0.0)
    assert_allclose(likelihood, losses("sft", nll="sum"), rtol=1e-11)
