"""Relations inside the wider family that hold exactly, whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from .checking import evaluate, random_columns

pytestmark = pytest.mark.evidence("identities")

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


PAIR = ("chosen", "rejected")
SWAPPED = {f"{ref}{a}_logps": COLUMNS[f"{ref}{b}_logps"] for ref in ("", "ref_") for a, b in (PAIR, PAIR[::-1])}
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
    same(losses("tpo", own, beta=0.2, alpha=1.0), losses("cpo", beta=0.2, alpha=1.0, nll="token_mean"))
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


# --- margins ------------------------------------------------------------------------------------------------------


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


# --- robustness ---------------------------------------------------------------------------------------------------


def test_soft_labels():
    visits = lambda w, l: COLUMNS | {"chosen_visits": np.full(SIZE, w), "rejected_visits": np.full(SIZE, l)}  # noqa: E731, E741
    same(losses("mcts_dpo", visits(10.0, 0.0), beta=0.2), losses("dpo", beta=0.2))
    same(losses("mcts_dpo", visits(9.0, 1.0), beta=0.2), losses("dpo", beta=0.2, label_smoothing=0.1))
    same(losses("mcts_dpo", visits(1.0, 9.0), beta=0.2), losses("dpo", beta=0.2, label_smoothing=0.5))
    sure = COLUMNS | {"uncertainty": np.zeros(SIZE)}
    same(losses("upo", sure, beta=0.2, alpha=0.3), losses("rpo", beta=0.2, alpha=0.3))
    doubtful = COLUMNS | {"uncertainty": np.full(SIZE, 0.69)}
    same(losses("upo", doubtful, beta=0.2, alpha=0.0), losses("dpo", beta=0.2, label_smoothing=0.5))
    same(losses("gdpo", COLUMNS | {"win_prob": np.ones(SIZE)}, beta=0.2), losses("dpo", beta=0.2))
    same(losses("gdpo", COLUMNS | {"win_prob": np.full(SIZE, 0.5)}, beta=0.2), np.log(2))


def test_ropo_is_dpo_and_a_bounded_term():
    expected = losses("dpo", beta=0.2) + 1 / (1 + np.exp(0.2 * MARGIN))
    same(losses("ropo", beta=0.2, alpha=1.0), expected)


def test_dr_dpo_between_the_mean_and_the_least():
    """A batch of one pair is DPO; a large β' is its mean; a small one looks at the lowest loss alone."""
    dpo = losses("dpo", beta=0.2)
    single = {name: value[:1] for name, value in COLUMNS.items()}
    assert_allclose(evaluate("dr_dpo", {"beta": 0.2}, single).loss, dpo[0], rtol=1e-12)
    assert_allclose(evaluate("dr_dpo", {"beta": 0.2, "beta_prime": 1e7}, COLUMNS).loss, dpo.mean(), rtol=1e-6)
    small = evaluate("dr_dpo", {"beta": 0.2, "beta_prime": 1e-3}, COLUMNS)
    assert_allclose(small.loss, dpo.min() + 1e-3 * np.log(SIZE), rtol=1e-9)
    assert np.all(evaluate("dr_dpo", {"beta": 0.2}, COLUMNS).loss <= dpo.mean())


@pytest.mark.parametrize(("name", "nu"), [("dpo_rk", 1.7), ("dpo_d", 0.6)])
def test_probabilities_of_win_loss_and_tie_sum_to_one(name, nu):
    decided, tied = {"tie": np.zeros(SIZE, bool)}, {"tie": np.ones(SIZE, bool)}
    outcomes = [COLUMNS | decided, COLUMNS | SWAPPED | decided, COLUMNS | tied]
    same(sum(np.exp(-losses(name, outcome, beta=0.2, nu=nu)) for outcome in outcomes), 1.0)
    same(losses(name, COLUMNS | SWAPPED | tied, beta=0.2, nu=nu), losses(name, COLUMNS | tied, beta=0.2, nu=nu))


def test_no_ties_is_dpo():
    decided = COLUMNS | {"tie": np.zeros(SIZE, bool)}
    same(losses("dpo_rk", decided, beta=0.2, nu=1 + 1e-12), losses("dpo", beta=0.2), rtol=1e-9)
    same(losses("dpo_d", decided, beta=0.2, nu=1e-13), losses("dpo", beta=0.2), rtol=1e-9)


# --- self-play and online -----------------------------------------------------------------------------------------


