"""Relations between objectives of lists and tokens that hold exactly, whatever the numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from prefuse import objectives, preference_loss

from . import checking
from .lists_and_tokens import GROUPS, MASK, evaluate, random_columns

pytestmark = pytest.mark.evidence("identities")

PAIRS = checking.random_columns(5, seed=41)


def as_lists(**extra):
    """The pairs as lists of two, chosen first."""
    both = lambda name: np.stack([PAIRS[f"{name}chosen_logps"], PAIRS[f"{name}rejected_logps"]], 1)  # noqa: E731
    columns = {"logps": both(""), "ref_logps": both("ref_")}
    return columns | {name: np.tile(values, (5, 1)) for name, values in extra.items()}


def pair_losses(name, **parameters):
    return checking.evaluate(name, parameters, PAIRS).losses


def losses(name, columns, **parameters):
    return evaluate(name, parameters, columns).losses


def gradients(name, columns, **parameters):
    return evaluate(name, parameters, columns).gradients


# --- lists of two --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "column"),
    [
        ("plackett_luce", {}, "label"),
        ("softmax_dpo", {}, "label"),
        ("lipo", {"loss": "logistic"}, "label"),
        ("lipo", {"loss": "list_mle"}, "label"),
        ("lipo", {"loss": "logistic", "variant": "rax"}, "label"),
    ],
)
def test_two_responses_give_dpo(name, parameters, column):
    found = losses(name, as_lists(**{column: np.array([1.0, 0.0])}), beta=0.2, **parameters)
    expected = pair_losses("dpo", beta=0.2)
    pooled = parameters.get("variant") == "rax"  # one mean over all pairs of the batch
    assert_allclose(found, np.full(5, expected.mean()) if pooled else expected, rtol=1e-12)


def test_two_responses_give_the_pair_objectives():
    certain = as_lists(score=np.array([60.0, 0.0]))
    assert_allclose(losses("info_nca", certain, beta=0.2), pair_losses("dpo", beta=0.2), rtol=1e-12)
    assert_allclose(losses("nca_list", certain, beta=0.2), pair_losses("nca", beta=0.2), rtol=1e-12)
    labelled = as_lists(label=np.array([1.0, 0.0]))
    assert_allclose(losses("lipo", labelled, loss="hinge", beta=0.2), pair_losses("hinge", beta=0.2), rtol=1e-12)
    epsilon = 1.0 / (1.0 + math.exp(3.0))
    smoothed = as_lists(score=np.array([3.0, 0.0]))
    expected = pair_losses("exo", beta=0.2, label_smoothing=epsilon)
    assert_allclose(losses("exo_list", smoothed, beta=0.2), expected, rtol=1e-10)


def test_brain_with_the_reference_as_proposal():
    columns = as_lists(score=np.array([40.0, 0.0]))
    columns["proposal_logps"] = columns["ref_logps"]
    assert_allclose(losses("brain", columns, gamma=1.0), pair_losses("dpo", beta=1.0), rtol=1e-12)


def test_lipo_weighs_a_pair_of_two_the_same_whoever_leads():
    weight = 1 - 1 / math.log2(3)
    found = losses("lipo", as_lists(label=np.array([1.0, 0.0])), beta=0.2, base=2.0)
    assert_allclose(found, weight * pair_losses("dpo", beta=0.2), rtol=1e-12)


def test_pro_without_temperature_and_with_one_token_is_plackett_luce():
    columns = as_lists(score=np.array([1.0, 0.0]), lengths=np.array([1, 1]))
    reference_free = as_lists(label=np.array([1.0, 0.0])) | {"ref_logps": np.zeros((5, 2))}
    del columns["ref_logps"]
    found = losses("pro", columns, alpha=0.0, temperature=False)
    assert_allclose(found, losses("plackett_luce", reference_free, beta=1.0), rtol=1e-12)


# --- any list ------------------------------------------------------------------------------------------------------

LIST = random_columns("lipo", {}, seed=42)


@pytest.mark.parametrize("loss", ["lambda", "logistic", "hinge"])
def test_tied_labels_leave_no_pairs(loss):
    tied = LIST | {"label": np.ones(len(GROUPS))}
    score = evaluate("lipo", {"loss": loss}, tied)
    np.testing.assert_array_equal(score.losses, 0.0)
    np.testing.assert_array_equal(score.gradients["logps"], 0.0)


def test_lipo_list_mle_is_plackett_luce():
    assert_allclose(
        losses("lipo", LIST, loss="list_mle", beta=0.3), losses("plackett_luce", LIST, beta=0.3), rtol=1e-14
    )


def test_brain_ignores_constants_and_its_gradient_is_the_estimator():
    columns = random_columns("brain", {}, seed=43)
    base = evaluate("brain", {}, columns)
    for column in ("score", "proposal_logps"):
        shifted = evaluate("brain", {}, columns | {column: columns[column] + 3.0})
        assert_allclose(shifted.losses, base.losses, rtol=1e-12)
    for group in np.unique(GROUPS):
        assert abs(base.gradients["logps"][group == GROUPS].sum()) < 1e-15
    uniform = columns | {"score": np.zeros(len(GROUPS)), "logps": columns["ref_logps"]}
    assert_allclose(gradients("brain", uniform)["logps"], 0.0, atol=1e-16)


def test_plackett_luce_survives_what_no_exponential_does():
    far = LIST | {"logps": np.where(np.arange(len(GROUPS)) % 2, -1e6, 0.0)}
    score = evaluate("plackett_luce", {"beta": 1.0}, far)
    assert np.all(np.isfinite(score.losses))
    near = LIST | {"logps": np.zeros(len(GROUPS)), "ref_logps": np.zeros(len(GROUPS))}
    sizes = np.array([4, 4, 1])
    expected = [math.lgamma(size + 1) for size in sizes]
    assert_allclose(losses("plackett_luce", near), expected, rtol=1e-14)  # all orders alike: log K!


# --- reward models and diffusion -------------------------------------------------------------------------------------


def test_gpm_of_one_block_is_bradley_terry():
    rng = np.random.default_rng(44)
    r_w, r_l = rng.normal(size=(2, 6))
    columns = {"chosen_even": r_w, "rejected_even": r_l, "chosen_odd": np.ones(6), "rejected_odd": np.ones(6)}
    blocks = {name: values[:, None] for name, values in columns.items()}
    found = losses("gpm", blocks, temperature=1.0)
    assert_allclose(found, losses("bradley_terry", {"chosen_reward": r_w, "rejected_reward": r_l}), rtol=1e-13)


def test_gpm_scores_a_cycle_and_nothing_against_itself():
    angles = 2 * np.pi * np.arange(3) / 3
    v = np.stack([np.cos(angles), np.sin(angles)], 1)
    for chosen, rejected in ((0, 1), (1, 2), (2, 0)):
        columns = {"chosen_even": v[[chosen], :1], "chosen_odd": v[[chosen], 1:]}
        columns |= {"rejected_even": v[[rejected], :1], "rejected_odd": v[[rejected], 1:]}
        assert_allclose(losses("gpm", columns, temperature=1.0), np.log1p(np.exp(-math.sqrt(3) / 2)), rtol=1e-12)
        itself = columns | {"rejected_even": v[[chosen], :1], "rejected_odd": v[[chosen], 1:]}
        assert_allclose(losses("gpm", itself), np.log(2), rtol=1e-14)


def test_seppo_and_d3po_reduce():
    columns = random_columns("diffusion_dpo", {}, seed=45)
    ahead = columns | {"chosen_ref_error": columns["chosen_error"] + 0.1}  # the model is ahead of the checkpoint
    assert_allclose(losses("seppo", ahead, beta=3.0), losses("diffusion_dpo", ahead, beta=3.0), rtol=1e-14)
    assert_allclose(losses("d3po", {n: PAIRS[n] for n in objectives.d3po.columns}), pair_losses("dpo"), rtol=1e-14)
    at_reference = columns | {f"{r}_error": columns[f"{r}_ref_error"] for r in ("chosen", "rejected")}
    assert_allclose(losses("diffusion_dpo", at_reference), np.log(2), rtol=1e-14)


# --- tokens --------------------------------------------------------------------------------------------------------

PAIR_TOKENS = random_columns("sparse_po", {}, seed=46)
ROLES = ("chosen", "rejected")


def token_pair(**replaced):
    return PAIR_TOKENS | {
        f"{role}_token_{n}": 0 * PAIR_TOKENS[f"{role}_token_rkl"] + v for n, v in replaced.items() for role in ROLES
    }


def plain(columns, *names):
    """Those columns an objective on the same pairs reads."""
    kept = ("_mask", "token_logps", *names)
    return {name: value for name, value in columns.items() if name.endswith(kept)}


def test_masks_of_one_and_nought():
    ones = token_pair(reward_weight=1.0, kl_weight=1.0)
    assert_allclose(losses("sparse_po", ones), losses("tdpo1", plain(ones, "token_rkl")), rtol=1e-13)
    no_kl = token_pair(reward_weight=1.0, kl_weight=0.0)
    assert_allclose(losses("sparse_po", no_kl), losses("dpo", plain(no_kl)), rtol=1e-13)
    nothing = token_pair(reward_weight=0.0, kl_weight=0.0)
    score = evaluate("sparse_po", {}, nothing)
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
    assert_allclose(losses("mapo", columns), losses("sparse_po", PAIR_TOKENS | masks), rtol=1e-12)


def test_tdpo_reductions():
    columns = plain(PAIR_TOKENS, "token_rkl")
    dpo = losses("dpo", plain(PAIR_TOKENS))
    assert_allclose(losses("tdpo2", columns, alpha=0.0), dpo, rtol=1e-13)
    assert_allclose(losses("tdpo2", columns, alpha=1.0), losses("tdpo1", columns), rtol=1e-13)
    assert not np.nan_to_num(gradients("tdpo2", columns, alpha=1.0)["chosen_token_rkl"]).any()
    assert_allclose(losses("tdpo1", plain(token_pair(rkl=0.0), "token_rkl")), dpo, rtol=1e-13)


def test_weights_of_one_give_dpo():
    dpo = losses("dpo", plain(PAIR_TOKENS))
    assert_allclose(losses("d2po", plain(PAIR_TOKENS), discount=1.0), dpo, rtol=1e-13)
    assert_allclose(losses("tis_dpo", plain(token_pair(weight=1.0), "token_weight"), weights="given"), dpo, rtol=1e-13)
    assert_allclose(losses("tis_dpo", plain(token_pair(contrast=0.0), "token_contrast")), dpo, rtol=1e-13)


def test_oreo_value_and_policy_have_one_value():
    columns = random_columns("oreo", {"divergence": "none"}, seed=47)
    assert_allclose(losses("oreo", columns, divergence="none"), losses("oreo_value", columns), rtol=1e-13)
    alone = np.zeros(MASK.shape, bool)
    alone[:, 0] = True  # one step: the whole response
    step = losses("oreo", columns | {"step_start": alone}, divergence="none", level="step")
    assert_allclose(step, losses("oreo", columns, divergence="none", level="response"), rtol=1e-13)
    every = losses("oreo", columns | {"step_start": np.ones(MASK.shape, bool)}, divergence="none", level="step")
    assert_allclose(every, losses("oreo", columns, divergence="none"), rtol=1e-13)


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
    assert_allclose(losses("oreo", columns, beta=0.5, divergence="none", level=level), 0.0, atol=1e-11)


# --- policy gradients ------------------------------------------------------------------------------------------------


def test_ppo_at_the_old_policy_is_reinforce():
    columns = random_columns("ppo", {}, seed=48)
    columns["old_logps"] = columns["logps"]
    score = evaluate("ppo", {}, columns)
    assert_allclose(score.loss, -columns["advantage"][MASK].mean(), rtol=1e-13)
    assert_allclose(score.gradients["logps"][MASK], -columns["advantage"][MASK] / MASK.sum(), rtol=1e-13)
    assert score.metrics["clip_ratio"] == 0.0


def test_the_old_policy_takes_no_gradient():
    """Even where the caller gives the policy's own log-probabilities as the old ones."""
    columns = random_columns("grpo", {}, seed=49)
    found = gradients("grpo", columns)
    assert "old_logps" not in found or not np.nan_to_num(found["old_logps"]).any()


