"""How OpenRLHF and verl make log-probabilities and entropies of hidden states, written out from what they do.

Each is a function of hidden states [R, T, H], weight [V, H] and labels [R, T], all of which count, that returns what
a loss of log-probabilities and entropies reads per token: `prefuse.bench.trainers` names them. `make test-openrlhf`
and `make test-verl` compare prefuse with the frameworks' own functions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from prefuse.integrations.verl import fused_linear_for_ppo
from prefuse.linear.functions import linear_token_stats

TEMPERATURE = 0.8
ENTROPY = 0.01
"""What the entropy weighs in the loss."""


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


def _row_logps(logits: Tensor, labels: Tensor) -> Tensor:
    return F.log_softmax(logits, -1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
