"""The objectives of `prefuse.objectives.policy_gradient` once more, as plain float64 PyTorch."""

from __future__ import annotations

import torch

from tests.objectives.references.shared import (
    average_of,
    by_group,
    clipped,
    group_mean,
    k3,
    members,
    others_mean,
    rows,
    zero,
)


@by_group
def crraft_list(logps, ref_logps, reward, judge, base_reward, lengths=None, kl_max=10.0, average="sum"):
    c = torch.sigmoid(reward - base_reward).detach()
    kept = [k for k in range(len(c)) if judge[k] > 0.5 and logps[k] - ref_logps[k] <= kl_max]
    if not kept:
        return 0.0 * logps.sum()
    best = max(kept, key=lambda k: float(c[k]))
    return -c[best] * logps[best] / (1 if average == "sum" else lengths[best])


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


def value_error(value, target, old, value_clip):
    error = (value - target) ** 2
    return (
        error
        if value_clip is None
        else torch.max(error, (value.clamp(old - value_clip, old + value_clip) - target) ** 2)
    )


def ppo(*, logps, old_logps, advantage, mask, clip=0.2, clip_high=None, whiten=False, average="tokens", **rest):
    kept = advantage[mask].detach()
    if whiten:
        advantage = (advantage.detach() - kept.mean()) / torch.sqrt(kept.var(correction=0) + 1e-8)
    high = clip if clip_high is None else clip_high
    columns = rows(mask, logps, old_logps.detach(), advantage.detach())
    terms = [clipped(lp - old, a, clip, high) for lp, old, a in columns]
    if rest.get("value_weight") is not None:
        old_value = rest.get("old_value", rest["value"])
        squares = rows(mask, rest["value"], rest["return"].detach(), old_value.detach())
        errors = [value_error(*columns, rest.get("value_clip")) for columns in squares]
        terms = [x + rest["value_weight"] * e for x, e in zip(terms, errors, strict=True)]
    if rest.get("entropy_weight") is not None:
        terms = [x - rest["entropy_weight"] * h for x, (h,) in zip(terms, rows(mask, rest["entropy"]), strict=True)]
    return average_of(terms, average)


def ppo_max(
    *,
    logps,
    old_logps,
    advantage,
    value,
    old_value,
    mask,
    clip=0.2,
    value_clip=0.2,
    value_weight=1.0,
    pretrain=None,
    entropy=None,
    entropy_weight=0.0,
    entropy_target=35.0,
    ptx_weight=0.0,
    **rest,
):
    kept = mask if pretrain is None else mask & ~pretrain[:, None]
    policy = clipped((logps - old_logps.detach())[kept], advantage[kept].detach(), clip, clip).mean()
    errors = value_error(value[kept], rest["return"][kept].detach(), old_value[kept].detach(), value_clip)
    loss = policy + value_weight * errors.mean() / 2
    if entropy is not None:
        loss = loss + entropy_weight * (entropy[kept].mean() - entropy_target).abs()
    return loss if pretrain is None else loss - ptx_weight * logps[mask & pretrain[:, None]].mean()


def dr_po(*, roll_in, mask, variant="paper", value_weight=0.0, value_clip=0.2, clip=0.2, **c):
    generated = mask & (torch.arange(mask.shape[1]) >= roll_in[:, None])
    loss = clipped(
        (c["logps"] - c["old_logps"].detach())[generated], c["advantage"][generated].detach(), clip, clip
    ).mean()
    if not value_weight:
        return loss
    kept = mask if variant == "original" else generated
    errors = value_error(c["value"][kept], c["return"][kept].detach(), c["old_value"][kept].detach(), value_clip)
    return loss + value_weight * errors.mean() / 2


def rto(
    *,
    logps,
    ref_logps,
    old_logps,
    dpo_logps,
    value,
    score,
    mask,
    dpo_weight=0.05,
    kl_weight=0.01,
    score_weight=1.0,
    reward_clip=None,
    discount=1.0,
    smoothing=0.95,
    clip=0.2,
    whiten=False,
):
    found = []
    for r, (ref, old, dpo, v) in enumerate(rows(mask, *(x.detach() for x in (ref_logps, old_logps, dpo_logps, value)))):
        dense = dpo_weight * (dpo - ref)
        dense = dense if reward_clip is None else dense.clamp(-reward_clip, reward_clip)
        reward = dense - kl_weight * (old - ref)
        reward[-1] = reward[-1] + score_weight * score[r].detach()
        advantage, running = torch.zeros_like(v), zero()
        for t in reversed(range(len(v))):
            following = v[t + 1] if t + 1 < len(v) else 0.0
            running = reward[t] + discount * following - v[t] + discount * smoothing * running
            advantage[t] = running
        found.append(advantage)
    if whiten:
        joined = torch.cat(found)
        found = [(a - joined.mean()) / torch.sqrt(joined.var(correction=0) + 1e-8) for a in found]
    pairs = zip(rows(mask, logps, old_logps.detach()), found, strict=True)
    return torch.stack([clipped(lp - old, a, clip, clip).mean() for (lp, old), a in pairs])


def mdpo(*, logps, old_logps, advantage, mask, kl=None, step_size=1.0, divergence="exact"):
    x = (logps - old_logps.detach())[mask]
    d = kl[mask] if divergence == "exact" else k3(x)
    return (d / step_size - torch.exp(x) * advantage[mask].detach()).mean()


def mdpo_off(*, logps, old_logps, q, mask, temperature, entropy_weight):
    previous = old_logps.detach()
    losses = temperature * (logps - previous) + entropy_weight * previous - q
    return losses[mask].mean()


def pf_ppo_weight(*, reward, rule, groups=None, power=2.0):
    r = reward.detach()
    if rule == "power":
        raw = r.abs() ** power
        return (raw / raw.mean()).requires_grad_()
    weight = torch.zeros_like(r)
    for index in members(groups):
        own, best, worst = torch.zeros(len(index), dtype=r.dtype), r[index].argmax(), r[index].argmin()
        if rule == "best_random":
            own += 1.0
            own[best] = 4.0
        own[best] = max(1.0, own[best])
        if rule == "best_worst":
            own[worst] = 1.0
        weight[index] = own / own.mean()
    return weight.requires_grad_()
