"""A vocabulary in parts beside DeepSpeed's `vocab_parallel_linear_cross_entropy`: errors are not above its."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import prefuse
from tests.devices import integers, normal
from tests.distributed.processes import Processes

TOKENS, FEATURES, CLASSES = 256, 64, 1000


def part(whole: Tensor) -> Tensor:
    return whole.chunk(dist.get_world_size())[dist.get_rank()].clone()


def check(dtype: torch.dtype, seed: int, options: dict[str, Any]) -> None:
    os.environ.update(RANK=str(dist.get_rank()), LOCAL_RANK=str(dist.get_rank()), WORLD_SIZE=str(dist.get_world_size()))
    import deepspeed
    from deepspeed.sequence.linear_cross_entropy import vocab_parallel_linear_cross_entropy

    deepspeed.init_distributed("gloo")
    hidden, weight = normal(TOKENS, FEATURES, seed=seed).to(dtype), (0.4 * normal(CLASSES, FEATURES, seed=9)).to(dtype)
    labels, up = integers(CLASSES, TOKENS, seed=2), normal(TOKENS, seed=3)
    labels[::7] = -100
    scored = labels != -100
    exact = [each.double().requires_grad_() for each in (hidden, weight)]
    logp = (exact[0] @ exact[1].T).log_softmax(-1).gather(-1, labels.clamp(min=0)[:, None])[:, 0].where(scored, 0)
    right = [logp.detach(), *torch.autograd.grad((logp * up).sum(), exact)]
    right[2] = part(right[2])

    def errors(by_prefuse: bool) -> list[float]:
        own, rows = hidden.clone().requires_grad_(), part(weight).requires_grad_()
        group: Any = dist.group.WORLD
        if by_prefuse:
            found = prefuse.linear_token_logps(own, rows, labels, group=group, **options)
        else:
            found = -vocab_parallel_linear_cross_entropy(own, rows, labels, tp_group=group, reduction="none")
        gradients = torch.autograd.grad((found * up).sum(), (own, rows))
        pairs = zip((found, *gradients), right, strict=True)
        return [float((a.detach().double() - b).norm() / b.norm()) for a, b in pairs]

    ours, theirs = errors(True), errors(False)
    assert all(a <= 1.001 * b + 2e-7 for a, b in zip(ours, theirs, strict=True)), (ours, theirs)


@pytest.mark.parametrize("options", [{}, {"plan": "recompute"}, {"plan": "recompute", "workspace_bytes": 100_000}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", [0, 1])
def test_errors(processes: Processes, dtype: torch.dtype, seed: int, options: dict[str, Any]) -> None:
    processes.run(check, dtype, seed, options)
