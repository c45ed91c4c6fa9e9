"""List, pair and point objectives once more, as plain float64 PyTorch written from their definitions.

Nothing here knows the package. A function takes the columns by the names a caller uses, then the hyper-parameters, and
returns one loss per item, or one for the batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus


def members(groups: Tensor) -> list[Tensor]:
    """Indices of the responses of each group, groups by ascending id."""
    return [torch.nonzero(groups == group).flatten() for group in groups.unique(sorted=True)]


def by_group(formula):
    """Lift a formula of one group's columns to a batch of groups."""

    def reference(*, groups, **given):
        columns = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        rest = {name: value for name, value in given.items() if name not in columns}
        size = len(groups)
        losses = []
        for g, rows in enumerate(members(groups)):
            own = {name: value[rows] if len(value) == size else value[g] for name, value in columns.items()}
            losses.append(formula(**own, **rest))
        return torch.stack(losses)

    return reference


def zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


def places(x: Tensor) -> Tensor:
    """Ranks from 1, largest first, ties by input order."""
    rank = torch.empty(len(x), dtype=torch.float64)
    rank[torch.argsort(x.detach(), descending=True, stable=True)] = torch.arange(1.0, len(x) + 1, dtype=torch.float64)
    return rank


def beaten(label: Tensor) -> list[tuple[int, int]]:
    return [(a, b) for a in range(len(label)) for b in range(len(label)) if label[a] > label[b]]


# --- learning to rank ---------------------------------------------------------------------------------------------


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


# --- distributions over the list ----------------------------------------------------------------------------------


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
def crraft_list(logps, ref_logps, reward, judge, base_reward, lengths=None, kl_max=10.0, average="sum"):
    c = torch.sigmoid(reward - base_reward).detach()
    kept = [k for k in range(len(c)) if judge[k] > 0.5 and logps[k] - ref_logps[k] <= kl_max]
    if not kept:
        return 0.0 * logps.sum()
    best = max(kept, key=lambda k: float(c[k]))
    return -c[best] * logps[best] / (1 if average == "sum" else lengths[best])


@by_group
def gpm(
    chosen_even,
    chosen_odd,
    rejected_even,
    rejected_odd,
    gate=None,
    gated=False,
    temperature=0.1,
    margin=0.0,
    target=None,
):
    block = torch.stack([chosen_even * rejected_odd, -chosen_odd * rejected_even]).sum(0)
    s = (block * gate).sum() if gated else block.sum()
    return -logsigmoid((s - margin) / temperature) if target is None else (s / temperature - target) ** 2 / 2


# --- policy gradients on whole responses --------------------------------------------------------------------------


def others_mean(reward, groups):
    baseline = reward.clone()
    for rows in members(groups):
        if len(rows) > 1:
            baseline[rows] = (reward[rows].sum() - reward[rows]) / (len(rows) - 1)
    return baseline


def group_mean(x, groups):
    mean = torch.empty_like(x)
    for rows in members(groups):
        mean[rows] = x[rows].mean()
    return mean


def reinforce(
    *, logps, reward, ref_logps=None, groups=None, lengths=None, value=None, beta=0.0, baseline="batch", average="sum"
):
    r = reward.detach() if ref_logps is None else (reward - beta * (logps - ref_logps)).detach()
    b = {"batch": r.mean(), "none": zero(), "given": value}.get(baseline)
    if baseline == "group":
        b = group_mean(r, groups)
    elif baseline == "leave_one_out":
        b = others_mean(r, groups)
    return -(r - b.detach()) * (logps if average == "sum" else logps / lengths)


def rloo(
    *, logps, reward, groups, ref_logps=None, old_logps=None, beta=0.05, reference=True, clip=None, clip_high=None
):
    sampler = logps if clip is None else old_logps
    r = (reward - beta * (sampler - ref_logps) if reference else reward).detach()
    a = r - others_mean(r, groups)
    if clip is None:
        return -a * logps
    ratio = torch.exp(logps - old_logps.detach())
    return -torch.min(ratio * a, torch.clamp(ratio, 1 - clip, 1 + clip_high) * a)