def test_dr_po_without_roll_in_is_ppo():
    columns = random_columns("dr_po", {}, seed=50) | {"roll_in": np.zeros(len(GROUPS), int)}
    ppo = {name: value for name, value in columns.items() if name != "roll_in"}
    assert_allclose(losses("dr_po", columns), losses("ppo", ppo), rtol=1e-13)


def test_rto_without_the_dpo_model_is_ppo_on_its_own_advantages():
    columns = random_columns("rto", {}, seed=51)
    given = columns | {"dpo_logps": columns["old_logps"]}
    balanced = evaluate(
        "rto", {"dpo_weight": 0.3, "kl_weight": 0.3, "score_weight": 0.0}, given | {"value": 0 * MASK + 0.0}
    )
    assert_allclose(balanced.losses, 0.0, atol=1e-15)  # rewards β (log π_dpo - log π_old) are 0


def test_gspo_of_one_token_is_grpo():
    columns = random_columns("gspo", {}, seed=52)
    columns["mask"] = columns["mask"] & (np.arange(MASK.shape[1]) == 0)
    clips = {"clip": 0.1, "clip_high": 0.2}
    assert_allclose(losses("gspo", columns, **clips), losses("grpo", columns, divergence="none", **clips), rtol=1e-13)
    assert_allclose(losses("luspo", columns, **clips), losses("gspo", columns, **clips), rtol=1e-13)


