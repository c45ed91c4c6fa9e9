"""Token log-probabilities by several hands: prefuse beside what else is in use, as functions of (logits, labels).

`logits` [N, V], `labels` [N] → [N] log-probabilities in nats.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from prefuse.functional import token_logps

Gather = Callable[[Tensor, Tensor], Tensor]

PREFUSE = "prefuse"
PREFUSE_INPLACE = "prefuse, in place"
LOG_SOFTMAX = "log_softmax + gather"
CROSS_ENTROPY = "cross_entropy"
SELECTIVE = "TRL selective_log_softmax"
COMPILED = "compiled log_softmax + gather"
OURS = (PREFUSE, PREFUSE_INPLACE)
BY_HAND = (PREFUSE, LOG_SOFTMAX, CROSS_ENTROPY)

_SPREAD = 3.0  # standard deviation of the logits: a softmax with a few likely tokens, as a trained model's is


def hand(name: str) -> Gather:
    """The function of that name. Raises ValueError for a name that is none of this module's."""
    if name == SELECTIVE:
        from trl.trainer.utils import selective_log_softmax

        gather: Gather = selective_log_softmax
        return gather
    if name == COMPILED:
        return torch.compile(log_softmax_gather)
    hands: dict[str, Gather] = {
        PREFUSE: token_logps,
        PREFUSE_INPLACE: functools.partial(token_logps, inplace=True),
        LOG_SOFTMAX: log_softmax_gather,
        CROSS_ENTROPY: cross_entropy,
    }
    if name not in hands:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join([*hands, SELECTIVE, COMPILED])}")
    return hands[name]


def available() -> list[str]:
    """Names of all hands whose library is installed, prefuse's own first."""
    optional = [SELECTIVE] if importlib.util.find_spec("trl") else []
    return [PREFUSE, PREFUSE_INPLACE, LOG_SOFTMAX, CROSS_ENTROPY, *optional, COMPILED]


def log_softmax_gather(logits: Tensor, labels: Tensor) -> Tensor:
    """The one-line program that everything else is measured against."""
    return logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """PyTorch's own loss, negated."""
    return -functional.cross_entropy(logits, labels, reduction="none")


def inputs(rows: int, vocabulary: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random logits [rows, vocabulary] and labels [rows], made without a temporary of the logits' size."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.empty(rows, vocabulary, dtype=dtype).normal_(0.0, _SPREAD, generator=generator)
    return logits, torch.randint(vocabulary, (rows,), generator=generator)


def forward(gather: Gather, logits: Tensor, labels: Tensor) -> None:
    """One forward pass without autograd."""
    with torch.no_grad():
        gather(logits, labels)


def forward_backward(gather: Gather, logits: Tensor, labels: Tensor, upstream: Tensor) -> None:
    """One forward and one backward pass; the gradient of the logits is made and dropped.

    The logits enter as a non-leaf, as a model's are, which also lets the backward pass write over them where the hand
    does that (the next run then reads other numbers, at the same cost).
    """
    leaf = logits.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(gather(_as_computed(leaf), labels), leaf, upstream)
    del gradient


def bound(name: str, logits: Tensor, labels: Tensor, backward: bool) -> Callable[[], None]:
    """A hand with its inputs, to be run as often as one likes.

    The hand that writes over its logits gets a copy, so that all others go on reading the same numbers.
    """
    gather = hand(name)
    if not backward:
        return functools.partial(forward, gather, logits, labels)
    own = logits.clone() if name == PREFUSE_INPLACE else logits
    return functools.partial(forward_backward, gather, own, labels, torch.ones(len(labels)))


def run(name: str, rows: int, vocabulary: int, dtype: str, backward: bool) -> Callable[[], None]:
    """A hand with inputs of its own: what `prefuse.bench.memory` measures in a fresh process."""
    return bound(name, *inputs(rows, vocabulary, getattr(torch, dtype)), backward)


class _AsComputed(torch.autograd.Function):
    """The identity, as a step of the graph."""

    @staticmethod
    def forward(ctx: object, logits: Tensor) -> Tensor:
        # An alias, not a view: what is computed belongs to nobody else, and only then may it be overwritten.
        return logits.new_empty(0).set_(
            logits.untyped_storage(), logits.storage_offset(), logits.shape, logits.stride()
        )

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


def _as_computed(leaf: Tensor) -> Tensor:
    computed: Tensor = _AsComputed.apply(leaf)
    return computed
