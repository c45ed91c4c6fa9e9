"""Policy-gradient objectives: clipped ratios, advantages from the group or from a value head, three reductions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prefuse.language import (
    clamp,
    exp,
    group_objective,
    maximum,
    minimum,
    pair_objective,
    point_objective,
    sigmoid,
    sqrt,
    square,
    stop_gradient,
    token_objective,
    where,
)

from .checking import by_group, check_against, check_numbers, ragged_mask


def clipped_policy_loss(token, advantage, clip):
    ratio = exp(token.logp - token["old_logps"])
    return maximum(-advantage * ratio, -advantage * clamp(ratio, 1.0 - clip, 1.0 + clip))


# --- PPO-max (arXiv:2307.04964): clipped policy and clipped value, global token mean -------------------------------


@token_objective
def ppo_max(token, *, clip=0.2, value_clip=0.2, value_weight=1.0):
    policy = clipped_policy_loss(token, token["advantage"], clip)
    value, old, target = token["value"], token["old_value"], token["return"]
    clipped = clamp(value, old - value_clip, old + value_clip)
    critic = 0.5 * maximum(square(value - target), square(clipped - target))
    return (policy + value_weight * critic).mean("batch")


def ppo_reference(*, logps, old_logps, advantage, value, old_value, mask, clip=0.2, value_clip=0.2, **rest):
    keep, target = mask.bool(), rest["return"]
    ratio = torch.exp(logps - old_logps)
    policy = torch.max(-advantage * ratio, -advantage * torch.clamp(ratio, 1 - clip, 1 + clip))
    clipped = torch.clamp(value, old_value - value_clip, old_value + value_clip)
    critic = 0.5 * torch.max((value - target) ** 2, (clipped - target) ** 2)
    return (policy + rest.get("value_weight", 1.0) * critic)[keep].mean()


def test_ppo_max():
    # token_rl_data.md, PPO-max: policy -0.227044 and value 0.025
    columns = {
        "logps": [[-0.7, -1.6]],
        "old_logps": [[-1.0, -2.0]],
        "advantage": [[1.0, -0.5]],
        "value": [[0.9, 0.1]],
        "old_value": [[0.5, 0.2]],
        "return": [[1.0, 0.0]],
        "mask": [[True, True]],
    }
    gradient = {"logps": [[0.0, 0.372956]], "value": [[0.0, 0.05]]}
    check_numbers(ppo_max, columns, -0.227044 + 0.025, gradient)
    check_numbers(ppo_max, columns, -0.227044, value_weight=0.0)
    rng = np.random.default_rng(11)
    mask = ragged_mask([4, 2, 5], 5)
    random = {name: rng.normal(0, 0.4, mask.shape) for name in columns if name != "mask"}
    check_against(ppo_max, random | {"mask": mask}, ppo_reference, clip=0.15, value_clip=0.1, value_weight=0.5)


def test_roll_in_tokens_are_masked():  # general.md, dr-po: the first token only sets the scene
    columns = {"logps": [[0.3, -0.3, 0.05, -0.4]], "advantage": [[1.0, -0.5, 0.8, 2.0]]}
    columns |= {"mask": [[False, True, True, True]]}
    columns |= {name: [[0.0] * 4] for name in ("old_logps", "value", "old_value", "return")}
    gradient = {"logps": [[0.0, 0.0, -0.8 * np.exp(0.05) / 3, -2 * np.exp(-0.4) / 3]]}
    check_numbers(ppo_max, columns, -0.593886, gradient, value_weight=0.0)


# --- RTO (arXiv:2404.18922): token rewards, generalised advantage estimation, PPO ----------------------------------


@token_objective
def rto(token, *, dpo_weight=0.05, reward_clip=0.05, kl_weight=0.01, discount=1.0, smoothing=0.95, clip=0.2):
    dense = clamp(dpo_weight * (token["dpo_logps"] - token.ref_logp), -reward_clip, reward_clip)
    last = token.position >= token.response.length - 1.0
    reward = dense - kl_weight * (token["old_logps"] - token.ref_logp) + where(last, token.response["score"], 0.0)
    residual = reward + discount * token["value"].shift(-1, fill=0.0) - token["value"]
    advantage = stop_gradient(residual.suffix_sum(discount=discount * smoothing))
    return clipped_policy_loss(token, advantage, clip).mean()


def rto_reference(*, logps, ref_logps, old_logps, dpo_logps, value, score, mask, discount=1.0, smoothing=0.95, **_):
    losses = []
    for r in range(len(score)):
        keep = mask[r].bool()
        lp, rf, old, dpo, v = (x[r][keep] for x in (logps, ref_logps, old_logps, dpo_logps, value))
        reward = torch.clamp(0.05 * (dpo - rf), -0.05, 0.05) - 0.01 * (old - rf)
        reward = torch.cat([reward[:-1], reward[-1:] + score[r]])
        advantage, running = [], torch.zeros((), dtype=torch.float64)
        for t in reversed(range(len(lp))):
            following = v[t + 1] if t + 1 < len(lp) else 0.0
            running = reward[t] + discount * following - v[t] + discount * smoothing * running
            advantage.insert(0, running)
        a, ratio = torch.stack(advantage).detach(), torch.exp(lp - old)
        losses.append(torch.max(-a * ratio, -a * torch.clamp(ratio, 0.8, 1.2)).mean())
    return torch.stack(losses)


def test_rto():
    # token_rl_data.md, RTO: advantages 0.892205, 0.813900, 0.802000
    ref = np.array([[-1.0, -2.0, -1.5]])
    old = ref + np.array([[0.1, -0.2, 0.3]])
    columns = {
        "ref_logps": ref,
        "dpo_logps": ref + np.array([[0.4, -2.0, 0.1]]),
        "old_logps": old,
        "logps": old + np.array([[0.3, -0.3, 0.05]]),
        "value": [[0.5, 0.6, 0.7]],
        "score": [1.5],
        "mask": [[True] * 3],
    }
    check_numbers(rto, columns, -0.838906, {"logps": [[0.0, -0.200984, -0.281040]]})
    rng = np.random.default_rng(12)
    mask = ragged_mask([3, 6, 1], 6)
    names = ("logps", "ref_logps", "old_logps", "dpo_logps", "value")
    random = {name: rng.normal(-1, 0.5, mask.shape) for name in names} | {"score": rng.normal(0, 1, 3)}
    check_against(rto, random | {"mask": mask}, rto_reference, discount=0.9, smoothing=0.8)


# --- GRPO (arXiv:2402.03300) with group baselines and the three reductions ----------------------------------------


@token_objective
def grpo(token, *, beta=0.04, clip=0.2, reduction="response", max_tokens=5.0):
    reward = token.response["reward"]
    centred = reward - reward.mean("group")
    advantage = stop_gradient(centred / (sqrt(square(centred).mean("group")) + 1e-4))
    return reduced(token, grpo_terms(token, advantage, beta, clip), reduction, max_tokens)


@token_objective
def grpo_given_advantages(token, *, beta=0.04, clip=0.2, reduction="response", max_tokens=5.0):
    return reduced(token, grpo_terms(token, token.response["advantage"], beta, clip), reduction, max_tokens)


def grpo_terms(token, advantage, beta, clip):
    towards_reference = token.ref_logp - token.logp
    return clipped_policy_loss(token, advantage, clip) + beta * (exp(towards_reference) - towards_reference - 1.0)


def reduced(token, per_token, reduction, max_tokens):
    if reduction == "response":
        return per_token.mean()
    return per_token.mean("batch") if reduction == "batch" else per_token.sum() / max_tokens


def grpo_reference(*, logps, ref_logps, old_logps, reward, groups, mask, beta=0.04, reduction="response", **_):
    advantage = torch.zeros(len(reward), dtype=torch.float64)
    for rows in by_group(groups):
        centred = reward[rows].detach() - reward[rows].detach().mean()
        advantage[rows] = centred / ((centred**2).mean().sqrt() + 1e-4)
    a, ratio, gap = advantage[:, None], torch.exp(logps - old_logps), ref_logps - logps
    terms = torch.max(-a * ratio, -a * torch.clamp(ratio, 0.8, 1.2)) + beta * (torch.exp(gap) - gap - 1)
    terms = terms * mask
    if reduction == "response":
        return terms.sum(1) / mask.sum(1)
    return terms.sum() / mask.sum() if reduction == "batch" else terms.sum(1) / 5.0


@pytest.mark.parametrize("reduction", ["response", "batch", "constant"])
def test_grpo_equals_pytorch(reduction):
    rng = np.random.default_rng(13)
    mask = ragged_mask([3, 2, 5, 1, 4, 4], 5)
    columns = {name: rng.normal(-1, 0.3, mask.shape) for name in ("logps", "ref_logps", "old_logps")}
    columns |= {"reward": rng.normal(0, 1, 6), "groups": np.array([1, 0, 1, 0, 0, 1]), "mask": mask}
    check_against(grpo, columns, grpo_reference, beta=0.1, reduction=reduction)


F2_TOKENS = [
    [-0.423358, -4.201231, -2.472275],
    [-3.595217, -0.244511, -2.037348, -1.735858],
    [-0.534775, -3.310146],
    [-2.599848, -2.548358, -0.076231],
]
F2_REFERENCE = [
    [-1.993148, -0.575343, -2.139865],
    [-1.090285, -2.387491, -0.800731, -2.118148],
    [-0.606141, -0.836959],
    [-2.118148, -1.325343, -0.639865],
]


def f2_columns():
    """F2 with old log-probs 0.1 t above the policy's, t counted from 0 at the ignored first position."""
    pad = lambda rows: np.array([[0.0, *row, *[0.0] * (4 - len(row))] for row in rows])  # noqa: E731
    logps, ref = pad(F2_TOKENS), pad(F2_REFERENCE)
    mask = ragged_mask([4, 5, 3, 4], 5) & (np.arange(5) > 0)
    columns = {"logps": logps, "ref_logps": ref, "old_logps": logps + 0.1 * np.arange(5), "mask": mask}
    return columns | {"advantage": np.array([1.0, 0.5, -1.0, -0.5])}