def test_members_of_the_family_are_grpo_with_options():
    columns = random_columns("dapo", {}, seed=53)
    options = {"clip": 0.2, "clip_high": 0.28, "divergence": "none", "average": "tokens"}
    assert_allclose(losses("dapo", columns), losses("grpo", columns, **options), rtol=1e-14)
    options = {"estimator": "mean", "divergence": "none", "average": "constant", "max_tokens": 9.0}
    assert_allclose(losses("dr_grpo", columns, max_tokens=9.0), losses("grpo", columns, **options), rtol=1e-14)


def test_a_constant_added_to_a_prompt_changes_nothing():
    by_prompt = np.unique(GROUPS, return_inverse=True)[1] * 1.5
    for name in ("grpo", "rloo"):
        columns = random_columns(name, {}, seed=54)
        shifted = columns | {"reward": columns["reward"] + by_prompt}
        assert_allclose(losses(name, shifted), losses(name, columns), rtol=1e-10, atol=1e-13)
    columns = random_columns("p3o", {}, seed=54)
    shifted = columns | {f"{role}_reward": columns[f"{role}_reward"] + 2.0 for role in ROLES}
    for clipping in ("joint", "separate"):
        found = losses("p3o", shifted, clipping=clipping)
        assert_allclose(found, losses("p3o", columns, clipping=clipping), rtol=1e-10, atol=1e-13)


