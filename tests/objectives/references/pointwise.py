"""The objectives of `prefuse.objectives.pointwise` once more, as plain float64 PyTorch."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid as log_sigmoid

from tests.objectives.references.shared import reads


def kto(logps, ref_logps, label, kl_logps, ref_kl_logps, *, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0):
    z = float((kl_logps - ref_kl_logps).detach().mean())
    return kto_with_kl(
        logps,
        ref_logps,
        label,
        beta=beta,
        kl=z,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
    )


def kto_with_kl(logps, ref_logps, label, *, beta=0.1, kl=0.0, desirable_weight=1.0, undesirable_weight=1.0):
    h, z = logps - ref_logps, max(0.0, kl)
    desirable = desirable_weight * (1 - torch.sigmoid(beta * (h - z)))
    undesirable = undesirable_weight * (1 - torch.sigmoid(beta * (z - h)))
    return torch.where(label.bool(), desirable, undesirable), beta * h


def apo_zero_unpaired(logps, ref_logps, label, *, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0):
    r = beta * (logps - ref_logps)
    desirable, undesirable = desirable_weight * (1 - torch.sigmoid(r)), undesirable_weight * torch.sigmoid(r)
    return torch.where(label.bool(), desirable, undesirable), r


def bco(logps, ref_logps, label, *, beta=0.1, delta=None):
    r = beta * (logps - ref_logps)
    shift = float(r.detach().mean()) if delta is None else delta
    return torch.where(label.bool(), -log_sigmoid(r - shift), -log_sigmoid(-(r - shift))), r


POINT = "logps ref_logps"


@reads(f"{POINT} win_prob")
def sppo_point(c, *, beta=1e-3):
    h = c.logps - c.ref_logps
    return (h - (c.win_prob - 0.5) / beta) ** 2 / 2, beta * h


@reads(f"{POINT} score")
def gpo(c, *, beta=1e-3):
    h = c.logps - c.ref_logps
    return (h - c.score / beta) ** 2, beta * h


@reads(f"{POINT} reward value")
def dro(c, *, tau=1.0):
    h = c.logps - c.ref_logps
    return (c.reward - c.value - tau * h) ** 2 / 2, h


@reads("logps lengths label")
def asft_unpaired(c, *, beta=1.0, weight=1.0, alpha=1.0):
    p = torch.exp(c.logps / c.lengths)
    odds = (p / (1 - p)) ** beta
    desirable = -alpha * torch.log(p) - weight * torch.log(odds / (1 + odds))
    return torch.where(c.label, desirable, weight * torch.log(1 + odds)), beta * c.logps / c.lengths


@reads(lambda average="sum": "logps score" if average == "sum" else "logps lengths score")
def crraft(c, *, average="sum"):
    if average == "sum":
        return -c.score * c.logps, c.logps
    loss = -(c.score * c.logps).sum() / c.lengths.sum()
    return loss.expand(len(c.logps)), c.logps / c.lengths


@reads(f"{POINT} label demonstration")
def ulma(c, *, beta=0.1):
    r = beta * (c.logps - c.ref_logps)
    judged = -torch.where(c.label, log_sigmoid(r), torch.log(1 - torch.sigmoid(r)))
    return torch.where(c.demonstration, -c.logps, judged), r


@reads(f"{POINT} flip label")
def nbpo(c, *, beta=1.0, form="surrogate_gradient"):
    r, g = beta * (c.logps - c.ref_logps), c.flip
    held = lambda x: torch.sigmoid(x).detach()  # noqa: E731
    voted = {
        "surrogate_gradient": held(-g) * log_sigmoid(r) + held(r) * log_sigmoid(-g),
        "likelihood": log_sigmoid(r) + log_sigmoid(-g),
        "surrogate": torch.sigmoid(r) * torch.sigmoid(-g),
    }
    unvoted_likelihood = 1 - torch.sigmoid(r) + torch.sigmoid(g) * torch.sigmoid(r)
    unvoted = {
        "surrogate_gradient": log_sigmoid(-r) + held(g) * log_sigmoid(r) + held(r) * log_sigmoid(g),
        "likelihood": torch.log(unvoted_likelihood),
        "surrogate": unvoted_likelihood,
    }
    return -torch.where(c.label, voted[form], unvoted[form]), r


@reads(POINT)
def npo(c, *, beta=0.1):
    ratio = torch.exp(c.logps - c.ref_logps)
    return 2 / beta * torch.log(1 + ratio**beta), beta * torch.log(ratio)


@reads("logps lengths")
def simnpo(c, *, beta=2.5, gamma=0.0):
    average = c.logps / c.lengths
    return 2 / beta * torch.log1p(torch.exp(beta * average + gamma)), beta * average
