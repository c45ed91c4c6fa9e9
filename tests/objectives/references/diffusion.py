"""The objectives of `prefuse.objectives.diffusion` once more, as plain float64 PyTorch."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid


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