def test_p3o_on_policy_is_rloo_of_two():
    columns = random_columns("p3o", {}, seed=55)
    for role in ROLES:
        columns[f"{role}_old_logps"] = columns[f"{role}_logps"]
    stack = lambda name: np.stack([columns[name.format(role)] for role in ROLES], 1)  # noqa: E731
    lists = {"logps": stack("{}_logps"), "ref_logps": stack("ref_{}_logps"), "reward": stack("{}_reward")}
    expected = gradients("rloo", lists, beta=0.3)["logps"]
    for clipping in ("joint", "separate"):
        found = gradients("p3o", columns, beta=0.3, clipping=clipping)
        assert_allclose(found["chosen_logps"], expected[:, 0], rtol=1e-12)
        assert_allclose(found["rejected_logps"], expected[:, 1], rtol=1e-12)


def test_reinforce_with_leave_one_out_is_rloo():
    columns = random_columns("rloo", {}, seed=56)
    found = losses("reinforce", columns, beta=0.05, baseline="leave_one_out")
    assert_allclose(found, losses("rloo", columns), rtol=1e-13)


def test_mdpo_at_its_anchor_is_the_policy_gradient():
    columns = random_columns("mdpo", {"divergence": "k3"}, seed=57)
    columns["old_logps"] = columns["logps"]
    found = gradients("mdpo", columns, divergence="k3", step_size=0.1)["logps"][MASK]
    assert_allclose(found, -columns["advantage"][MASK] / MASK.sum(), rtol=1e-12)


def test_crpg_without_limits_has_a_calibrated_advantage():
    columns = random_columns("crpg", {"average": "tokens"}, seed=58) | {"judge": np.ones(len(GROUPS))}
    kept = 1 / (1 + np.exp(columns["base_reward"] - columns["reward"]))
    expected = -(kept - kept.mean()) * columns["logps"]
    tokens = columns["lengths"].sum()
    assert_allclose(losses("crpg", columns, kl_max=1e9, average="tokens"), expected.sum() / tokens, rtol=1e-7)
    del columns["lengths"]
    assert_allclose(losses("crpg", columns, kl_max=1e9), expected, rtol=1e-6, atol=1e-8)


def test_filtration_weights_ppo():
    columns = random_columns("grpo", {"divergence": "none"}, seed=59)
    columns["advantage"] = np.where(MASK, np.linspace(-1, 1, MASK.shape[1]), np.nan)
    ppo = objectives.ppo(average="response")
    weights = losses("pf_ppo_weight", {"reward": columns["reward"], "groups": GROUPS}, rule="best_worst")
    plain_columns = {n: columns[n] for n in ("logps", "old_logps", "advantage", "mask")}
    weighted = ppo.weighted_by(objectives.pf_ppo_weight(rule="best_worst"))(**columns)
    assert_allclose(weighted.losses, weights * ppo(**plain_columns).losses, rtol=1e-13)
    assert_allclose([weights[g == GROUPS].mean() for g in np.unique(GROUPS)], 1.0, rtol=1e-13)


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