def test_dno_between_dpo_and_indifference():
    even = COLUMNS | {"chosen_win_prob": np.full(SIZE, 0.4), "rejected_win_prob": np.full(SIZE, 0.4)}
    same(losses("dno", even, beta=0.2), losses("dpo", beta=0.2, label_smoothing=0.5))
    gap = COLUMNS["chosen_win_prob"] - COLUMNS["rejected_win_prob"]
    at_optimum = COLUMNS | {"chosen_logps": COLUMNS["chosen_logps"] + gap / 0.2 - MARGIN}
    assert_allclose(gradients("dno", at_optimum, beta=0.2)["chosen_logps"], 0.0, atol=1e-15)


def test_inpo_is_ipo_where_its_references_agree():
    same(losses("inpo", eta=0.1, tau=0.1), losses("ipo", beta=0.1))
    previous = COLUMNS | {f"{role}_previous_logps": COLUMNS[f"ref_{role}_logps"] for role in PAIR}
    same(losses("inpo", previous, eta=0.1, tau=0.03), losses("ipo", beta=0.1))
    same(losses("inpo", previous, eta=0.1, tau=0.0), losses("ipo", beta=0.1))


def test_regressions_on_win_rates_are_ipo_at_certainty():
    ipo = losses("ipo", beta=0.1)
    same(losses("online_ipo", COLUMNS | {"win_prob": np.ones(SIZE)}, beta=0.1), ipo)
    half = COLUMNS | {"chosen_win_prob": np.full(SIZE, 0.75), "rejected_win_prob": np.full(SIZE, 0.25)}
    for name in ("egpo", "psi_po"):
        same(losses(name, half, beta=0.1), ipo)
    same(losses("egpo", half, beta=0.1, average=True), losses("ipo", beta=0.1, average=True))


def test_online_ipo_is_hard_labels_in_expectation():
    """Averaged over labels drawn with probability p, IPO has the gradient of the soft form."""
    p = COLUMNS["win_prob"]
    hard = p * gradients("ipo", beta=0.1)["chosen_logps"]
    hard = hard + (1 - p) * gradients("ipo", COLUMNS | SWAPPED, beta=0.1)["rejected_logps"]
    same(gradients("online_ipo", beta=0.1)["chosen_logps"], hard)


def test_psi_po_with_bradley_terry_regresses_on_rewards():
    reward = {role: np.linspace(-1.5, 2.0, SIZE) ** (1 + k) for k, role in enumerate(PAIR)}
    judged = COLUMNS | {f"{role}_win_prob": 1 / (1 + np.exp(-reward[role])) for role in PAIR}
    scored = COLUMNS | {f"{role}_score": reward[role] for role in PAIR}
    same(
        losses("psi_po", judged, beta=0.2, link="logit"), losses("reward_distillation", scored, beta=0.2) / 0.2**2, 1e-9
    )


def test_copg_is_reward_distillation_up_to_a_constant():
    gap = COLUMNS["chosen_score"] - COLUMNS["rejected_score"]
    same(losses("copg", beta=0.2), (losses("reward_distillation", beta=0.2) - gap**2) / 0.4, 1e-10)
    shifted = COLUMNS | {f"{role}_score": COLUMNS[f"{role}_score"] + 3.0 for role in PAIR}
    same(losses("copg", shifted, beta=0.2), losses("copg", beta=0.2), 1e-10)


def test_optimism_reduces_to_dpo_and_to_dpo_with_sft():
    same(losses("vpo", beta=0.2, alpha=0.0), losses("dpo", beta=0.2))
    same(losses("xpo", beta=0.2, alpha=0.0), losses("dpo", beta=0.2))
    same(losses("xpo", beta=0.2, alpha=0.0, link="ipo"), losses("ipo", beta=0.2))
    own = {f"{ref}calibration_logps": COLUMNS[f"{ref}chosen_logps"] for ref in ("", "ref_")}
    offline = losses("vpo", COLUMNS | own, beta=0.2, alpha=0.5, mode="offline")
    same(offline, losses("rpo", beta=0.2, alpha=0.1, nll="sum") + 0.1 * COLUMNS["ref_chosen_logps"])
    drawn = {f"{ref}calibration_logps": COLUMNS[f"{ref}rejected_logps"] for ref in ("", "ref_")}
    xpo = losses("xpo", COLUMNS | {"chosen_from_policy": np.ones(SIZE, bool)}, beta=0.2, alpha=0.1)
    vpo = losses("vpo", COLUMNS | drawn, beta=0.2, alpha=0.5)
    same(xpo, vpo + 0.1 * COLUMNS["ref_rejected_logps"])


