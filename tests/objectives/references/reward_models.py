"""The objectives of `prefuse.objectives.reward_models` once more, as plain float64 PyTorch."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from tests.objectives.references.shared import by_group


@by_group
def gpm(
    chosen_even,
    chosen_odd,
    rejected_even,
    rejected_odd,
    gate=None,
    gated=False,
    temperature=0.1,
    margin=0.0,
    target=None,
):
    block = torch.stack([chosen_even * rejected_odd, -chosen_odd * rejected_even]).sum(0)
    s = (block * gate).sum() if gated else block.sum()
    return -logsigmoid((s - margin) / temperature) if target is None else (s / temperature - target) ** 2 / 2


def bradley_terry(*, chosen_reward, rejected_reward, margin=0.0, center=0.0):
    loss = -logsigmoid(chosen_reward - rejected_reward - margin)
    return loss + center * (chosen_reward + rejected_reward) ** 2
