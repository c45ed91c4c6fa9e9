"""The objectives of `prefuse.objectives.group_relative` once more, as plain float64 PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.objectives.references.shared import (
    average_of,
    clipped,
    group_mean,
    k3,
    members,
    others_mean,
    rows,
)


def advantages(how, groups, reward, advantage=None):
    """One per response."""
    if how == "given":
        return advantage.detach()
    r = reward.detach()
    if how == "leave_one_out":
        return r - others_mean(r, groups)
    centred = r - group_mean(r, groups)
    if how == "mean":
        return centred
    std = r.std().expand(len(r)).clone()
    if how == "std":
        for index in members(groups):
            std[index] = r[index].std() if len(index) > 1 else 0.0
    return centred / (std + 1e-4)


def engine_weights(sampler, low, high, mask, old_logps, sampler_logps) -> list[Tensor]:
    """Importance ratios of the training policy over the engine that sampled, by token, truncated or masked."""
    if sampler == "none":
        return [torch.ones(int(keep.sum()), dtype=torch.float64) for keep in mask]
    found, low = [], 0.0 if low is None else low
    for old, engine in rows(mask, old_logps.detach(), sampler_logps.detach()):
        gap = old - engine
        ratio = torch.exp(gap if sampler.startswith("token") else gap.sum().expand(len(gap)))
        inside = (ratio >= low) & (ratio <= high)
        found.append(torch.clamp(ratio, low, high) if sampler.endswith("truncate") else torch.where(inside, ratio, 0.0))
    return found


def humanline_grpo(
    *,
    logps,
    ref_logps,
    mask,
    reward=None,
    groups=None,
    advantage=None,
    beta=0.04,
    clip=0.2,
    low=-1.0,
    high=1.5,
    estimator="std",
    num_tokens=None,
):
    a = advantages(estimator, groups, reward, advantage)
    terms = []
    for r, (lp, ref) in enumerate(rows(mask, logps, ref_logps)):
        ratio = torch.clip(lp - ref, low, high).exp()
        surrogate = torch.minimum(ratio * a[r], torch.clip(ratio, 1 - clip, 1 + clip) * a[r])
        terms.append(beta * k3(lp - ref) - surrogate)
    return average_of(terms, "tokens", None, num_tokens)


def grpo(
    *,
    logps,
    old_logps,
    mask,
    ref_logps=None,
    reward=None,
    groups=None,
    beta=0.04,
    clip=0.2,
    clip_high=None,
    delta=None,
    advantage=None,
    estimator="std",
    divergence="k3",
    average="response",
    max_tokens=None,
    num_tokens=None,
    sampler="none",
    sampler_low=None,
    sampler_high=3.0,
    sampler_logps=None,
    off_policy=None,
):
    a = advantages(estimator, groups, reward, advantage)
    terms = []
    for r, (lp, old) in enumerate(rows(mask, logps, old_logps.detach())):
        ratio = torch.exp(lp - old)
        limited = torch.clamp(ratio, 1 - clip, 1 + (clip if clip_high is None else clip_high))
        free = ratio if delta is None else torch.clamp(ratio, max=delta)
        terms.append(-torch.min(free * a[r], limited * a[r]))
    weights = engine_weights(sampler, sampler_low, sampler_high, mask, old_logps, sampler_logps)
    terms = [term * weight for term, weight in zip(terms, weights, strict=True)]
    if off_policy is not None:
        behind = old_logps if sampler == "none" else sampler_logps
        drifts = [(was - lp).detach().mean() for was, lp in rows(mask, behind, logps)]
        terms = [t * float(a[r] >= 0 or drifts[r] <= off_policy) for r, t in enumerate(terms)]
    if divergence != "none":
        penalties = [beta * k3(lp - ref) for lp, ref in rows(mask, logps, ref_logps)]
    if divergence == "k3_unbiased":
        ratios = [torch.exp(lp - old) for lp, old in rows(mask, logps, old_logps.detach())]
        penalties = [penalty * ratio for penalty, ratio in zip(penalties, ratios, strict=True)]
    if divergence != "none":
        terms = [term + penalty for term, penalty in zip(terms, penalties, strict=True)]
    return average_of(terms, average, max_tokens, num_tokens)


def dapo(*, clip=0.2, clip_high=0.28, **columns):
    return grpo(**columns, divergence="none", clip=clip, clip_high=clip_high, average="tokens")


def dr_grpo(*, clip=0.2, max_tokens=1024.0, **columns):
    options = {"estimator": "mean", "divergence": "none", "average": "constant", "max_tokens": max_tokens}
    return grpo(**columns, clip=clip, **options)


def gspo(*, logps, old_logps, mask, reward, groups, clip, clip_high):
    a = advantages("std", groups, reward)
    log_ratios = torch.stack([(lp - old).mean() for lp, old in rows(mask, logps, old_logps.detach())])
    return clipped(log_ratios, a, clip, clip_high)


def luspo(*, mask, **given):
    return mask.sum(1) * gspo(mask=mask, **given)


def cispo(*, logps, old_logps, mask, reward, groups, cap=5.0, num_tokens=None, sampler="none", **engine):
    a = advantages("std", groups, reward)
    weights = engine_weights(sampler, engine.get("sampler_low"), 3.0, mask, old_logps, engine.get("sampler_logps"))
    terms = []
    for r, (lp, old) in enumerate(rows(mask, logps, old_logps)):
        terms.append(-weights[r] * torch.clamp(torch.exp(lp - old), max=cap).detach() * a[r] * lp)
    return average_of(terms, "tokens", None, num_tokens)


def gspo_token(*, logps, old_logps, advantage, mask, clip, clip_high):
    losses = []
    for lp, old, a in rows(mask, logps, old_logps.detach(), advantage.detach()):
        ratio = torch.exp((lp - old).mean()).detach() * torch.exp(lp) / torch.exp(lp).detach()
        losses.append(-torch.min(ratio * a, torch.clamp(ratio, 1 - clip, 1 + clip_high) * a).mean())
    return torch.stack(losses)


def sapo(*, logps, old_logps, mask, reward, groups, tau_pos=1.0, tau_neg=1.05, sampler="none", **engine):
    a = advantages("std", groups, reward)
    weights = engine_weights(sampler, engine.get("sampler_low"), 3.0, mask, old_logps, engine.get("sampler_logps"))
    losses = []
    for r, (lp, old) in enumerate(rows(mask, logps, old_logps.detach())):
        tau = tau_pos if a[r] > 0 else tau_neg
        losses.append((-4 / tau * torch.sigmoid(tau * (torch.exp(lp - old) - 1)) * a[r] * weights[r]).mean())
    return torch.stack(losses)


def vespo(
    *,
    logps,
    old_logps,
    mask,
    reward,
    groups,
    k_pos=2.0,
    rate_pos=3.0,
    k_neg=3.0,
    rate_neg=2.0,
    sampler="none",
    sampler_low=None,
    sampler_logps=None,
):
    a = advantages("std", groups, reward)
    engine = engine_weights(sampler, sampler_low, 3.0, mask, old_logps, sampler_logps)
    terms = []
    for r, (lp, old) in enumerate(rows(mask, logps, old_logps)):
        k, rate = (k_pos, rate_pos) if a[r] >= 0 else (k_neg, rate_neg)
        w = (torch.exp((lp - old).sum()) * torch.clamp(engine[r], min=1e-8).prod()).detach()
        terms.append(-(w**k) * torch.exp(rate * (1 - w)) * a[r] * lp)
    return average_of(terms, "tokens")
