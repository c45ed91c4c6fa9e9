"""Token objectives once more, as plain float64 PyTorch written from their definitions, response by response.

As in `reference_lists`. Padding may hold anything: every function picks the tokens a mask keeps before it computes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .reference_lists import group_mean, members, others_mean, zero


def rows(mask: Tensor, *columns: Tensor) -> list[tuple[Tensor, ...]]:
    """Of each response, the tokens that count."""
    return [tuple(column[r][mask[r].bool()] for column in columns) for r in range(len(mask))]


def clipped(log_ratio, advantage, low, high):
    ratio = torch.exp(log_ratio)
    return -torch.min(ratio * advantage, torch.clamp(ratio, 1 - low, 1 + high) * advantage)


def k3(log_ratio):
    return torch.exp(-log_ratio) + log_ratio - 1


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


def average_of(terms: list[Tensor], how, max_tokens=None, num_tokens=None) -> Tensor:
    if how == "tokens":
        joined = torch.cat(terms)
        return joined.sum() / (len(joined) if num_tokens is None else num_tokens)
    scale = {"response": None, "sum": 1.0, "constant": max_tokens}[how]
    return torch.stack([x.sum() / (len(x) if scale is None else scale) for x in terms])


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


# --- the group-relative family ------------------------------------------------------------------------------------


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


def nash_md(*, logps, ref_logps, preference, mask, beta=0.1, credit="following"):
    losses = []
    for r, (lp, ref) in enumerate(rows(mask, logps, ref_logps)):
        h = (lp - ref).detach()
        first = {"following": range(len(h)), "whole": [0] * len(h), "own": range(len(h))}[credit]
        last = range(1, len(h) + 1) if credit == "own" else [len(h)] * len(h)
        kept = torch.stack([h[a:b].sum() for a, b in zip(first, last, strict=True)])
        losses.append(beta * (kept * lp).sum() - (preference[r].detach() - 0.5) * lp.sum())
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


# --- PPO and its surroundings -------------------------------------------------------------------------------------


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


# --- inside the response ------------------------------------------------------------------------------------------


def side(c: dict[str, Tensor], role: str, *names: str) -> list[tuple[Tensor, ...]]:
    """Of each pair's response in this role: its token columns of these names, the log-ratio by name h."""
    mask = c[f"{role}_mask"]
    columns = {
        "h": lambda: c[f"{role}_token_logps"] - c[f"ref_{role}_token_logps"],
        **{name: lambda name=name: c[f"{role}_token_{name}"] for name in names if name != "h"},
    }
    return rows(mask, *(columns[name]() for name in names))


def sums(parts: list[Tensor]) -> Tensor:
    return torch.stack([part.sum() for part in parts])


def tdpo(c, beta, drift):
    h = {role: c[f"{role}_logps"] - c[f"ref_{role}_logps"] for role in ("chosen", "rejected")}
    return -logsigmoid(beta * (h["chosen"] - h["rejected"] - drift))


def kl_sum(c, role):
    return sums([kl for (kl,) in side(c, role, "rkl")])


def tdpo1(*, beta=0.1, **c):
    return tdpo(c, beta, kl_sum(c, "rejected") - kl_sum(c, "chosen"))


def tdpo2(*, beta=0.1, alpha=0.5, **c):
    return tdpo(c, beta, alpha * (kl_sum(c, "rejected") - kl_sum(c, "chosen").detach()))


def sparse_po(*, beta=0.1, reward_penalty=0.0, kl_penalty=0.0, **c):
    u, d, size_u, size_d = {}, {}, {}, {}
    for role in ("chosen", "rejected"):
        parts = side(c, role, "h", "rkl", "reward_weight", "kl_weight")
        u[role], d[role] = sums([m * h for h, _, m, _ in parts]), sums([m * kl for _, kl, _, m in parts])
        size_u[role], size_d[role] = sums([m for _, _, m, _ in parts]), sums([m for _, _, _, m in parts])
    loss = -logsigmoid(beta * (u["chosen"] - u["rejected"] - (d["rejected"] - d["chosen"])))
    return loss + reward_penalty * sum(size_u.values()) + kl_penalty * sum(size_d.values())


def mapo(*, beta=0.1, **c):
    totals = {}
    for role in ("chosen", "rejected"):
        found = []
        for h, kl, a in side(c, role, "h", "rkl", "activation"):
            span = a.max() - a.min()
            m = ((a - a.min()) / span if span > 0 else 0 * a).detach()
            found.append(torch.stack([(m * h).sum(), (m * kl).sum()]))
        totals[role] = torch.stack(found)
    u, d = totals["chosen"][:, 0] - totals["rejected"][:, 0], totals["rejected"][:, 1] - totals["chosen"][:, 1]
    return -logsigmoid(beta * (u - d))


def oreo_value(*, logps, ref_logps, value, reward, mask, beta=0.03):
    losses = []
    for r, (h, v) in enumerate(rows(mask, logps - ref_logps, value)):
        to_go = torch.stack([h[t:].sum() for t in range(len(h))]).detach()
        losses.append(((v - reward[r] + beta * to_go) ** 2).mean())
    return torch.stack(losses)


def oreo(
    *,
    logps,
    ref_logps,
    value,
    reward,
    mask,
    kl=None,
    step_start=None,
    beta=0.03,
    alpha=0.01,
    level="token",
    divergence="exact",
):
    losses = []
    for r, (h, v) in enumerate(rows(mask, logps - ref_logps, value.detach())):
        if level == "response":
            starts = [0]
        else:
            starts = [t for t in range(len(h)) if level == "token" or step_start[r][mask[r]][t]]
        ends = [*starts[1:], len(h)]
        residuals = [
            v[a] - reward[r] + beta * (h[a:b].sum() + h[b:].sum().detach()) for a, b in zip(starts, ends, strict=True)
        ]
        loss = (torch.stack(residuals) ** 2).mean()
        if divergence != "none":
            loss = loss + alpha * (kl[r][mask[r]] if divergence == "exact" else k3(h)).mean()
        losses.append(loss)
    return torch.stack(losses)


def d2po(*, beta=0.1, discount=0.98, **c):
    def discounted(role):
        return sums([discount ** torch.arange(len(h), dtype=h.dtype) * h for (h,) in side(c, role, "h")])

    return -logsigmoid(beta * (discounted("chosen") - discounted("rejected")))


def tis_dpo(*, beta=0.1, weights="contrast", scale=1.0, low=-0.5, high=1.5, shift=0.0, **c):
    def weighted(role, sign):
        if weights == "given":
            return sums([w.detach() * h for h, w in side(c, role, "h", "weight")])
        return sums(
            [torch.exp(sign * scale * x.clamp(low, high)).detach() * h for h, x in side(c, role, "h", "contrast")]
        )

    return -logsigmoid(beta * (weighted("chosen", 1.0) - weighted("rejected", -1.0)) - shift)
