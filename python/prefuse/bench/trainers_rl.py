"""How OpenRLHF and verl make log-probabilities and entropies of hidden states, written out from what they do.

A path is a line of `PATHS`: whose way it is, a function of hidden states [R, T, H], weight [V, H] and labels [R, T]
that returns what a loss of log-probabilities and entropies reads per token, and the path that prefuse's is set beside.
`make test-openrlhf` and `make test-verl` compare prefuse with the frameworks' own functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from prefuse.integrations.verl import fused_linear_for_ppo
from prefuse.linear.functions import linear_token_stats

Run = Callable[[Tensor, Tensor, Tensor], Tensor]

TEMPERATURE = 0.8
ENTROPY = 0.01
"""What the entropy weighs in the loss."""


class Path(NamedTuple):
    """Whose way, how, and beside which path it is set; None: it is no answer to another."""

    framework: str
    run: Run
    against: str | None = None


def openrlhf(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Whole logits, a float32 copy, divided by the temperature; softmax times logits; gather minus logsumexp."""
    logits = F.linear(hidden, weight).to(torch.float32)
    logits.div_(TEMPERATURE)
    entropy = logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)
    return logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1) + ENTROPY * entropy


def openrlhf_logps(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The same without entropy."""
    logits = F.linear(hidden, weight).to(torch.float32)
    logits.div_(TEMPERATURE)
    return logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def verl(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Whole logits, a copy divided by the temperature; softmax times logits; log_softmax row by row."""
    logits = F.linear(hidden, weight) / TEMPERATURE
    entropy = logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)
    rows = zip(logits, labels, strict=True)
    return torch.stack([_row_logps(row, own) for row, own in rows]) + ENTROPY * entropy


def verl_logps(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The same without entropy."""
    logits = F.linear(hidden, weight) / TEMPERATURE
    return torch.stack([_row_logps(row, own) for row, own in zip(logits, labels, strict=True)])


def fused(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """prefuse's in `Actor.forward`, with entropy."""
    made = linear_token_stats(hidden, weight, labels, ("logp", "entropy"), temperature=TEMPERATURE)
    return made.logp + ENTROPY * made.entropy


def fused_logps(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The same without entropy."""
    return linear_token_stats(hidden, weight, labels, "logp", temperature=TEMPERATURE).logp


def fused_ppo(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """prefuse's in the place of verl's `FusedLinearForPPO`."""
    logps, entropy = fused_linear_for_ppo(hidden, weight, labels, TEMPERATURE)
    return logps + ENTROPY * entropy


def fused_ppo_logps(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The same, whose entropy is made and not used."""
    return fused_linear_for_ppo(hidden, weight, labels, TEMPERATURE)[0]


PATHS: dict[str, Path] = {
    "OpenRLHF 0.11.2": Path("OpenRLHF", openrlhf_logps),
    "OpenRLHF with prefuse": Path("OpenRLHF", fused_logps, "OpenRLHF 0.11.2"),
    "OpenRLHF 0.11.2, entropy": Path("OpenRLHF", openrlhf),
    "OpenRLHF with prefuse, entropy": Path("OpenRLHF", fused, "OpenRLHF 0.11.2, entropy"),
    "verl 0.9.1": Path("verl", verl_logps),
    "verl with prefuse": Path("verl", fused_ppo_logps, "verl 0.9.1"),
    "verl 0.9.1, entropy": Path("verl", verl),
    "verl with prefuse, entropy": Path("verl", fused_ppo, "verl 0.9.1, entropy"),
}


def step(
    name: str, tokens: int, features: int, classes: int, dtype: str = "bfloat16"
) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    """One forward and backward pass of a path, on the same random numbers each time.

    Args:
        name: of `PATHS`.
        tokens: N, in four rows.
        features: H.
        classes: V.
        dtype: of hidden states and weight.

    Returns:
        A function that returns the sum over tokens and its gradients by hidden states and weight.
    """
    generator = torch.Generator().manual_seed(0)
    kind = getattr(torch, dtype)
    hidden = torch.randn(4, tokens // 4, features, generator=generator).to(kind).requires_grad_()
    weight = (torch.randn(classes, features, generator=generator) / features**0.5).to(kind).requires_grad_()
    labels = torch.randint(classes, hidden.shape[:2], generator=generator)
    run = PATHS[name].run

    def once() -> tuple[Tensor, Tensor, Tensor]:
        total = run(hidden, weight, labels).float().sum()
        by_hidden, by_weight = torch.autograd.grad(total, (hidden, weight))
        return total.detach(), by_hidden, by_weight

    return once


def _row_logps(logits: Tensor, labels: Tensor) -> Tensor:
    return F.log_softmax(logits, -1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
