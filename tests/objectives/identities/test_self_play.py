"""Relations that objectives of `prefuse.objectives.self_play` hold exactly, whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.objectives import pairs_and_points
from tests.objectives.identities.shared import (
    COLUMNS,
    MARGIN,
    PAIR,
    PAIRS,
    SIZE,
    SWAPPED,
    as_lists,
    gradients,
    list_losses,
    losses,
    pair_losses,
    same,
)
from tests.objectives.pairs_and_points import evaluate

pytestmark = pytest.mark.evidence("identities")


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


def test_lists_of_two_give_the_pair_objectives_of_online_learning():
    even = as_lists(score=np.array([1.0, 0.3]))
    pair = PAIRS | {"chosen_score": np.full(5, 1.0), "rejected_score": np.full(5, 0.3)}
    expected = pairs_and_points.evaluate("reward_distillation", {"beta": 0.2}, pair).losses
    assert_allclose(list_losses("copg_list", even, beta=0.2), expected, rtol=1e-12)
    wins = as_lists() | {"win_prob": np.tile([[0.5, 0.8], [0.2, 0.5]], (5, 1, 1))}
    expected = pairs_and_points.evaluate("online_ipo", {"beta": 0.2}, PAIRS | {"win_prob": np.full(5, 0.8)}).losses
    assert_allclose(list_losses("online_ipo_list", wins, beta=0.2), expected, rtol=1e-12)
    labelled = as_lists(label=np.array([1.0, 0.0]))
    assert_allclose(list_losses("multi_dpo", labelled, beta=0.2), pair_losses("dpo", beta=0.2), rtol=1e-12)
    assert_allclose(list_losses("multi_dpo", labelled, beta=0.2, link="ipo"), pair_losses("ipo", beta=0.2), rtol=1e-12)
