"""Objectives that look inside the response: suffix sums, state boundaries, masks with gradient, KL columns."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from prefuse.language import exp, log_sigmoid, minimum, pair_objective, square, stop_gradient, token_objective, where

from .checking import check_against, check_numbers, ragged_mask

LENGTHS = [3, 1, 5, 4]
MASK = ragged_mask(LENGTHS, 6)  # the last column is padding for every response


def padded(seed=1):
    """A token column; padding holds NaN, which no result may ever see."""
    return np.where(MASK, np.random.default_rng(seed).normal(-1, 1, MASK.shape), np.nan)


def rows(tensor, mask):
    return [values[keep] for values, keep in zip(tensor, mask, strict=True)]


# --- OREO (arXiv:2412.16145): value, policy and response losses, and the policy loss over steps -------------------


@token_objective
def oreo_value(token, *, beta=0.03):
    to_go = stop_gradient(token.logratio.suffix_sum())
    return square(token["value"] - token.response["reward"] + beta * to_go).mean()


@token_objective
def oreo_policy(token, *, beta=0.03, alpha=0.01):
    h = token.logratio
    later = stop_gradient(h.suffix_sum() - h)
    residual = stop_gradient(token["value"]) - token.response["reward"] + beta * (h + later)
    return (square(residual) + alpha * token["kl"]).mean()


@token_objective
def oreo_response(token, *, beta=0.03):
    return square(stop_gradient(token["value"].first()) - token.response["reward"] + beta * token.logratio.sum())


@token_objective
def oreo_step(token, *, beta=0.03):
    h, start = token.logratio, token["step_start"]
    step = h.suffix_sum(reset=start)
    later = stop_gradient(h.suffix_sum() - step)
    residual = stop_gradient(token["value"]) - token.response["reward"] + beta * (step + later)
    return (start * square(residual)).sum() / start.sum()


def oreo_reference(name):
    def reference(*, logps, ref_logps, value, reward, mask, kl=None, step_start=None, beta=0.03, alpha=0.01):
        losses = []
        for r in range(len(reward)):
            keep = mask[r].bool()
            h, v = (logps[r] - ref_logps[r])[keep], value[r][keep]
            after = torch.stack([h[t + 1 :].sum() for t in range(len(h))])
            if name == "value":
                losses.append(((v - reward[r] + beta * (h + after).detach()) ** 2).mean())
            elif name == "policy":
                residual = v.detach() - reward[r] + beta * (h + after.detach())
                losses.append((residual**2).mean() + alpha * kl[r][keep].mean())
            elif name == "response":
                losses.append((v[0].detach() - reward[r] + beta * h.sum()) ** 2)
            else:
                starts = [t for t in range(len(h)) if step_start[r][keep][t]]
                ends = [*starts[1:], len(h)]
                residuals = [
                    v[a].detach() - reward[r] + beta * (h[a:b].sum() + h[b:].sum().detach())
                    for a, b in zip(starts, ends, strict=True)
                ]
                losses.append((torch.stack(residuals) ** 2).mean())
        return torch.stack(losses)

    return reference


OREO_COLUMNS = {"ref_logps": [[0.0, 0.0, 0.0]], "mask": [[True, True, True]], "reward": [1.0]}
OREO_COLUMNS |= {"logps": [[0.5, -0.2, 0.3]], "value": [[0.4, 0.6, 0.9]]}


def test_oreo_numbers():  # token_rl_data.md, OREO
    value_gradient = {"value": [[-0.388, -0.264667, -0.060667]]}
    policy_gradient = {"logps": [[-0.011640, -0.007940, -0.001820]]}
    check_numbers(oreo_value, OREO_COLUMNS, 0.168205, value_gradient)
    check_numbers(oreo_policy, OREO_COLUMNS | {"kl": [[0.0, 0.0, 0.0]]}, 0.168205, policy_gradient)
    check_numbers(oreo_response, OREO_COLUMNS, 0.338724, {"logps": [[-0.034920] * 3]})
    steps = OREO_COLUMNS | {"step_start": [[True, False, True]]}
    check_numbers(oreo_step, steps, 0.173502, {"logps": [[-0.01746, -0.01746, -0.00273]]})


def test_oreo_equals_pytorch():
    columns = {"logps": padded(1), "ref_logps": padded(2), "value": padded(3), "mask": MASK}
    columns["reward"] = np.array([1.0, 0.0, 1.0, 0.0])
    starts = np.array([[1, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 1, 0], [1, 0, 0, 1, 0, 0]], dtype=bool)
    check_against(oreo_value, columns, oreo_reference("value"), beta=0.3)
    check_against(oreo_policy, columns | {"kl": padded(4)}, oreo_reference("policy"), beta=0.3, alpha=0.2)
    check_against(oreo_response, columns, oreo_reference("response"), beta=0.3)
    check_against(oreo_step, columns | {"step_start": starts}, oreo_reference("step"), beta=0.3)


# --- TDPO (arXiv:2404.11999) --------------------------------------------------------------------------------------


@pair_objective
def tdpo1(pair, *, beta=0.1):
    chosen, rejected = pair.chosen, pair.rejected
    drift = rejected.token["kl"].sum() - chosen.token["kl"].sum()
    return -log_sigmoid(beta * (chosen.logratio - rejected.logratio - drift))


@pair_objective
def tdpo2(pair, *, beta=0.1, alpha=0.5):
    chosen, rejected = pair.chosen, pair.rejected
    drift = rejected.token["kl"].sum() - stop_gradient(chosen.token["kl"].sum())
    return -log_sigmoid(beta * (chosen.logratio - rejected.logratio - alpha * drift))


def pair_tokens(chosen, rejected, **token_columns):
    """Token columns of a batch of pairs from ragged lists, padded with NaN."""
    columns = {}
    for role, values in (("chosen", chosen), ("rejected", rejected)):
        width = max(map(len, values))
        columns[f"{role}_mask"] = ragged_mask([len(v) for v in values], width)
        columns[f"{role}_token_logps"] = pad(values, width)
        columns[f"ref_{role}_token_logps"] = pad([[0.0] * len(v) for v in values], width)
        for name, by_role in token_columns.items():
            columns[f"{role}_token_{name}"] = pad(by_role[role == "rejected"], width)
    return columns


def pad(values, width):
    return np.array([[*v, *[np.nan] * (width - len(v))] for v in values], dtype=np.float64)


def test_tdpo_numbers():
    # token_rl_data.md, TDPO; each sum spread over several tokens
    columns = pair_tokens([[1.0, 0.2]], [[-0.5, 0.25, -0.25]], kl=([[0.5, 0.3]], [[0.5, 0.5, 0.5]]))
    first = {"chosen_token_logps": [[-0.047502] * 2], "rejected_token_logps": [[0.047502] * 3]}
    first |= {"chosen_token_kl": [[-0.047502] * 2], "rejected_token_kl": [[0.047502] * 3]}
    second = {"chosen_token_logps": [[-0.046630] * 2], "rejected_token_logps": [[0.046630] * 3]}
    second |= {"chosen_token_kl": [[0.0] * 2], "rejected_token_kl": [[0.023315] * 3]}
    check_numbers(tdpo1, columns, 0.644397, first)
    check_numbers(tdpo2, columns, 0.627924, second)
    # libraries.md 1.7.11: F2's log-ratios and KL sums
    batch = pair_tokens(
        [[-2.388509], [-1.216280]], [[-2.401820], [-1.141082]], kl=([[5.924103], [5.263302]], [[1.781328], [4.390307]])
    )
    gradient = {"chosen_token_logps": [[-0.022404], [-0.024548]], "rejected_token_kl": [[0.011202], [0.012274]]}
    check_numbers(tdpo1, batch, 0.580417)
    check_numbers(tdpo2, batch, 0.634790, gradient)
    check_numbers(tdpo1, batch, 0.315698, beta=0.5)
    check_numbers(tdpo2, batch, 0.454472, beta=0.5)


# --- SparsePO (arXiv:2410.05102): token masks that take gradients --------------------------------------------------


@pair_objective
def sparse_po(pair, *, beta=0.1, reward_penalty=0.0, kl_penalty=0.0):
    def parts(role):
        token = role.token
        reward, drift = token["reward_weight"], token["kl_weight"]
        return (reward * token.logratio).sum(), (drift * token["kl"]).sum(), reward.sum(), drift.sum()

    chosen, rejected = parts(pair.chosen), parts(pair.rejected)
    margin = (chosen[0] - rejected[0]) - (rejected[1] - chosen[1])
    penalty = reward_penalty * (chosen[2] + rejected[2]) + kl_penalty * (chosen[3] + rejected[3])
    return -log_sigmoid(beta * margin) + penalty


def sparse_po_reference(*, beta=0.1, reward_penalty=0.0, kl_penalty=0.0, **c):
    def parts(role):
        keep = c[f"{role}_mask"].bool()
        zero = torch.zeros((), dtype=torch.float64)
        column = lambda name: torch.where(keep, c[name], zero)  # noqa: E731
        h = column(f"{role}_token_logps") - column(f"ref_{role}_token_logps")
        u, d = column(f"{role}_token_reward_weight"), column(f"{role}_token_kl_weight")
        return (u * h).sum(1), (d * column(f"{role}_token_kl")).sum(1), u.sum(1), d.sum(1)

    w, l = parts("chosen"), parts("rejected")  # noqa: E741
    margin = w[0] - l[0] - (l[1] - w[1])
    return -logsigmoid(beta * margin) + reward_penalty * (w[2] + l[2]) + kl_penalty * (w[3] + l[3])


def test_sparse_po():
    # token_rl_data.md, SparsePO
    columns = pair_tokens(
        [[0.5, -0.2, 0.9]],
        [[-0.1, 0.4]],
        kl=([[0.05, 0.2, 0.1]], [[0.3, 0.15]]),
        reward_weight=([[1.0, 0.0, 0.5]], [[0.2, 1.0]]),
        kl_weight=([[0.5, 0.5, 0.0]], [[1.0, 0.25]]),
    )
    check_numbers(sparse_po, columns, 0.675432)
    check_numbers(sparse_po, columns, 0.680382, reward_penalty=1e-3, kl_penalty=1e-3)
    common = {f"{role}_token_kl_weight": columns[f"{role}_token_reward_weight"] for role in ("chosen", "rejected")}
    check_numbers(sparse_po, columns | common, 0.670412)

    rng = np.random.default_rng(5)
    ragged = lambda lengths: [list(rng.normal(0, 1, n)) for n in lengths]  # noqa: E731
    chosen, rejected = [2, 4, 1], [3, 1, 5]
    both = lambda: (ragged(chosen), ragged(rejected))  # noqa: E731
    random = pair_tokens(*both(), kl=both(), reward_weight=both(), kl_weight=both())
    check_against(sparse_po, random, sparse_po_reference, beta=0.4, reward_penalty=0.01, kl_penalty=0.02)


# --- LD-DPO: tokens beyond the shorter response's length count less (libraries.md 1.1.4) ---------------------------

F1_CHOSEN = [[-1.0, -0.5, -2.0], [-0.25, -1.5, -0.75, -1.0]]
F1_REJECTED = [[-1.5, -2.5, -0.5, -1.25, -0.75], [-2.0, -1.0]]
F1_REF_CHOSEN = [[-1.25, -0.75, -1.75], [-0.5, -1.25, -1.25, -1.5]]
F1_REF_REJECTED = [[-1.0, -2.0, -0.75, -1.0, -0.5], [-1.75, -1.25]]
F1_TOKENS = pair_tokens(F1_CHOSEN, F1_REJECTED) | {
    "ref_chosen_token_logps": pad(F1_REF_CHOSEN, 4),
    "ref_rejected_token_logps": pad(F1_REF_REJECTED, 5),
}


@pair_objective
def ld_dpo(pair, *, beta=0.1, alpha=0.5):
    shared = minimum(pair.chosen.length, pair.rejected.length)

    def desensitised(role):
        return where(role.token.position < shared, role.token.logratio, alpha * role.token.logratio).sum()

    return -log_sigmoid(beta * (desensitised(pair.chosen) - desensitised(pair.rejected)))


def test_ld_dpo():
    gradient = {
        "chosen_token_logps": [[-0.02344] * 3 + [0.0], [-0.024375] * 2 + [-0.012188] * 2],
        "rejected_token_logps": [[0.02344] * 3 + [0.01172] * 2, [0.024375] * 2 + [0.0] * 3],
    }
    check_numbers(ld_dpo, F1_TOKENS, 0.650529, gradient)
    check_numbers(ld_dpo, F1_TOKENS, 0.502320, beta=0.5)
    check_numbers(ld_dpo, F1_TOKENS, 0.668772, alpha=0.0)
    check_numbers(ld_dpo, F1_TOKENS, 0.583612, alpha=0.0, beta=0.5)
    check_numbers(ld_dpo, F1_TOKENS, 0.632677, alpha=1.0)


# --- WPO: weights from the policy's own tokens, through weighted_by (libraries.md 1.1.4) ---------------------------


@pair_objective
def wpo_weight(pair):
    def confidence(role):
        return (role.token.logp - role.token["log_sum_sq"]).mean()

    return exp(confidence(pair.chosen) + confidence(pair.rejected))


@pair_objective
def token_dpo(pair, *, beta=0.1):
    return -log_sigmoid(beta * (pair.chosen.token.logratio.sum() - pair.rejected.token.logratio.sum()))


def test_wpo():
    squares = {
        "chosen_token_log_sum_sq": pad([[-0.9, -0.4, -1.1], [-0.2, -0.8, -0.6, -0.7]], 4),
        "rejected_token_log_sum_sq": pad([[-0.8, -1.2, -0.3, -0.9, -0.5], [-1.0, -0.6]], 5),
    }
    check_numbers(token_dpo(beta=0.1).weighted_by(wpo_weight), F1_TOKENS | squares, 0.241440)
    check_numbers(token_dpo(beta=0.5).weighted_by(wpo_weight), F1_TOKENS | squares, 0.163777)


# --- step scores of a preference tree (arXiv:2410.12854): means over steps inside a response -----------------------


@token_objective
def step_score(token):
    start, weight = token["step_start"], token["weight"]
    total, tokens = token.logratio.suffix_sum(reset=start), (token.logratio * 0.0 + 1.0).suffix_sum(reset=start)
    return (start * weight * total / tokens).sum() / (start * weight).sum()


def test_step_score():  # token_rl_data.md, TPO-tree: step means .3, -.1, .2 with weights 2, 1.6, 1.1
    columns = {"logps": [[0.1, 0.5, -0.1, 0.6, -0.2, 0.2]], "ref_logps": [[0.0] * 6], "mask": [[True] * 6]}
    columns |= {"step_start": [[True, False, True, True, False, False]]}
    columns |= {"weight": [[2.0, 2.0, 1.6, 1.1, 1.1, 1.1]]}
    check_numbers(step_score, columns, 0.140426)


# --- Nash-MD (libraries.md 1.5): detached token log-ratios as coefficients -----------------------------------------


@token_objective
def nash_md(token, *, beta=0.1):
    anchor = (stop_gradient(token.logratio) * token.logp).sum()
    return beta * anchor - (token.response["preference"] - 0.5) * token.logp.sum()


def test_nash_md():
    columns = {
        "logps": pad([[-0.423358, -4.201231, -2.472275], [-3.595217, -0.244511, -2.037348, -1.735858]], 4),
        "ref_logps": pad([[-1.993148, -0.575343, -2.139865], [-1.090285, -2.387491, -0.800731, -2.118148]], 4),
        "mask": ragged_mask([3, 4], 4),
        "preference": [0.7, 0.3],
    }
    check_numbers(nash_md, columns, 1.234795)
    one = {"logps": [[-1.0, -2.0]], "ref_logps": [[-1.2, -1.5]], "mask": [[True, True]], "preference": [0.7]}
    check_numbers(nash_md, one, 0.68, {"logps": [[-0.18, -0.25]]})  # pairwise.md, Nash-MD


# --- D²PO: log-ratios discounted by position ------------------------------------------------------------------------


@pair_objective
def discounted_dpo(pair, *, beta=0.1, discount=0.9):
    def discounted(role):
        return (discount**role.token.position * role.token.logratio).sum()

    return -log_sigmoid(beta * (discounted(pair.chosen) - discounted(pair.rejected)))


def test_discounted_dpo():
    def reference(*, beta=0.1, discount=0.9, **c):
        def discounted(role):
            h = torch.where(c[f"{role}_mask"], c[f"{role}_token_logps"] - c[f"ref_{role}_token_logps"], 0.0)
            return (discount ** torch.arange(h.shape[1], dtype=h.dtype) * h).sum(1)

        return -logsigmoid(beta * (discounted("chosen") - discounted("rejected")))

    check_against(discounted_dpo, F1_TOKENS, reference, beta=0.4, discount=0.7)


# --- MaPO's mask (arXiv:2410.05102): activations mapped to [0, 1] inside the response -------------------------------


@token_objective
def mapo_reward(token):
    low = token["activation"].min()
    mask = stop_gradient((token["activation"] - low) / (token["activation"].max() - low))
    return (mask * token.logratio).sum()


def test_mapo_mask():  # token_rl_data.md, SparsePO
    columns = {"logps": [[0.1, 0.2, 0.3, 0.4]], "ref_logps": [[0.0] * 4], "mask": [[True] * 4]}
    mask = [0.461538, 1.0, 0.0, 0.692308]
    loss = float(np.dot(mask, columns["logps"][0]))
    check_numbers(mapo_reward, columns | {"activation": [[0.2, 0.9, -0.4, 0.5]]}, loss, {"logps": [mask]})


# --- packed layout and responses without tokens --------------------------------------------------------------------


def test_packed_equals_padded():
    padded_columns = {"logps": padded(1), "ref_logps": padded(2), "value": padded(3), "reward": np.arange(4.0)}
    packed = {name: column[MASK] for name, column in padded_columns.items() if name != "reward"}
    packed |= {"reward": padded_columns["reward"], "cu_seqlens": np.cumsum([0, *LENGTHS])}
    first = oreo_value(**padded_columns, mask=MASK)
    second = oreo_value(**packed)
    np.testing.assert_array_equal(first.losses, second.losses)
    np.testing.assert_array_equal(first.gradients["value"][MASK], second.gradients["value"])


def test_a_response_without_tokens_has_loss_and_gradient_zero():
    mask = MASK.copy()
    mask[1] = False
    columns = {"logps": padded(1), "ref_logps": padded(2), "value": padded(3), "reward": np.arange(4.0)}
    score = oreo_value(**columns, mask=mask)
    assert score.losses[1] == 0.0
    np.testing.assert_array_equal(score.gradients["value"][1], 0.0)
    assert np.isfinite(score.loss)