@pytest.mark.parametrize("name", ["cispo", "sapo", "vespo"])
def test_soft_gates_are_open_at_the_old_policy(name):
    columns = random_columns(name, {"estimator": "given"}, seed=61)
    columns["old_logps"] = columns["logps"]
    per_token = np.broadcast_to(columns["advantage"][:, None], MASK.shape)[MASK]
    share = MASK.sum() if name != "sapo" else (len(GROUPS) * MASK.sum(1, keepdims=True) * MASK)[MASK]
    found = gradients(name, columns, estimator="given")["logps"][MASK]
    assert_allclose(found, -per_token / share, rtol=1e-12)


def test_order_of_two_is_dpo_without_a_reference():
    free = checking.evaluate("dpo", {"beta": 1.0}, PAIRS | {f"ref_{role}_logps": np.zeros(5) for role in ROLES}).losses
    two = as_lists(label=np.array([1.0, 0.0]), score=np.array([1.0, 0.0]))
    del two["ref_logps"]
    assert_allclose(losses("op_gfn", {n: two[n] for n in ("logps", "label")}), free, rtol=1e-12)
    assert_allclose(losses("op_gfn_pareto", {n: two[n] for n in ("logps", "score")}), free, rtol=1e-12, atol=1e-14)


def test_crraft_of_one_response_is_crraft_of_a_point():
    alone = {"logps": [-5.0], "ref_logps": [-5.5], "reward": [1.2], "judge": [True], "groups": [0]}
    columns = {name: np.array(value) for name, value in alone.items()} | {"base_reward": np.array([0.3])}
    calibrated = {"logps": columns["logps"], "score": 1 / (1 + np.exp([-0.9]))}
    assert_allclose(losses("crraft_list", columns), losses("crraft", calibrated), rtol=1e-13)
    columns["lengths"] = calibrated["lengths"] = np.array([4])
    found = losses("crraft_list", columns, average="response")
    assert_allclose(found, losses("crraft", calibrated, average="tokens"), rtol=1e-13)


def test_mdpo_off_at_equal_temperatures_forgets_the_old_policy():
    columns = random_columns("mdpo_off", {}, seed=62)
    settings = {"temperature": 0.3, "entropy_weight": 0.3}
    elsewhere = columns | {"old_logps": columns["old_logps"] - 2.0}
    assert_allclose(losses("mdpo_off", elsewhere, **settings), losses("mdpo_off", columns, **settings), rtol=1e-12)


def test_a_tree_of_one_step_is_lipo():
    columns = random_columns("tpo_tree", {}, seed=63)
    start = np.zeros(MASK.shape, bool)
    start[:, 0] = True
    h = np.where(MASK, columns["token_logps"] - columns["ref_token_logps"], 0.0).sum(1)
    one_step = columns | {"token_step_start": start, "token_weight": np.where(MASK, 2.0, np.nan)}
    for average, score in ((False, 2.0 * h), (True, h / MASK.sum(1))):
        lists = {"logps": score, "ref_logps": 0 * h, "label": columns["label"], "groups": columns["groups"]}
        expected = losses("lipo", lists, loss="lambda", beta=0.7, base=2.0)
        found = losses("tpo_tree", one_step, beta=0.7, base=2.0, average=average)
        assert_allclose(found, expected, rtol=1e-11)


def test_a_shared_step_of_equal_weight_leaves_no_margin():
    """TPO, after eq. 10: where two responses share a step, it adds nothing to their margin."""
    first = {"token_logps": [[0.3, -0.2, 0.5], [0.3, -0.2, -0.4]], "token_weight": [[2.0, 2.0, 1.5]] * 2}
    other = {"token_logps": [[-0.6, 0.1, 0.5], [-0.6, 0.1, -0.4]], "token_weight": [[1.0, 1.0, 1.5]] * 2}
    shared = {"ref_token_logps": np.zeros((2, 3)), "token_step_start": [[True, False, True]] * 2}
    shared |= {"mask": np.ones((2, 3), bool), "label": [1.0, 0.0], "groups": [0, 0]}
    both = [{name: np.array(value) for name, value in (given | shared).items()} for given in (first, other)]
    assert_allclose(losses("tpo_tree", both[0]), losses("tpo_tree", both[1]), rtol=1e-12)