@pytest.mark.parametrize(("reduction", "loss"), [("response", 0.204779), ("batch", 0.095720), ("constant", 0.057432)])
def test_grpo_numbers(reduction, loss):  # libraries.md 1.6: grpo, bnpo/dapo, dr_grpo
    check_numbers(grpo_given_advantages, f2_columns(), loss, reduction=reduction)


# --- CISPO: a clipped ratio as detached weight ---------------------------------------------------------------------


@token_objective
def cispo(token, *, beta=0.04, cap=5.0):
    weight = stop_gradient(minimum(exp(token.logp - token["old_logps"]), cap))
    towards_reference = token.ref_logp - token.logp
    penalty = beta * (exp(towards_reference) - towards_reference - 1.0)
    return (penalty - weight * token.response["advantage"] * token.logp).mean("batch")


def test_cispo():  # libraries.md 1.6; Liger's default clip of 0.2 is the cap itself, not 1 + 0.2
    check_numbers(cispo, f2_columns(), 0.257022, cap=0.2)


# --- GSPO: one ratio per response, clipped there -------------------------------------------------------------------


@token_objective
def gspo(token, *, clip=0.1):
    ratio, advantage = exp((token.logp - token["old_logps"]).mean()), token.response["advantage"]
    return maximum(-advantage * ratio, -advantage * clamp(ratio, 1.0 - clip, 1.0 + clip))


