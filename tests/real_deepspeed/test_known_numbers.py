"""Losses and gradient norms of a head outside of the forward pass under ZeRO-3, written down from DeepSpeed alone.

There the head is PyTorch's product and cross entropy, with call and backward pass inside `GatheredParameters`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

import prefuse
from tests.real_deepspeed.training import started

KNOWN = {
    1: ([3.944578, 3.869462], [0.3992484, 0.3969379]),
    2: ([3.944578, 3.870481], [0.3953823, 0.3915851]),
}
"""By number of processes, of each step: the loss of the first process, and the norm of the head's gradient."""

OPTIONS: dict[str, dict[str, Any]] = {
    "partitioned": {"stage3_param_persistence_threshold": 0},
    "whole all the time": {"stage3_param_persistence_threshold": 10**6},
    "overlapping": {"stage3_param_persistence_threshold": 0, "overlap_comm": True},
    "gradients apart": {"stage3_param_persistence_threshold": 0, "contiguous_gradients": False},
    "checked": {"stage3_param_persistence_threshold": 0, "enable_sanity_checks": True},
    "offloaded": {"stage3_param_persistence_threshold": 0, "offload_param": {"device": "cpu"}},
}
"""Of ZeRO-3, none of which changes a number."""


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.layer = nn.Linear(8, 8)
        self.lm_head = nn.Linear(8, 50, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.tanh(self.layer(self.embed(tokens)))


def trained(by_prefuse: bool, options: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Losses of this process and norms of the gradient of the head, of two steps."""
    import deepspeed
    from deepspeed.utils import safe_get_full_grad

    torch.manual_seed(0)
    model = Model()
    zero = {"stage": 3, **options}
    engine: Any = started(3, model, torch.optim.Adam(model.parameters(), lr=1e-2), zero_optimization=zero)
    tokens = torch.arange(12).reshape(2, 6) + dist.get_rank()
    losses, norms = [], []
    for _ in range(2):
        hidden, weight = engine(tokens), engine.module.lm_head.weight
        if by_prefuse:
            loss = -prefuse.linear_token_logps(hidden, weight, tokens + 1).mean()
            engine.backward(loss)
        else:
            with deepspeed.zero.GatheredParameters([weight]):
                loss = F.cross_entropy(F.linear(hidden, weight).flatten(0, 1), (tokens + 1).flatten())
                engine.backward(loss)
        losses.append(loss.item())
        norms.append(safe_get_full_grad(weight).norm().item())
        engine.step()
    engine.destroy()
    return losses, norms


def compare(known: tuple[list[float], list[float]], by_prefuse: bool, options: dict[str, Any]) -> None:
    losses, norms = trained(by_prefuse, options)
    assert norms == pytest.approx(known[1], abs=1e-6)
    if dist.get_rank() == 0:
        assert losses == pytest.approx(known[0], abs=2e-6)


@pytest.mark.parametrize("options", OPTIONS)
def test_known_numbers(processes, options):
    processes.run(compare, KNOWN[processes.size], True, OPTIONS[options])


def test_the_numbers_are_those_of_deepspeed_alone(processes):
    processes.run(compare, KNOWN[processes.size], False, OPTIONS["partitioned"])
