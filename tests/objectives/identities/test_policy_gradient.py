"""Relations that objectives of `prefuse.objectives.policy_gradient` hold exactly, whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from prefuse import objectives
from tests.objectives.identities.shared import ROLES, list_gradients, list_losses
from tests.objectives.lists_and_tokens import GROUPS, MASK
from tests.objectives.lists_and_tokens import evaluate as evaluate_lists
from tests.objectives.lists_and_tokens import random_columns as random_lists

pytestmark = pytest.mark.evidence("identities")


def test_ppo_at_the_old_policy_is_reinforce():
    columns = random_lists("ppo", {}, seed=48)
    columns["old_logps"] = columns["logps"]
    score = evaluate_lists("ppo", {}, columns)
    assert_allclose(score.loss, -columns["advantage"][MASK].mean(), rtol=1e-13)
    assert_allclose(score.gradients["logps"][MASK], -columns["advantage"][MASK] / MASK.sum(), rtol=1e-13)
    assert score.metrics["clip_ratio"] == 0.0


def test_dr_po_without_roll_in_is_ppo():
    columns = random_lists("dr_po", {}, seed=50) | {"roll_in": np.zeros(len(GROUPS), int)}
    ppo = {name: value for name, value in columns.items() if name != "roll_in"}
    assert_allclose(list_losses("dr_po", columns), list_losses("ppo", ppo), rtol=1e-13)


def test_rto_without_the_dpo_model_is_ppo_on_its_own_advantages():
    columns = random_lists("rto", {}, seed=51)
    given = columns | {"dpo_logps": columns["old_logps"]}
    balanced = evaluate_lists(
        "rto", {"dpo_weight": 0.3, "kl_weight": 0.3, "score_weight": 0.0}, given | {"value": 0 * MASK + 0.0}
    )
    assert_allclose(balanced.losses, 0.0, atol=1e-15)  # rewards β (log π_dpo - log π_old) are 0


def test_p3o_on_policy_is_rloo_of_two():
    columns = random_lists("p3o", {}, seed=55)
    for role in ROLES:
        columns[f"{role}_old_logps"] = columns[f"{role}_logps"]
    stack = lambda name: np.stack([columns[name.format(role)] for role in ROLES], 1)  # noqa: E731
    lists = {"logps": stack("{}_logps"), "ref_logps": stack("ref_{}_logps"), "reward": stack("{}_reward")}
    expected = list_gradients("rloo", lists, beta=0.3)["logps"]
    for clipping in ("joint", "separate"):
        found = list_gradients("p3o", columns, beta=0.3, clipping=clipping)
        assert_allclose(found["chosen_logps"], expected[:, 0], rtol=1e-12)
        assert_allclose(found["rejected_logps"], expected[:, 1], rtol=1e-12)


def test_reinforce_with_leave_one_out_is_rloo():
    columns = random_lists("rloo", {}, seed=56)
    found = list_losses("reinforce", columns, beta=0.05, baseline="leave_one_out")
    assert_allclose(found, list_losses("rloo", columns), rtol=1e-13)


def test_mdpo_at_its_anchor_is_the_policy_gradient():
    columns = random_lists("mdpo", {"divergence": "k3"}, seed=57)
    columns["old_logps"] = columns["logps"]
    found = list_gradients("mdpo", columns, divergence="k3", step_size=0.1)["logps"][MASK]
    assert_allclose(found, -columns["advantage"][MASK] / MASK.sum(), rtol=1e-12)


def test_crpg_without_limits_has_a_calibrated_advantage():
    columns = random_lists("crpg", {"average": "tokens"}, seed=58) | {"judge": np.ones(len(GROUPS))}
    kept = 1 / (1 + np.exp(columns["base_reward"] - columns["reward"]))
    expected = -(kept - kept.mean()) * columns["logps"]
    tokens = columns["lengths"].sum()
    assert_allclose(list_losses("crpg", columns, kl_max=1e9, average="tokens"), expected.sum() / tokens, rtol=1e-7)
    del columns["lengths"]
    assert_allclose(list_losses("crpg", columns, kl_max=1e9), expected, rtol=1e-6, atol=1e-8)


def test_filtration_weights_ppo():
    columns = random_lists("grpo", {"divergence": "none"}, seed=59)
    columns["advantage"] = np.where(MASK, np.linspace(-1, 1, MASK.shape[1]), np.nan)
    ppo = objectives.ppo(average="response")
    weights = list_losses("pf_ppo_weight", {"reward": columns["reward"], "groups": GROUPS}, rule="best_worst")
    plain_columns = {n: columns[n] for n in ("logps", "old_logps", "advantage", "mask")}
    weighted = ppo.weighted_by(objectives.pf_ppo_weight(rule="best_worst"))(**columns)
    assert_allclose(weighted.losses, weights * ppo(**plain_columns).losses, rtol=1e-13)
    assert_allclose([weights[g == GROUPS].mean() for g in np.unique(GROUPS)], 1.0, rtol=1e-13)


def test_crraft_of_one_response_is_crraft_of_a_point():
    alone = {"logps": [-5.0], "ref_logps": [-5.5], "reward": [1.2], "judge": [True], "groups": [0]}
    columns = {name: np.array(value) for name, value in alone.items()} | {"base_reward": np.array([0.3])}
    calibrated = {"logps": columns["logps"], "score": 1 / (1 + np.exp([-0.9]))}
    assert_allclose(list_losses("crraft_list", columns), list_losses("crraft", calibrated), rtol=1e-13)
    columns["lengths"] = calibrated["lengths"] = np.array([4])
    found = list_losses("crraft_list", columns, average="response")
    assert_allclose(found, list_losses("crraft", calibrated, average="tokens"), rtol=1e-13)


def test_mdpo_off_at_equal_temperatures_forgets_the_old_policy():
    columns = random_lists("mdpo_off", {}, seed=62)
    settings = {"temperature": 0.3, "entropy_weight": 0.3}
    elsewhere = columns | {"old_logps": columns["old_logps"] - 2.0}
    assert_allclose(
        list_losses("mdpo_off", elsewhere, **settings), list_losses("mdpo_off", columns, **settings), rtol=1e-12
    )