def test_gspo():
    def reference(*, logps, old_logps, advantage, mask, clip=0.1):
        ratio = torch.exp(((logps - old_logps) * mask).sum(1) / mask.sum(1))
        return torch.max(-advantage * ratio, -advantage * torch.clamp(ratio, 1 - clip, 1 + clip))

    rng = np.random.default_rng(14)
    mask = ragged_mask([3, 2, 5, 1], 5)
    columns = {name: rng.normal(-1, 0.3, mask.shape) for name in ("logps", "old_logps")}
    check_against(gspo, columns | {"advantage": rng.normal(0, 1, 4), "mask": mask}, reference, clip=0.05)


# --- advantages whitened over all tokens of the batch --------------------------------------------------------------


@token_objective
def whitened_reinforce(token):
    centred = token["advantage"] - token["advantage"].mean("batch")
    whitened = stop_gradient(centred / sqrt(square(centred).mean("batch") + 1e-6))
    return -(whitened * token.logp).mean("batch")


def test_whitened_advantages():
    def reference(*, logps, advantage, mask):
        kept = advantage[mask]
        whitened = (kept - kept.mean()) / torch.sqrt(kept.var(unbiased=False) + 1e-6)
        return -(whitened.detach() * logps[mask]).mean()

    rng = np.random.default_rng(15)
    mask = ragged_mask([3, 2, 5, 1], 5)
    columns = {name: rng.normal(-1, 2, mask.shape) for name in ("logps", "advantage")}
    check_against(whitened_reinforce, columns | {"mask": mask}, reference)


