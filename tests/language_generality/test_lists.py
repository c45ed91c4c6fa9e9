"""Objectives of whole lists of responses: ranks, ordered pairs, softmax and products inside a group."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid
from torch.nn.functional import softplus as torch_softplus

from prefuse.language import (
    exp,
    group_objective,
    log,
    log1p,
    log_sigmoid,
    maximum,
    relu,
    softplus,
    square,
    stop_gradient,
    where,
)

from .checking import by_group, check_against, check_numbers

GROUPS = np.array([7, 3, 7, 7, 3, 9, 3, 7, 3])  # interleaved on purpose; group 9 has a single response


def lists(seed=20, **extra):
    rng, size = np.random.default_rng(seed), len(GROUPS)
    columns = {"logps": rng.normal(-20, 3, size), "ref_logps": rng.normal(-20, 3, size), "groups": GROUPS}
    return columns | {name: draw(rng, size) for name, draw in extra.items()}


def uniform(rng, size):
    return rng.uniform(0, 1, size)


def normal(rng, size):
    return rng.normal(0, 1, size)


def one_list(s, **extra):
    """Columns whose log-ratios are ``s``."""
    return {"logps": s, "ref_logps": [0.0] * len(s), "groups": [0] * len(s)} | extra


def per_group(formula):
    """Lift a formula of one group's columns to a reference for `check_against`."""

    def reference(*, groups, **given):
        columns = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
        parameters = {name: value for name, value in given.items() if name not in columns}
        losses = [formula(**{k: v[rows] for k, v in columns.items()}, **parameters) for rows in by_group(groups)]
        return torch.stack(losses)

    return reference


# --- LiPO (arXiv:2402.01878): seven losses on scores s = β h and labels ψ -----------------------------------------


def over_beaten_pairs(group, value):
    """Sum of a pair value over the ordered pairs whose first label is the larger one."""
    i, j = group.pairs()
    label = group.response["label"]
    return where(i(label) > j(label), value, 0.0).sum("group")


@group_objective
def lipo_lambda(group, *, beta=0.05, base=math.e):
    i, j = group.pairs()
    s, gain = beta * group.response.logratio, 2.0 ** group.response["label"]
    discount = log(base) / log1p(s.rank(descending=True))
    weight = abs(i(gain) - j(gain)) * abs(i(discount) - j(discount))
    return over_beaten_pairs(group, weight * softplus(j(s) - i(s)))


@group_objective
def lipo_logistic(group, *, beta=0.05):
    i, j = group.pairs()
    s = beta * group.response.logratio
    return over_beaten_pairs(group, softplus(j(s) - i(s)))


@group_objective
def lipo_hinge(group, *, beta=0.05):
    i, j = group.pairs()
    s = beta * group.response.logratio
    return over_beaten_pairs(group, relu(1.0 - (i(s) - j(s))))


@group_objective
def lipo_mse(group, *, beta=0.05):
    return square(group.response["label"] - beta * group.response.logratio).sum()


@group_objective
def lipo_sigmoid(group, *, beta=0.05):
    s, label = beta * group.response.logratio, group.response["label"]
    return -(label * log_sigmoid(s) + (1.0 - label) * log_sigmoid(-s)).sum()


@group_objective
def lipo_softmax(group, *, beta=0.05):
    s, label = beta * group.response.logratio, group.response["label"]
    return -(label / label.sum() * (s - s.logsumexp())).sum()


@group_objective
def list_mle(group, *, beta=0.05):
    """Plackett-Luce: each response against those not ranked before it, itself included."""
    i, j = group.pairs()
    s, place = beta * group.response.logratio, group.response["label"].rank(descending=True)
    return log(where(j(place) >= i(place), exp(j(s) - i(s)), 0.0).sum("i")).sum()


@group_objective
def list_mle_by_sorting(group, *, beta=0.05):
    """The same along the sorted list, with suffix sums of exponentials."""
    s = (beta * group.response.logratio).sort(key=group.response["label"], descending=True)
    top = stop_gradient(s.max())
    return (top + log(exp(s - top).suffix_sum()) - s).sum()


def lipo_reference(name):
    def formula(logps, ref_logps, label, beta=0.05, base=math.e):
        s = beta * (logps - ref_logps)
        if name == "mse":
            return ((label - s) ** 2).sum()
        if name == "sigmoid":
            return -(label * logsigmoid(s) + (1 - label) * logsigmoid(-s)).sum()
        if name == "softmax":
            return -(label / label.sum() * torch.log_softmax(s, 0)).sum()
        if name == "mle":
            ordered = s[torch.argsort(label, descending=True, stable=True)]
            return sum((torch.logsumexp(ordered[k:], 0) - ordered[k] for k in range(len(s))), torch.zeros(()))
        place = torch.empty_like(s)
        place[torch.argsort(s.detach(), descending=True, stable=True)] = torch.arange(1.0, len(s) + 1, dtype=s.dtype)
        total = torch.zeros((), dtype=torch.float64)
        for a in range(len(s)):
            for b in range(len(s)):
                if label[a] > label[b]:
                    discounts = abs(math.log(base) / torch.log1p(place[a]) - math.log(base) / torch.log1p(place[b]))
                    weight = abs(2.0 ** label[a].item() - 2.0 ** label[b].item()) * discounts
                    link = torch.relu(1 - (s[a] - s[b])) if name == "hinge" else torch_softplus(s[b] - s[a])
                    total = total + (weight * link if name == "lambda" else link)
        return total

    return per_group(formula)


