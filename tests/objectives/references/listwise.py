"""The objectives of `prefuse.objectives.listwise` once more, as plain float64 PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from tests.objectives.references.shared import by_group, members, zero


def places(x: Tensor) -> Tensor:
    """Ranks from 1, largest first, ties by input order."""
    rank = torch.empty(len(x), dtype=torch.float64)
    rank[torch.argsort(x.detach(), descending=True, stable=True)] = torch.arange(1.0, len(x) + 1, dtype=torch.float64)
    return rank


def beaten(label: Tensor) -> list[tuple[int, int]]:
    return [(a, b) for a in range(len(label)) for b in range(len(label)) if label[a] > label[b]]


def lipo_of_scores(s, label, loss, base, variant):
    """The sum over one list, and how many pairs it had."""
    label, size = label.detach(), len(s)
    if loss == "mse":
        return ((label - s) ** 2).sum(), 1
    if loss == "sigmoid":
        return -(label * logsigmoid(s) + (1 - label) * logsigmoid(-s)).sum(), 1
    if loss == "list_mle":
        return order_loss(s, label), 1
    if loss == "softmax":
        return -((label if variant == "rax" else label / label.sum()) * torch.log_softmax(s, 0)).sum(), 1
    rank, total = places(s), zero()
    base = 2.0 if variant == "rax" else base
    for a, b in beaten(label):
        link = torch.relu(1 - (s[a] - s[b])) if loss == "hinge" else softplus(s[b] - s[a])
        gain = abs((2 ** label[a] - 1) - (2 ** label[b] - 1))
        discount = abs(1 / (torch.log(1 + rank[a]) / math.log(base)) - 1 / (torch.log(1 + rank[b]) / math.log(base)))
        weight = gain * discount * (size if variant == "rax" else 1) if loss == "lambda" else 1
        total = total + weight * link
    return total, len(beaten(label))


def lipo(*, groups, logps, ref_logps, label, loss="lambda", beta=0.05, base=math.e, variant="paper"):
    s = beta * (logps - ref_logps)
    found = [lipo_of_scores(s[rows], label[rows], loss, base, variant) for rows in members(groups)]
    losses = torch.stack([value for value, _ in found])
    if variant == "rax" and loss in ("hinge", "logistic", "lambda"):
        return losses.sum() / sum(count for _, count in found)
    return losses


def order_loss(s, label):
    ordered = s[torch.argsort(label, descending=True, stable=True)]
    return sum((torch.logsumexp(ordered[k:], 0) - ordered[k] for k in range(len(s))), zero())


@by_group
def plackett_luce(logps, ref_logps, label, beta=0.1):
    return order_loss(beta * (logps - ref_logps), label.detach())


@by_group
def pro(logps, lengths, score, alpha=0.05, temperature=True, nll="sum", variant="paper"):
    order = torch.argsort(score, descending=True, stable=True)
    a, r = (logps / lengths)[order], score.detach()[order]
    weight = alpha * (len(a) - 1) ** 2 if variant == "original" else alpha
    total = -weight * (logps[order[0]] if nll == "sum" else a[0])
    for k in range(len(a) - 1):
        inverse = torch.cat([(r[k] - r[-1:]), r[k] - r[k + 1 :]]) if temperature else torch.ones(len(a) - k)
        total = total - torch.log_softmax(a[k:] * inverse, 0)[0]
    return total


@by_group
def softmax_dpo(logps, ref_logps, label, beta=0.1):
    h = logps - ref_logps
    winners, losers = h[label > 0.5], h[label <= 0.5]
    terms = [-logsigmoid(-torch.log(torch.exp(beta * (losers - w)).sum())) for w in winners] if len(losers) else []
    return torch.stack(terms).mean() if terms else zero()


def tpo_tree(
    *,
    groups,
    token_logps,
    ref_token_logps,
    token_step_start,
    token_weight,
    label,
    mask,
    beta=0.5,
    base=math.e,
    average=False,
):
    scores = []
    for r in range(len(mask)):
        keep = mask[r].bool()
        h, w, start = (token_logps[r] - ref_token_logps[r])[keep], token_weight[r][keep], token_step_start[r][keep]
        firsts = [t for t in range(len(h)) if start[t]]
        ends = [*firsts[1:], len(h)]
        steps = [h[a:b].mean() if average else h[a:b].sum() for a, b in zip(firsts, ends, strict=True)]
        scores.append((w[firsts] * torch.stack(steps)).sum() / (w[firsts].sum() if average else 1.0))
    s = beta * torch.stack(scores)
    return torch.stack([lipo_of_scores(s[rows], label[rows], "lambda", base, "paper")[0] for rows in members(groups)])


@by_group
def brain(logps, ref_logps, proposal_logps, score, gamma=0.5):
    posterior = torch.softmax(score / gamma + ref_logps - proposal_logps, 0).detach()
    return -(posterior * torch.log_softmax(logps - proposal_logps.detach(), 0)).sum()


@by_group
def info_nca(logps, ref_logps, score, beta=0.1, temperature=1.0):
    target = torch.softmax(score / temperature, 0).detach()
    return -(target * torch.log_softmax(beta * (logps - ref_logps), 0)).sum()


@by_group
def nca_list(logps, ref_logps, score, beta=0.1, temperature=1.0):
    target, s = torch.softmax(score / temperature, 0).detach(), beta * (logps - ref_logps)
    return -(target * torch.log(torch.sigmoid(s)) + torch.log(torch.sigmoid(-s)) / len(s)).sum()


@by_group
def exo_list(logps, ref_logps, score, beta=0.1, temperature=1.0):
    q, p = torch.softmax(beta * (logps - ref_logps), 0), torch.softmax(score / temperature, 0).detach()
    return (q * torch.log(q / p)).sum()


@by_group
def op_gfn(logps, label):
    terms = []
    for a in range(len(logps)):
        for b in range(a):
            t = 0.5 if label[a] == label[b] else float(label[a] > label[b])
            terms.append(-t * logsigmoid(logps[a] - logps[b]) - (1 - t) * logsigmoid(logps[b] - logps[a]))
    return torch.stack(terms).mean() if terms else zero()


@by_group
def op_gfn_pareto(logps, scores, **columns):
    values = torch.stack([columns[name].detach() for name in scores.split()], 1)
    dominated = [any(bool((b >= a).all() and (b > a).any()) for b in values) for a in values]
    target = 1.0 - torch.tensor(dominated, dtype=torch.float64)
    return -(target / target.sum() * torch.log_softmax(logps, 0)).sum()


@by_group
def rrhf(logps, lengths, score, alpha=1.0):
    average = logps / lengths
    total = sum((torch.relu(average[b] - average[a]) for a, b in beaten(score)), zero())
    return total - alpha * logps[int(torch.argmax(score))]


@by_group
def lire(logps, score, temperature=1.0, normalised=False):
    r = torch.softmax(score.detach(), 0) if normalised else score.detach()
    return -(r * torch.softmax(logps / temperature, 0)).sum()


def set_gap(h, label, alpha=1.0, beta=1.0):
    chosen, others = h[label > 0.5], h[label <= 0.5]
    return beta * (chosen.mean() if len(chosen) else zero()) - alpha * (others.mean() if len(others) else zero())


@by_group
def multi_dpo(logps, ref_logps, label, beta=0.1, link="sigmoid"):
    gap = set_gap(logps - ref_logps, label)
    return -logsigmoid(beta * gap) if link == "sigmoid" else (gap - 1 / (2 * beta)) ** 2


@by_group
def d2o(logps, ref_logps, label, beta=0.1, alpha=0.1):
    return softplus(-set_gap(logps - ref_logps, label, alpha, beta))