def test_fast_and_slow_modules():
    """Their second terms cancel in value; where both agree they are log 2 with slope a β/2 on either side."""
    plain = {module: losses("ofs_dpo", beta=0.2, alpha=0.0, module=module) for module in ("fast", "slow")}
    same(plain["fast"], losses("dpo", beta=0.2))
    equal = COLUMNS | {f"{role}_other_logps": COLUMNS[f"{role}_logps"] for role in PAIR}
    fast = losses("ofs_dpo", equal, beta=0.2, alpha=0.3)
    slow = losses("ofs_dpo", equal, beta=0.2, alpha=0.3, module="slow")
    same(fast + slow, 2 * losses("dpo", beta=0.2))
    same(fast - losses("dpo", beta=0.2), 0.3 * np.log(2))
    slope = -0.3 * 0.2 / 2 / SIZE
    for module in ("fast", "slow"):
        extra = gradients("ofs_dpo", equal, beta=0.2, alpha=0.3, module=module)["chosen_logps"]
        same(extra - gradients("dpo", beta=0.2)["chosen_logps"], slope)


def test_srpo_where_the_improver_is_the_reference():
    silent = {
        f"{role}_logps": COLUMNS[f"ref_{role}_logps"]
        for role in ("improved", "worsened", "kept_chosen", "kept_rejected")
    }
    same(losses("srpo", COLUMNS | silent, beta=0.2, alpha=0.0), 0.2**2 * losses("ipo", beta=0.1))
    same(losses("srpo", COLUMNS | silent, beta=0.2, alpha=1.0), 0.5)


def test_hypo_term_is_the_gradient_of_kl():
    """Over every pair of samples, weighted by their probability, the estimator's gradient is that of KL(π‖ref)."""
    policy, reference = np.array([0.4, 0.3, 0.2, 0.1]), np.full(4, 0.25)
    i, j = (index.ravel() for index in np.meshgrid(np.arange(4), np.arange(4)))
    samples = np.stack([i, j], 1).ravel()
    columns = {"logps": np.log(policy)[samples], "ref_logps": np.log(reference)[samples]}
    score = evaluate("hypo_kl", {"weight": 1.0}, columns | {"groups": np.repeat(np.arange(16), 2)})
    by_sample = 16 * score.gradients["logps"] * np.repeat(policy[i] * policy[j], 2)  # undo the mean over groups
    by_arm = np.bincount(samples, by_sample)
    same(by_arm - policy * by_arm.sum(), [0.145425, 0.022764, -0.065917, -0.102273], 1e-4)
    same(score.gradients["logps"].reshape(16, 2).sum(1), 0.0)


def test_sppo_of_one_number_and_of_points():
    p = COLUMNS["win_prob"]
    two = COLUMNS | {"chosen_win_prob": p, "rejected_win_prob": 1 - p}
    same(losses("sppo", beta=0.1, labels="single"), losses("sppo", two, beta=0.1))
    half = COLUMNS | {"score": p - 0.5}
    same(losses("gpo", half, beta=0.1), 2 * losses("sppo_point", beta=0.1))


def test_kto_pair_below_the_reference_is_half_of_apo_zero():
    below = COLUMNS | {f"{role}_logps": COLUMNS[f"ref_{role}_logps"] - 1 - np.arange(SIZE) for role in PAIR}
    same(losses("kto_pair", below, beta=0.2), losses("apo_zero", below, beta=0.2) / 2)


# --- points -------------------------------------------------------------------------------------------------------


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


# --- those without a relative of the same inputs ----------------------------------------------------------------------


def test_apo_down_pays_for_distance_alone_where_the_rejected_response_stays():
    stays = COLUMNS | {"ref_rejected_logps": COLUMNS["rejected_logps"]}
    same(losses("apo_down", stays, beta=0.2), 1.0)
    assert not gradients("apo_down", stays, beta=0.2)["chosen_logps"].any()


def test_discopop_is_logistic_below_and_exponential_above():
    moved = lambda by: COLUMNS | {"chosen_logps": COLUMNS["chosen_logps"] - MARGIN + by}  # noqa: E731
    same(losses("discopop", moved(-30.0), beta=0.2), losses("dpo", moved(-30.0), beta=0.2))
    same(losses("discopop", moved(30.0), beta=0.2), np.exp(-0.2 * 30.0), rtol=1e-9)
    same(losses("discopop", moved(0.0), beta=0.2), (np.log(2) + 1) / 2)


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