LIPO = {
    "lambda": lipo_lambda,
    "logistic": lipo_logistic,
    "hinge": lipo_hinge,
    "mse": lipo_mse,
    "sigmoid": lipo_sigmoid,
    "softmax": lipo_softmax,
    "mle": list_mle,
}
FIRST, FIRST_LABELS = [2.0, 1.0, 3.0], [1.0, 0.0, 0.0]
SECOND, SECOND_LABELS = [0.05, -0.1, 0.2, 0.0], [0.9, 0.6, 0.3, 0.1]


@pytest.mark.parametrize("name", LIPO)
def test_lipo_equals_pytorch(name):
    columns = lists(label=uniform)
    if name == "lambda":  # gradient through the labels is not what the paper's detached weight means
        columns["label"] = np.round(columns["label"] * 4).astype(np.int64)
    if name == "mle":
        reference, objective = lipo_reference(name), list_mle
        check_against(list_mle_by_sorting, columns, reference, beta=0.4)
    else:
        reference, objective = lipo_reference(name), LIPO[name]
    check_against(objective, columns, reference, beta=0.4)


# general.md, lipo: worked numbers
@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("mse", 11.0, 1.2325),
        ("sigmoid", 4.488777, 2.809142),
        ("logistic", 1.626523, 4.257265),
        ("hinge", 2.0, 6.15),
        ("mle", 3.534534, 3.217686),
        ("softmax", 1.407606, 1.406031),
        ("lambda", 0.758426, 0.725288),
    ],
)
def test_lipo_numbers(name, first, second):
    check_numbers(LIPO[name], one_list(FIRST, label=FIRST_LABELS), first, beta=1.0)
    check_numbers(LIPO[name], one_list(SECOND, label=SECOND_LABELS), second, beta=1.0)


def test_lipo_lambda_with_base_two():
    gradient = {"logps": [-0.305024, 0.035212, 0.269812]}
    check_numbers(lipo_lambda, one_list(FIRST, label=FIRST_LABELS), 0.525701, gradient, beta=1.0, base=2.0)
    check_numbers(lipo_lambda, one_list(SECOND, label=SECOND_LABELS), 0.502731, beta=1.0, base=2.0)
    # token_rl_data.md, TPO-tree: the same λ loss, natural logarithm, β = 0.5
    tree = {"logps": [0.5 * -0.325655, 0.5 * 0.067796, 0.5 * 0.257859]}
    check_numbers(lipo_lambda, one_list([1.0, 0.2, -0.4], label=[1.0, 0.6, 0.1]), 0.448735, tree, beta=0.5)
    check_numbers(lipo_lambda, one_list([-0.4, 1.0, 0.2], label=[1.0, 0.6, 0.1]), 0.656448, beta=0.5)


def test_two_responses_reduce_to_dpo():
    columns = one_list([1.0, -0.5], label=[1.0, 0.0])
    dpo = math.log1p(math.exp(-0.1 * 1.5))
    check_numbers(lipo_logistic, columns, dpo, beta=0.1)
    check_numbers(list_mle, columns, dpo, beta=0.1)
    check_numbers(lipo_hinge, columns, 1 - 0.1 * 1.5, beta=0.1)


def test_tied_labels_leave_no_pairs():
    columns = one_list([0.3, -2.0, 1.0], label=[1.0, 1.0, 1.0])
    check_numbers(lipo_lambda, columns, 0.0, {"logps": [0.0, 0.0, 0.0]})
    check_numbers(lipo_logistic, columns, 0.0, {"logps": [0.0, 0.0, 0.0]})


# --- CoPG (arXiv:2406.19185), its form over K samples, and online IPO with a preference matrix --------------------


@group_objective
def copg(group, *, beta=0.5):
    i, j = group.pairs()
    regularised = group.response["score"] - 0.5 * beta * group.response.logratio
    h = group.response.logratio
    return -0.5 * ((i(regularised) - j(regularised)) * (i(h) - j(h))).sum("group")


