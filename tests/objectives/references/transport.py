"""The objectives of `prefuse.objectives.transport` once more, as plain float64 PyTorch."""

from __future__ import annotations

import torch

from tests.objectives.references.shared import pair_rewards, smoothed


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
