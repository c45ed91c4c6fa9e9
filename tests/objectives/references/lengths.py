"""The objectives of `prefuse.objectives.lengths` once more, as plain float64 PyTorch."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid as log_sigmoid

from tests.objectives.references.shared import LENGTHS, PAIR, TOKENS, margin, reads, rewards, summed, token_rewards


@reads(f"{PAIR} {LENGTHS}")
def r_dpo(c, *, beta=0.1, alpha=0.01):
    return -log_sigmoid(beta * margin(c) + alpha * (c.chosen_lengths - c.rejected_lengths)), rewards(c, beta)


@reads(TOKENS)
def ld_dpo(c, *, beta=0.1, alpha=0.5, scope="both"):
    shared = torch.minimum(c.chosen_mask.sum(1), c.rejected_mask.sum(1))
    inside = torch.arange(c.chosen_mask.shape[1]) < shared[:, None]
    weight = inside + alpha * (~inside).double()
    ref_weight = weight if scope == "both" else 1.0
    chosen, rejected = (summed(c, role, weight, ref_weight) for role in ("chosen", "rejected"))
    return -log_sigmoid(beta * (chosen - rejected)), token_rewards(c, beta)


SAMPLED = "chosen_token_sampled rejected_token_sampled"


@reads(lambda independent=False, **_: f"{TOKENS} {SAMPLED} {SAMPLED.replace('_s', '_ref_s') if independent else ''}")
def sampo(c, *, beta=0.1, independent=False):
    def kept(role):
        policy = getattr(c, f"{role}_token_sampled")
        return summed(c, role, policy, getattr(c, f"{role}_token_ref_sampled") if independent else policy)

    return -log_sigmoid(beta * (kept("chosen") - kept("rejected"))), token_rewards(c, beta)