# --- further entries of the survey ---------------------------------------------------------------------------------


def test_gspo_by_token_with_one_advantage_is_gspo():
    columns = random_columns("gspo", {"estimator": "given"}, seed=61)
    clips = {"clip": 0.05, "clip_high": 0.1}
    spread = columns | {"advantage": np.where(MASK, columns["advantage"][:, None], np.nan)}
    by_token, whole = losses("gspo_token", spread, **clips), losses("gspo", columns, estimator="given", **clips)
    assert_allclose(by_token, whole, rtol=1e-13)
    ours = gradients("gspo_token", spread, **clips)["logps"]
    assert_allclose(ours, gradients("gspo", columns, estimator="given", **clips)["logps"], rtol=1e-12, atol=1e-16)


def test_lists_of_two_give_the_pair_objectives_of_online_learning():
    even = as_lists(score=np.array([1.0, 0.3]))
    pair = PAIRS | {"chosen_score": np.full(5, 1.0), "rejected_score": np.full(5, 0.3)}
    expected = checking.evaluate("reward_distillation", {"beta": 0.2}, pair).losses
    assert_allclose(losses("copg_list", even, beta=0.2), expected, rtol=1e-12)
    wins = as_lists() | {"win_prob": np.tile([[0.5, 0.8], [0.2, 0.5]], (5, 1, 1))}
    expected = checking.evaluate("online_ipo", {"beta": 0.2}, PAIRS | {"win_prob": np.full(5, 0.8)}).losses
    assert_allclose(losses("online_ipo_list", wins, beta=0.2), expected, rtol=1e-12)
    labelled = as_lists(label=np.array([1.0, 0.0]))
    assert_allclose(losses("multi_dpo", labelled, beta=0.2), pair_losses("dpo", beta=0.2), rtol=1e-12)
    assert_allclose(losses("multi_dpo", labelled, beta=0.2, link="ipo"), pair_losses("ipo", beta=0.2), rtol=1e-12)


def test_rrhf_of_two_is_a_hinge_and_a_likelihood():
    ranked = {name: value for name, value in as_lists(score=np.array([1.0, 0.0])).items() if name != "ref_logps"}
    ranked |= {"lengths": np.ones((5, 2), int)}
    hinge, whole = losses("rrhf", ranked, alpha=0.0), losses("rrhf", ranked, alpha=0.5)
    assert_allclose(hinge, pair_losses("slic", delta=0.0, alpha=0.0), rtol=1e-12, atol=1e-12)
    assert_allclose(whole - hinge, 0.5 * pair_losses("sft", nll="sum"), rtol=1e-10)
    assert losses("rrhf", {name: value[:, ::-1] for name, value in ranked.items()}, alpha=0.0) == pytest.approx(hinge)


SAMPLERS = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
CORRECTED = [(name, sampler) for name in ("cispo", "sapo", "dapo", "dr_grpo") for sampler in SAMPLERS]
CORRECTED += [("vespo", sampler) for sampler in SAMPLERS[:2]]


@pytest.mark.parametrize(("name", "sampler"), CORRECTED)
def test_an_engine_that_agrees_changes_nothing(name, sampler):
    columns = random_columns(name, {"sampler": sampler}, seed=62)
    columns |= {"sampler_logps": columns["old_logps"]}
    plain = {column: value for column, value in columns.items() if column != "sampler_logps"}
    assert_allclose(losses(name, columns, sampler=sampler), losses(name, plain), rtol=1e-14)


def test_a_response_out_of_bounds_is_masked():
    columns = random_columns("grpo", {"divergence": "none", "sampler": "sequence_mask"}, seed=63)
    columns |= {"sampler_logps": columns["old_logps"] - np.where(np.arange(len(MASK)) == 2, 5.0, 0.0)[:, None]}
    score = evaluate("grpo", {"divergence": "none", "sampler": "sequence_mask"}, columns)
    assert score.losses[2] == 0.0 and not score.gradients["logps"][2].any()
    assert score.losses[0] != 0.0


def test_far_responses_of_negative_advantage_are_dropped():
    options = {"divergence": "none", "estimator": "given"}
    columns = random_columns("grpo", options, seed=64)
    near, far = (losses("grpo", columns, **options, off_policy=bound) for bound in (1e9, -1e9))
    assert_allclose(near, losses("grpo", columns, **options), rtol=0)
    assert_allclose(far, np.where(columns["advantage"] >= 0, near, 0.0), rtol=0)
