"""Every objective once more, as plain float64 PyTorch written from its definition.

Nothing here knows the package. Formulas are the textbook ones, two-sided and unstabilised, so that an error in the
stable form the package uses would show. A function takes the columns by the names a caller of the package uses,
then the hyper-parameters, and returns one loss per item and the rewards.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid as log_sigmoid

Rewards = dict[str, Tensor] | Tensor


def smoothed(z: Tensor, epsilon: float) -> Tensor:
    return -(1 - epsilon) * log_sigmoid(z) - epsilon * log_sigmoid(-z)


def relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.zeros_like(x))


def pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps) -> dict[str, Tensor]:
    chosen, rejected = chosen_logps - ref_chosen_logps, rejected_logps - ref_rejected_logps
    return {"chosen": beta * chosen, "rejected": beta * rejected}


def nll(mode: str, chosen_logps: Tensor, chosen_lengths: Tensor | None) -> Tensor:
    if mode == "token_mean":
        return (-chosen_logps.sum() / chosen_lengths.sum()).expand(len(chosen_logps))
    return -chosen_logps / chosen_lengths if mode == "response_mean" else -chosen_logps


# --- one margin -------------------------------------------------------------------------------------------------


def dpo(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1, label_smoothing=0.0):
    r = pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return smoothed(r["chosen"] - r["rejected"], label_smoothing), r


def cdpo(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1, label_smoothing=0.1):
    r = pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return smoothed(r["chosen"] - r["rejected"], label_smoothing), r


def robust(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1, label_smoothing=0.1):
    r = pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    z, e = r["chosen"] - r["rejected"], label_smoothing
    return (-(1 - e) * log_sigmoid(z) + e * log_sigmoid(-z)) / (1 - 2 * e), r


def dpo_norm(
    chosen_logps,
    rejected_logps,
    ref_chosen_logps,
    ref_rejected_logps,
    chosen_lengths,
    rejected_lengths,
    *,
    beta=0.1,
    label_smoothing=0.0,
):
    chosen = (chosen_logps - ref_chosen_logps) / chosen_lengths
    rejected = (rejected_logps - ref_rejected_logps) / rejected_lengths
    rewards = pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return smoothed(beta * (chosen - rejected), label_smoothing), rewards


def hinge(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1):
    r = pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return relu(1 - (r["chosen"] - r["rejected"])), r


def ipo_sum(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1):
    r = pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    margin = (chosen_logps - rejected_logps) - (ref_chosen_logps - ref_rejected_logps)
    return (margin - 1 / (2 * beta)) ** 2, r


def ipo_average(
    chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, chosen_lengths, rejected_lengths, *, beta=0.1
):
    r = pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    chosen = (chosen_logps - ref_chosen_logps) / chosen_lengths
    rejected = (rejected_logps - ref_rejected_logps) / rejected_lengths
    return (chosen - rejected - 1 / (2 * beta)) ** 2, r


def exo(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1, label_smoothing=1e-3):
    r = pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    q = torch.softmax(torch.stack([r["chosen"], r["rejected"]]), 0)
    label = torch.tensor([[1 - label_smoothing], [label_smoothing]], dtype=q.dtype)
    return (q * (q.log() - label.log())).sum(0), r


def discopop(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1, tau=0.05):
    r = pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    z = r["chosen"] - r["rejected"]
    m = torch.sigmoid(z / tau)
    return (1 - m) * -log_sigmoid(z) + m * torch.exp(-z), r


def bpo(
    chosen_logps,
    rejected_logps,
    blind_logps,
    ref_chosen_logps,
    ref_rejected_logps,
    ref_blind_logps,
    *,
    beta=0.1,
    combine="sum",
):
    human, r = dpo(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=beta)
    blind, s = dpo(chosen_logps, blind_logps, ref_chosen_logps, ref_blind_logps, beta=beta)
    return (human + blind) * (1 if combine == "sum" else 0.5), r | {"blind": s["rejected"]}


# --- anchored -----------------------------------------------------------------------------------------------------


def nca(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1):
    r = pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    w, l = r["chosen"], r["rejected"]  # noqa: E741
    return -log_sigmoid(w) - 0.5 * log_sigmoid(-w) - 0.5 * log_sigmoid(-l), r


def sppo_hard(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=1e-3):
    chosen = chosen_logps - ref_chosen_logps - 1 / (2 * beta)
    rejected = rejected_logps - ref_rejected_logps + 1 / (2 * beta)
    r = pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return chosen**2 + rejected**2, r


def apo_zero(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1):
    r = pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return 1 - torch.sigmoid(r["chosen"]) + torch.sigmoid(r["rejected"]), r


def apo_down(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1):
    r = pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return torch.sigmoid(r["chosen"]) + 1 - torch.sigmoid(r["chosen"] - r["rejected"]), r


# --- sorted batches -----------------------------------------------------------------------------------------------


def aot(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1, label_smoothing=0.0):
    policy = torch.sort(chosen_logps - rejected_logps, stable=True).values
    reference = torch.sort(ref_chosen_logps - ref_rejected_logps, stable=True).values
    r = pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return smoothed(beta * (policy - reference), label_smoothing), r


def aot_unpaired(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1, label_smoothing=0.0):
    chosen = torch.sort(chosen_logps - ref_chosen_logps, stable=True).values
    rejected = torch.sort(rejected_logps - ref_rejected_logps, stable=True).values
    r = pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return smoothed(beta * (chosen - rejected), label_smoothing), r


# --- without a reference ------------------------------------------------------------------------------------------


def sft(chosen_logps, chosen_lengths=None, *, nll_mode="token_mean"):
    return nll(nll_mode, chosen_logps, chosen_lengths), None


# --- points -------------------------------------------------------------------------------------------------------


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