def crpg(*, logps, reward, base_reward, judge, kl, lengths=None, kl_max=10.0, average="sum"):
    kept = (judge * torch.sigmoid(reward - base_reward) * torch.clamp(1 - kl / kl_max, min=0)).detach()
    losses = -(kept - kept.mean()) * logps
    return losses if average == "sum" else losses.sum() / lengths.sum()


def p3o(*, clipping="joint", beta=0.05, clip=0.2, **c):
    def side(role):
        old = c[f"{role}_old_logps"].detach()
        return c[f"{role}_logps"], old, c[f"{role}_reward"].detach() - beta * (old - c[f"ref_{role}_logps"].detach())

    (lp1, o1, r1), (lp2, o2, r2) = side("chosen"), side("rejected")
    d, rho1, rho2 = r1 - r2, torch.exp(lp1 - o1), torch.exp(lp2 - o2)
    if clipping == "separate":
        c1, c2 = (d * rho2).detach(), (-d * rho1).detach()
        first = torch.min(c1 * rho1, c1 * torch.clamp(rho1, 1 - clip, 1 + clip))
        return -(first + torch.min(c2 * rho2, c2 * torch.clamp(rho2, 1 - clip, 1 + clip))) / 2
    weight, z, z_old = (d * rho1 * rho2).detach(), lp1 - lp2, o1 - o2
    return -torch.min(weight * z, weight * z.clamp(z_old - clip, z_old + clip)) / 2


# --- reward models and diffusion ----------------------------------------------------------------------------------


def bradley_terry(*, chosen_reward, rejected_reward, margin=0.0, center=0.0):
    loss = -logsigmoid(chosen_reward - rejected_reward - margin)
    return loss + center * (chosen_reward + rejected_reward) ** 2


def diffusion_dpo(*, chosen_error, rejected_error, chosen_ref_error, rejected_ref_error, beta=2500.0):
    d_w, d_l = chosen_error - chosen_ref_error.detach(), rejected_error - rejected_ref_error.detach()
    return -logsigmoid(-beta * (d_w - d_l))


def seppo(
    *, chosen_error, rejected_error, chosen_ref_error, rejected_ref_error, sign=None, beta=2500.0, anchor="model"
):
    d_w, d_l = chosen_error - chosen_ref_error.detach(), rejected_error - rejected_ref_error.detach()
    better = d_w.detach() < 0 if anchor == "model" else sign > 0
    return torch.where(better, -logsigmoid(-beta * (d_w - d_l)), -logsigmoid(-beta * (d_w + d_l)))


def d3po(*, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=0.1, clip=None):
    ratios = torch.exp(chosen_logps - ref_chosen_logps), torch.exp(rejected_logps - ref_rejected_logps)
    if clip is not None:
        ratios = tuple(torch.clamp(ratio, 1 - clip, 1 + clip) for ratio in ratios)
    return -logsigmoid(beta * torch.log(ratios[0]) - beta * torch.log(ratios[1]))


# --- further lists of the survey ----------------------------------------------------------------------------------


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


@by_group
def copg_list(logps, ref_logps, score, beta=0.06):
    reward = score.detach() - beta * (logps - ref_logps)
    terms = [(reward[a] - reward[b]) ** 2 for a in range(len(reward)) for b in range(a)]
    return sum(terms, zero()) / max(len(reward) - 1, 1)


def online_ipo_list(*, groups, logps, ref_logps, win_prob, beta=0.1):
    """win_prob holds the square of each group after the other, groups by ascending id."""
    losses, start = [], 0
    for rows in members(groups):
        h, size = (logps - ref_logps)[rows], len(rows)
        square = win_prob[start : start + size**2].reshape(size, size)
        start += size**2
        terms = [(h[a] - h[b] - (square[a, b] - 0.5) / beta) ** 2 for a in range(size) for b in range(a + 1, size)]
        losses.append(sum(terms, zero()) / max(len(terms), 1))
    return torch.stack(losses)