def test_copg():
    def reference(logps, ref_logps, score, beta=0.5):
        h = logps - ref_logps
        regularised = score - beta / 2 * h
        pairs = [(a, b) for a in range(len(h)) for b in range(a)]
        total = torch.zeros((), dtype=torch.float64)
        for a, b in pairs:
            total = total - (regularised[a] - regularised[b]) * (h[a] - h[b])
        return total

    check_against(copg, lists(score=normal), per_group(reference), beta=0.3)
    # general.md, copg
    t0 = {"logps": [-12.0, -15.0], "ref_logps": [-13.0, -14.5], "groups": [0, 0]}
    check_numbers(copg, t0 | {"score": [2.5, 1.0]}, -1.6875, {"logps": [-0.75, 0.75]}, beta=0.5)
    check_numbers(copg, t0 | {"score": [0.5, 0.0]}, -0.1875, beta=0.5)


# --- general preference model (arXiv:2410.02197): antisymmetric scores of two-dimensional embeddings --------------


@group_objective
def gpm(group, *, temperature=0.1):
    i, j = group.pairs()
    blocks = [("v0", "v1", "gate0"), ("v2", "v3", "gate1")]
    score = 0.0
    for even, odd, gate in blocks:
        a, b = group.response[even], group.response[odd]
        score = score + group[gate] * (i(a) * j(b) - i(b) * j(a))
    return over_beaten_pairs(group, -log_sigmoid(score / temperature))


def test_gpm():
    # general.md, gpm: s = -0.63 with one block, -1.176 with two gated ones
    embeddings = {"v0": [1.2, 0.3], "v1": [0.5, -0.4], "v2": [-0.3, 0.6], "v3": [0.8, 0.1]}
    columns = {"label": [1.0, 0.0], "groups": [0, 0]} | embeddings
    one_block = columns | {"gate0": [1.0], "gate1": [0.0]}
    check_numbers(gpm, one_block, 6.301835, temperature=0.1)
    check_numbers(gpm, one_block, 1.056960, temperature=1.0)
    gated = columns | {"gate0": [1.3], "gate1": [0.7]}
    check_numbers(gpm, gated, math.log1p(math.exp(1.176)), temperature=1.0)

    def reference(*, groups, label, gate0, gate1, v0, v1, v2, v3, temperature=0.1):
        losses = []
        for g, rows in enumerate(by_group(groups)):
            total = torch.zeros((), dtype=torch.float64)
            for a in rows:
                for b in rows:
                    if label[a] > label[b]:
                        s = gate0[g] * (v0[a] * v1[b] - v1[a] * v0[b]) + gate1[g] * (v2[a] * v3[b] - v3[a] * v2[b])
                        total = total - logsigmoid(s / temperature)
            losses.append(total)
        return torch.stack(losses)

    rng = np.random.default_rng(3)
    random = lists(label=uniform, v0=normal, v1=normal, v2=normal, v3=normal)
    del random["logps"], random["ref_logps"]
    gates = {"gate0": rng.uniform(0.5, 2, 3), "gate1": rng.uniform(0.5, 2, 3)}
    check_against(gpm, random | gates, reference, temperature=0.8)


# --- leave-one-out win rates from a preference matrix (SPO, arXiv:2401.04056; DNO) ---------------------------------


@group_objective
def win_rate_policy_gradient(group):
    """Each response's mean win rate against the others, as the weight of its log-probability."""
    pairs = group.pairs()
    i, j = pairs
    place = group.response.position
    others = where(i(place) == j(place), 0.0, pairs["preference"])
    rate = others.sum("i") / maximum(group.size - 1.0, 1.0)
    return -(stop_gradient(rate) * group.response.logp).sum()


def test_win_rates():
    # general.md, spo-selfplay
    matrix = [[0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]]
    columns = {"logps": [-1.0, -2.0, -4.0], "groups": [0, 0, 0], "preference": [matrix]}
    gradient = {"logps": [-0.55, -0.45, -0.50]}
    check_numbers(win_rate_policy_gradient, columns, 0.55 + 0.9 + 2.0, gradient)


# --- online IPO over all pairs of a group (arXiv:2403.08635), targets from a preference matrix ----------------------


@group_objective
def online_ipo(group, *, tau=0.3):
    pairs = group.pairs()
    i, j = pairs
    h, place = group.response.logratio, group.response.position
    residual = i(h) - j(h) - (pairs["preference"] - 0.5) / tau
    below = i(place) < j(place)
    return where(below, square(residual), 0.0).sum("group") / below.sum("group")


def test_online_ipo():
    rng = np.random.default_rng(8)
    wins = rng.uniform(0, 1, (2, 4, 4))
    columns = {"logps": rng.normal(-9, 2, 8), "ref_logps": rng.normal(-9, 2, 8), "groups": np.repeat([5, 2], 4)}

    def reference(*, logps, ref_logps, groups, preference, tau=0.3):
        losses = []
        for rows, matrix in zip(by_group(groups), preference, strict=True):
            h = (logps - ref_logps)[rows]
            terms = [(h[a] - h[b] - (matrix[a, b] - 0.5) / tau) ** 2 for a in range(4) for b in range(a + 1, 4)]
            losses.append(torch.stack(terms).mean())
        return torch.stack(losses)

    check_against(online_ipo, columns | {"preference": wins}, reference, tau=0.2)