# --- RLOO / HyPO's KL term (arXiv:2406.01462): leave-one-out baseline inside the group ------------------------------


@group_objective
def leave_one_out_kl(group, *, weight=0.1):
    h = group.response.logratio
    baseline = (h.sum() - h) / (group.size - 1.0)
    return weight * (stop_gradient(h - baseline) * group.response.logp).mean()


def test_leave_one_out_kl():
    # pairwise.md, HyPO: coefficients ±0.03
    columns = {"logps": [0.5, -0.1], "ref_logps": [0.0, 0.0], "groups": [0, 0]}
    check_numbers(leave_one_out_kl, columns, 0.03 * 0.6, {"logps": [0.03, -0.03]})


# --- P3O (arXiv:2310.00212): pairs, detached coefficients, separate and joint clipping ------------------------------


@pair_objective
def p3o_separate(pair, *, clip=0.2):
    first, second = pair.chosen, pair.rejected
    gap = first["reward"] - second["reward"]
    ratio, other = exp(first.logp - first["old_logps"]), exp(second.logp - second["old_logps"])

    def term(coefficient, rho):
        coefficient = stop_gradient(coefficient)
        return minimum(coefficient * rho, coefficient * clamp(rho, 1.0 - clip, 1.0 + clip))

    return -0.5 * (term(gap * other, ratio) + term(-gap * ratio, other))


@pair_objective
def p3o_joint(pair, *, clip=0.2):
    first, second = pair.chosen, pair.rejected
    z, old = first.logp - second.logp, first["old_logps"] - second["old_logps"]
    ratios = exp(first.logp - first["old_logps"] + second.logp - second["old_logps"])
    coefficient = stop_gradient((first["reward"] - second["reward"]) * ratios)
    return -0.5 * minimum(coefficient * z, coefficient * clamp(z, old - clip, old + clip))


def test_p3o():  # general.md, p3o
    columns = {
        "chosen_logps": [-12.0],
        "rejected_logps": [-15.0],
        "chosen_old_logps": [-12.05],
        "rejected_old_logps": [-14.95],
        "chosen_reward": [0.8],
        "rejected_reward": [0.0],
    }
    gradient = {"chosen_logps": [-0.4], "rejected_logps": [0.4]}
    check_numbers(p3o_separate, columns, 0.0, gradient)
    check_numbers(p3o_joint, columns, -1.2, gradient)
    clipped = {"chosen_logps": [0.0], "rejected_logps": [0.513610]}
    check_numbers(p3o_separate, columns | {"chosen_old_logps": [-12.3]}, 0.057020, clipped)


# --- CGPO's CRPG (arXiv:2409.20370): calibrated rewards, batch baseline, normalised by all tokens -------------------


@point_objective
def crpg(response, *, kl_max=10.0):
    calibrated = sigmoid(response["reward"] - response["base_reward"])
    kept = response["judge"] * calibrated * maximum(0.0, 1.0 - response["kl"] / kl_max)
    advantage = stop_gradient(kept - kept.mean("batch"))
    return -(advantage * response.logp).sum("batch") / response.length.sum("batch")


def test_crpg():  # token_rl_data.md, CGPO
    columns = {
        "logps": [-5.0, -8.0, -6.0],
        "lengths": [5, 8, 6],
        "reward": [2.0, 0.5, 1.0],
        "base_reward": [0.8, 0.8, 0.8],
        "judge": [1.0, 1.0, 0.0],
        "kl": [1.0, 6.0, 2.0],
    }
    check_numbers(crpg, columns, -0.033607, {"logps": [-0.021283, 0.006162, 0.015121]})
