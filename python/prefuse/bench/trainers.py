"""How training frameworks make log-probabilities of hidden states, written out from what they do, beside prefuse.

A path is one line of `PATHS`: the framework, what it does, and a function of hidden states [R, T, H], weight [V, H]
and labels [R, T] that returns what a loss reads, of the responses or of the tokens. The frameworks' own arithmetic is
written out by us after what their functions do, as they cannot be installed beside each other; `make test-
llamafactory`, `test-swift`, `test-openrlhf` and `test-verl` compare prefuse with these functions themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from prefuse.linear.functions import linear_token_stats
from prefuse.linear.operands import mean_row

from . import trainers_rl

Path = Callable[[Tensor, Tensor, Tensor], Tensor]


class Way(NamedTuple):
    """How log-probabilities are made.

    Attributes:
        framework: whose way it is.
        run: see the module.
        against: the way that prefuse's is compared with; None: none.
        shifts: whether it moves labels to the position that predicts them; the first of a row is not scored then.
    """

    framework: str
    run: Path
    against: str | None = None
    shifts: bool = False


def llamafactory(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Whole logits, their float32 copy, log_softmax of it, gather; sums of the responses, and the logged means."""
    logits = F.linear(hidden, weight).to(torch.float32)
    targets, scored = _shifted(labels)
    logps = logits[:, :-1].log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    logits.detach().mean()
    return (logps * scored).sum(-1)


def swift(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Whole logits; of 16 bits, log_softmax row by row of the batch; gather; their means over classes."""
    logits = F.linear(hidden, weight)
    targets, scored = _shifted(labels)
    rows = zip(logits[:, :-1], targets, strict=True)
    logps = torch.stack([F.log_softmax(row, -1).gather(-1, at.unsqueeze(-1)).squeeze(-1) for row, at in rows])
    logits.mean(-1)
    return logps * scored


def fused(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """prefuse's for both: tokens, and their mean logits by one product more."""
    moved = labels.roll(-1, 1)
    logps = linear_token_stats(hidden, weight, moved, "logp").logp
    with torch.no_grad():
        hidden.float() @ mean_row(weight)
    return logps


PATHS: dict[str, Way] = {
    "LLaMA-Factory 0.9.5": Way("LLaMA-Factory", llamafactory, shifts=True),
    "LLaMA-Factory with prefuse": Way("LLaMA-Factory", fused, "LLaMA-Factory 0.9.5", shifts=True),
    "ms-swift 4.6.0": Way("ms-swift", swift, shifts=True),
    "ms-swift with prefuse": Way("ms-swift", fused, "ms-swift 4.6.0", shifts=True),
    "OpenRLHF 0.11.2": Way("OpenRLHF", trainers_rl.openrlhf_logps),
    "OpenRLHF with prefuse": Way("OpenRLHF", trainers_rl.fused_logps, "OpenRLHF 0.11.2"),
    "OpenRLHF 0.11.2, entropy": Way("OpenRLHF", trainers_rl.openrlhf),
    "OpenRLHF with prefuse, entropy": Way("OpenRLHF", trainers_rl.fused, "OpenRLHF 0.11.2, entropy"),
    "verl 0.9.1": Way("verl", trainers_rl.verl_logps),
    "verl with prefuse": Way("verl", trainers_rl.fused_ppo_logps, "verl 0.9.1"),
    "verl 0.9.1, entropy": Way("verl", trainers_rl.verl),
    "verl with prefuse, entropy": Way("verl", trainers_rl.fused_ppo, "verl 0.9.1, entropy"),
}


Step = Callable[[], tuple[Tensor, Tensor, Tensor]]


def step(name: str, tokens: int, features: int, classes: int, dtype: str = "bfloat16") -> Step:
    """One forward and backward of a path, on the same random numbers each time.

    Args:
        name: of `PATHS`.
        tokens: N, in four rows.
        features: H.
        classes: V.
        dtype: of hidden states and weight.

    Returns:
        A function that returns the summed log-probability and its gradients by hidden states and weight.
    """
    generator = torch.Generator().manual_seed(0)
    kind = getattr(torch, dtype)
    hidden = torch.randn(4, tokens // 4, features, generator=generator).to(kind).requires_grad_()
    weight = (torch.randn(classes, features, generator=generator) / features**0.5).to(kind).requires_grad_()
    labels = torch.randint(classes, hidden.shape[:2], generator=generator)
    run = PATHS[name].run
    if PATHS[name].shifts:
        labels[:, 0] = -100

    def once() -> tuple[Tensor, Tensor, Tensor]:
        total = run(hidden, weight, labels).float().sum()
        of_hidden, of_weight = torch.autograd.grad(total, (hidden, weight))
        return total.detach(), of_hidden, of_weight

    return once


def _shifted(labels: Tensor) -> tuple[Tensor, Tensor]:
    """[R, T − 1]: which class each position predicts, 0 where none is scored, and where one is."""
    moved = labels[:, 1:]
    return moved.clamp(min=0), moved != -100
