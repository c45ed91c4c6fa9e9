"""The objectives of `prefuse.objectives.tokens` once more, as plain float64 PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.nn.functional import logsigmoid as log_sigmoid

from tests.objectives.references.shared import ROLES, TOKENS, k3, reads, rows, side, summed, token_rewards


@reads(f"{TOKENS} chosen_token_turn rejected_token_turn")
def dmpo(c, *, beta=0.1, discount=0.9):
    def weights(role):
        turn, mask = getattr(c, f"{role}_token_turn").detach(), getattr(c, f"{role}_mask")
        turns = (mask * turn).amax(1, keepdim=True) + 1
        return discount**turn * (1 - discount ** (turns - turn)) / (1 - discount**turns)

    chosen, rejected = (summed(c, role, *[weights(role)] * 2) for role in ROLES)
    return -log_sigmoid(beta * (chosen - rejected)), token_rewards(c, beta)


@reads(TOKENS)
def humanline_dpo(c, *, beta=0.1, low=-1.0, high=1.5, label_smoothing=0.0):
    total = {}
    for role in ROLES:
        ratio = getattr(c, f"{role}_token_logps") - getattr(c, f"ref_{role}_token_logps")
        total[role] = (getattr(c, f"{role}_mask") * torch.clip(ratio, low, high)).sum(1)
    margin = beta * (total["chosen"] - total["rejected"])
    smoothed = (1 - label_smoothing) * log_sigmoid(margin) + label_smoothing * log_sigmoid(-margin)
    return -smoothed, {role: beta * value for role, value in total.items()}


def humanline_kto(token_logps, ref_token_logps, mask, label, kl_logratio, **parameters):
    z = float(kl_logratio.detach().mean())
    return humanline_kto_with_kl(token_logps, ref_token_logps, mask, label, kl=z, **parameters)


def humanline_kto_with_kl(
    token_logps,
    ref_token_logps,
    mask,
    label,
    *,
    kl,
    beta=0.1,
    low=-1.0,
    high=1.5,
    desirable_weight=1.0,
    undesirable_weight=1.0,
):
    h = (mask * torch.clip(token_logps - ref_token_logps, low, high)).sum(1)
    desirable = desirable_weight * (1 - torch.sigmoid(beta * (h - max(0.0, kl))))
    undesirable = undesirable_weight * (1 - torch.sigmoid(beta * (max(0.0, kl) - h)))
    return torch.where(label.bool(), desirable, undesirable), beta * h


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
