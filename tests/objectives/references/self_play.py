"""The objectives of `prefuse.objectives.self_play` once more, as plain float64 PyTorch."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid as log_sigmoid

from tests.objectives.references.shared import LENGTHS, PAIR, by_group, margin, members, reads, rewards, rows, zero

WIN_PROB = "chosen_win_prob rejected_win_prob"


@reads(f"{PAIR} {WIN_PROB}")
def dno(c, *, beta=0.1):
    z, zeta = beta * margin(c), torch.sigmoid(c.chosen_win_prob - c.rejected_win_prob)
    return -zeta * log_sigmoid(z) - (1 - zeta) * log_sigmoid(-z), rewards(c, beta)


@reads(f"{PAIR} chosen_previous_logps rejected_previous_logps")
def inpo(c, *, eta=0.005, tau=0.005 / 3):
    reference = tau / eta * (c.ref_chosen_logps - c.ref_rejected_logps)
    previous = (1 - tau / eta) * (c.chosen_previous_logps - c.rejected_previous_logps)
    return (c.chosen_logps - c.rejected_logps - reference - previous - 1 / (2 * eta)) ** 2, rewards(c, 1.0)


@reads(f"{PAIR} win_prob")
def online_ipo(c, *, beta=0.1):
    return (margin(c) - (c.win_prob - 0.5) / beta) ** 2, rewards(c, beta)


@reads(lambda average=False, **_: f"{PAIR} {WIN_PROB} {LENGTHS if average else ''}")
def egpo(c, *, beta=0.1, average=False):
    ratios = rewards(c, 1.0)
    lengths = (c.chosen_lengths, c.rejected_lengths) if average else (1.0, 1.0)
    gap = ratios["chosen"] / lengths[0] - ratios["rejected"] / lengths[1]
    return (gap - (c.chosen_win_prob - c.rejected_win_prob) / beta) ** 2, rewards(c, beta)


@reads(f"{PAIR} {WIN_PROB}")
def psi_po(c, *, beta=0.1, link="identity"):
    utility = {"identity": lambda p: p, "logit": torch.logit}[link]
    return (margin(c) - (utility(c.chosen_win_prob) - utility(c.rejected_win_prob)) / beta) ** 2, rewards(c, beta)


@reads(f"{PAIR} chosen_score rejected_score")
def copg(c, *, beta=0.06):
    ratios = rewards(c, 1.0)
    chosen = c.chosen_score - beta / 2 * ratios["chosen"]
    rejected = c.rejected_score - beta / 2 * ratios["rejected"]
    return -(chosen - rejected) * (ratios["chosen"] - ratios["rejected"]), rewards(c, beta)


@reads(f"{PAIR} chosen_score rejected_score")
def reward_distillation(c, *, beta=0.1):
    implicit = rewards(c, beta)
    return ((c.chosen_score - implicit["chosen"]) - (c.rejected_score - implicit["rejected"])) ** 2, implicit


@reads(f"{PAIR} calibration_logps ref_calibration_logps")
def vpo(c, *, beta=0.1, alpha=0.01, mode="online"):
    bonus = alpha * beta * (c.calibration_logps - c.ref_calibration_logps)
    loss = -log_sigmoid(beta * margin(c)) + (bonus if mode == "online" else -bonus)
    return loss, rewards(c, beta, "chosen", "rejected", "calibration")


@reads(f"{PAIR} chosen_from_policy")
def xpo(c, *, beta=0.1, alpha=1e-5, link="sigmoid"):
    loss = -log_sigmoid(beta * margin(c)) if link == "sigmoid" else (margin(c) - 1 / (2 * beta)) ** 2
    return loss + alpha * torch.where(c.chosen_from_policy, c.rejected_logps, c.chosen_logps), rewards(c, beta)


@reads(f"{PAIR} chosen_other_logps rejected_other_logps")
def ofs_dpo(c, *, beta=0.1, alpha=0.2, limit=10.0, module="fast"):
    fast, slow = c.chosen_logps - c.rejected_logps, c.chosen_other_logps - c.rejected_other_logps
    fast, slow = (fast, slow) if module == "fast" else (slow, fast)
    chase = -log_sigmoid(torch.clamp(beta * (fast - slow), -limit, limit))
    return -log_sigmoid(beta * margin(c)) + (alpha if module == "fast" else -alpha) * chase, rewards(c, beta)


SRPO_ROLES = ("chosen", "rejected", "improved", "worsened", "kept_chosen", "kept_rejected")


@reads(" ".join(f"{role}_logps ref_{role}_logps" for role in SRPO_ROLES))
def srpo(c, *, beta=0.1, alpha=0.5):
    w, l, wl, lw, ww, ll = rewards(c, 1.0, *SRPO_ROLES).values()  # noqa: E741
    joint = (1 - beta * (wl - lw + w - l)) ** 2
    improver = (0.5 - beta * (wl - ll)) ** 2 + (0.5 - beta * (ww - lw)) ** 2
    return (1 - alpha) * joint + alpha * improver, rewards(c, beta, *SRPO_ROLES)


@reads("logps ref_logps groups")
def hypo_kl(c, *, weight=1e-4):
    ratio = c.logps - c.ref_logps
    losses = []
    for group in c.groups.unique(sorted=True):
        h = ratio[c.groups == group]
        others = (h.sum() - h) / max(len(h) - 1, 1)
        losses.append(weight * ((h - others).detach() * c.logps[c.groups == group]).mean())
    return torch.stack(losses), ratio


@by_group
def copg_list(logps, ref_logps, score, beta=0.06):
    reward = score.detach() - beta * (logps - ref_logps)
    terms = [(reward[a] - reward[b]) ** 2 for a in range(len(reward)) for b in range(a)]
    return sum(terms, zero()) / max(len(reward) - 1, 1)


def online_ipo_list(*, groups, logps, ref_logps, win_prob, beta=0.1):
    """win_prob holds the square of each group after the other, groups by ascending id."""
    losses, start = [], 0
    for indices in members(groups):
        h, size = (logps - ref_logps)[indices], len(indices)
        square = win_prob[start : start + size**2].reshape(size, size)
        start += size**2
        terms = [(h[a] - h[b] - (square[a, b] - 0.5) / beta) ** 2 for a in range(size) for b in range(a + 1, size)]
        losses.append(sum(terms, zero()) / max(len(terms), 1))
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
