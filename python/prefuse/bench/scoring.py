"""DPO with what a trainer logs, by several hands: loss, gradient to the policy's log-probabilities, metrics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefuse.objectives import get

Columns = dict[str, Tensor]
POLICY = ("chosen_logps", "rejected_logps")
PREFUSE, EAGER, COMPILED = "prefuse", "eager", "torch.compile"
BETA = 0.1


def columns(pairs: int, device: torch.device | str) -> Columns:
    """Log-probabilities [pairs] as responses of some 50 tokens have them; the policy's require grad."""
    generator = torch.Generator().manual_seed(0)
    names = (*POLICY, "ref_chosen_logps", "ref_rejected_logps")
    drawn = {name: torch.empty(pairs).normal_(-60.0, 15.0, generator=generator).to(device) for name in names}
    return {name: value.requires_grad_(name in POLICY) for name, value in drawn.items()}


def ways(given: Columns) -> dict[str, Callable[[], list[Tensor]]]:
    """Each returns the loss and its gradient to `POLICY`; the metrics are computed and stay on the device."""
    compiled = torch.compile(formula)

    def fused() -> list[Tensor]:
        loss = get("dpo")(**given, beta=BETA).loss
        return [loss.detach(), *torch.autograd.grad(loss, [given[name] for name in POLICY])]

    def in_torch(function: Callable[..., tuple[Tensor, ...]]) -> list[Tensor]:
        loss, *_ = function(**given)
        return [loss.detach(), *torch.autograd.grad(loss, [given[name] for name in POLICY])]

    return {PREFUSE: fused, EAGER: lambda: in_torch(formula), COMPILED: lambda: in_torch(compiled)}


def formula(
    chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor
) -> tuple[Tensor, ...]:
    """DPO in PyTorch: the mean loss, then rewards, margin, accuracy and log-probabilities as batch means."""
    chosen, rejected = chosen_logps - ref_chosen_logps, rejected_logps - ref_rejected_logps
    loss = -logsigmoid(BETA * (chosen - rejected)).mean()
    with torch.no_grad():
        rewards = BETA * chosen, BETA * rejected
        margin = rewards[0] - rewards[1]
        accuracy = (margin > 0).float()
        logged = (*rewards, margin, accuracy, chosen_logps, rejected_logps)
        return loss, *(value.mean() for value in logged)
