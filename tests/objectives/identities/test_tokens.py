"""Relations that objectives of `prefuse.objectives.tokens` hold exactly, whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from prefuse import preference_loss
from tests.objectives.identities.shared import COLUMNS, PAIR_TOKENS, ROLES, list_gradients, list_losses, losses, plain
from tests.objectives.lists_and_tokens import MASK
from tests.objectives.lists_and_tokens import evaluate as evaluate_lists
from tests.objectives.lists_and_tokens import random_columns as random_lists

pytestmark = pytest.mark.evidence("identities")


def token_pair(**replaced):
    return PAIR_TOKENS | {
        f"{role}_token_{n}": 0 * PAIR_TOKENS[f"{role}_token_rkl"] + v for n, v in replaced.items() for role in ROLES
    }


def test_masks_of_one_and_nought():
    ones = token_pair(reward_weight=1.0, kl_weight=1.0)
    assert_allclose(list_losses("sparse_po", ones), list_losses("tdpo1", plain(ones, "token_rkl")), rtol=1e-13)
    no_kl = token_pair(reward_weight=1.0, kl_weight=0.0)
    assert_allclose(list_losses("sparse_po", no_kl), list_losses("dpo", plain(no_kl)), rtol=1e-13)
    nothing = token_pair(reward_weight=0.0, kl_weight=0.0)
    score = evaluate_lists("sparse_po", {}, nothing)
    assert_allclose(score.losses, np.log(2), rtol=1e-14)
    np.testing.assert_array_equal(score.gradients["chosen_token_logps"], 0.0)


def test_mapo_is_sparse_po_under_its_mask():
    activations = {f"{role}_token_activation": PAIR_TOKENS[f"{role}_token_kl_weight"] for role in ROLES}
    masks = {}
    for role in ROLES:
        a = activations[f"{role}_token_activation"]
        low, high = np.nanmin(a, 1, keepdims=True), np.nanmax(a, 1, keepdims=True)
        mask = (a - low) / np.where(high > low, high - low, 1.0)
        masks |= {f"{role}_token_reward_weight": mask, f"{role}_token_kl_weight": mask}
    columns = plain(PAIR_TOKENS, "token_rkl") | activations
    assert_allclose(list_losses("mapo", columns), list_losses("sparse_po", PAIR_TOKENS | masks), rtol=1e-12)


def test_tdpo_reductions():
    columns = plain(PAIR_TOKENS, "token_rkl")
    dpo = list_losses("dpo", plain(PAIR_TOKENS))
    assert_allclose(list_losses("tdpo2", columns, alpha=0.0), dpo, rtol=1e-13)
    assert_allclose(list_losses("tdpo2", columns, alpha=1.0), list_losses("tdpo1", columns), rtol=1e-13)
    assert not np.nan_to_num(list_gradients("tdpo2", columns, alpha=1.0)["chosen_token_rkl"]).any()
    assert_allclose(list_losses("tdpo1", plain(token_pair(rkl=0.0), "token_rkl")), dpo, rtol=1e-13)


def test_weights_of_one_give_dpo():
    dpo = list_losses("dpo", plain(PAIR_TOKENS))
    assert_allclose(list_losses("d2po", plain(PAIR_TOKENS), discount=1.0), dpo, rtol=1e-13)
    assert_allclose(
        list_losses("tis_dpo", plain(token_pair(weight=1.0), "token_weight"), weights="given"), dpo, rtol=1e-13
    )
    assert_allclose(list_losses("tis_dpo", plain(token_pair(contrast=0.0), "token_contrast")), dpo, rtol=1e-13)


def test_oreo_value_and_policy_have_one_value():
    columns = random_lists("oreo", {"divergence": "none"}, seed=47)
    assert_allclose(list_losses("oreo", columns, divergence="none"), list_losses("oreo_value", columns), rtol=1e-13)
    alone = np.zeros(MASK.shape, bool)
    alone[:, 0] = True  # one step: the whole response
    step = list_losses("oreo", columns | {"step_start": alone}, divergence="none", level="step")
    assert_allclose(step, list_losses("oreo", columns, divergence="none", level="response"), rtol=1e-13)
    every = list_losses("oreo", columns | {"step_start": np.ones(MASK.shape, bool)}, divergence="none", level="step")
    assert_allclose(every, list_losses("oreo", columns, divergence="none"), rtol=1e-13)


@pytest.mark.parametrize("level", ["token", "response"])
def test_oreo_vanishes_at_the_optimum(level):
    """token_rl_data.md, OREO's toy: at V* and π* every trajectory of the tree has residual 0."""
    root, left, right = [0.6, 0.4], [0.5, 0.5], [0.7, 0.3]
    best_root, best_left, best_right = [0.534828, 0.465172], [0.119203, 0.880797], [0.945179, 0.054821]
    values = 0.774382, 0.716890, 0.849853
    paths = [(a, b) for a in (0, 1) for b in (0, 1)]
    logs = lambda first, second: np.log([[first[a], second[a][b]] for a, b in paths])  # noqa: E731
    columns = {
        "logps": logs(best_root, (best_left, best_right)),
        "ref_logps": logs(root, (left, right)),
        "value": np.array([[values[0], values[1 + a]] for a, _ in paths]),
        "reward": np.array([float(a != b) for a, b in paths]),
        "mask": np.ones((4, 2), bool),
    }
    assert_allclose(list_losses("oreo", columns, beta=0.5, divergence="none", level=level), 0.0, atol=1e-11)


def test_tdpo_from_logits():
    """`preference_loss` makes the KL of the right direction, with its gradient."""
    generator = torch.Generator().manual_seed(60)
    logits, reference = (torch.randn(4, 5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(0, 7, (4, 5), generator=generator)
    labels[1:3, 3:] = -100
    mine, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found = preference_loss("tdpo2", logits=mine, labels=labels, reference=reference, alpha=0.7)
    found.loss.backward()

    kept, index = labels != -100, labels.clamp(min=0)[..., None]
    log_p, log_q = theirs.log_softmax(-1), reference.log_softmax(-1)
    h = ((log_p - log_q).gather(-1, index)[..., 0] * kept).sum(1)
    k = ((log_q.exp() * (log_q - log_p)).sum(-1) * kept).sum(1)
    margin = h[:2] - h[2:] - 0.7 * (k[2:] - k[:2].detach())
    expected = -torch.nn.functional.logsigmoid(0.1 * margin).mean()
    expected.backward()
    assert_allclose(found.loss.detach(), expected.detach(), rtol=1e-10)
    assert_allclose(mine.grad, theirs.grad, rtol=1e-7, atol=1e-12)


def test_humanline_kto_without_limits_is_kto():
    mask = COLUMNS["mask"]
    sums = {name: np.where(mask, COLUMNS[name.replace("logps", "token_logps")], 0.0).sum(1) for name in POINT}
    found = losses("humanline_kto", beta=0.2, low=-1000.0, high=1000.0, kl=0.3)
    assert_allclose(found, losses("kto", COLUMNS | sums, beta=0.2, kl=0.3), rtol=1e-12)
    assert np.abs(found - losses("humanline_kto", beta=0.2, low=-0.1, high=0.1, kl=0.3)).max() > 1e-3


POINT = ("logps", "ref_logps")
