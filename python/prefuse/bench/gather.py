"""Token log-probabilities by several hands: prefuse beside what else is in use, as functions of (logits, labels).

`logits` [N, V], `labels` [N] → [N] log-probabilities in nats.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

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
COMPILED_LOSS = "compiled cross_entropy"
TRL_KERNEL = "TRL Triton kernel"
LIGER = "Liger cross_entropy"
QUACK = "QuACK cross_entropy"
FLASH = "flash-attn cross_entropy"
OURS = (PREFUSE, PREFUSE_INPLACE)
BY_HAND = (PREFUSE, LOG_SOFTMAX, CROSS_ENTROPY)

LIBRARIES: dict[str, tuple[str, str, Callable[[Any], Gather]]] = {
    TRL_KERNEL: (
        "trl.kernels.logprob_entropy",
        "selective_log_softmax_and_entropy",
        lambda function: lambda logits, labels: function(logits, labels)[0],
    ),
    LIGER: (
        "liger_kernel.transformers.functional",
        "liger_cross_entropy",
        lambda function: lambda logits, labels: -function(logits, labels, reduction="none"),
    ),
    QUACK: (
        "quack.cross_entropy",
        "cross_entropy",
        lambda function: lambda logits, labels: -function(logits, labels, reduction="none"),
    ),
    FLASH: (
        "flash_attn.ops.triton.cross_entropy",
        "cross_entropy_loss",
        lambda function: lambda logits, labels: -function(logits, labels)[0],
    ),
}
"""Kernels of other libraries, for CUDA tensors only: module, function, and how it becomes a `Gather`."""

OVERWRITES = (PREFUSE_INPLACE, LIGER)
"""Hands that write over their logits (Liger in its forward pass, which is where it makes the gradient)."""

_SPREAD = 3.0  # standard deviation of the logits: a softmax with a few likely tokens, as a trained model's is


def hand(name: str) -> Gather:
    """The function of that name.

    Raises:
        ValueError: a name that is none of this module's.
        ImportError: the library is not installed; what else its import may raise is its own.
    """
    if name == SELECTIVE:
        from trl.trainer.utils import selective_log_softmax

        gather: Gather = selective_log_softmax
        return gather
    if name == COMPILED:
        return torch.compile(log_softmax_gather)
    if name == COMPILED_LOSS:
        return torch.compile(cross_entropy)
    if name in LIBRARIES:
        module, function, adapt = LIBRARIES[name]
        return adapt(getattr(importlib.import_module(module), function))
    hands: dict[str, Gather] = {
        PREFUSE: token_logps,
        PREFUSE_INPLACE: functools.partial(token_logps, inplace=True),
        LOG_SOFTMAX: log_softmax_gather,
        CROSS_ENTROPY: cross_entropy,
    }
    if name not in hands:
        known = ", ".join([*hands, SELECTIVE, COMPILED, COMPILED_LOSS, *LIBRARIES])
        raise ValueError(f"name: got {name!r}, expected one of {known}")
    return hands[name]


def available() -> list[str]:
    """Names of all hands whose library is installed, prefuse's own first."""
    optional = [SELECTIVE] if importlib.util.find_spec("trl") else []
    return [PREFUSE, PREFUSE_INPLACE, LOG_SOFTMAX, CROSS_ENTROPY, *optional, COMPILED]


def against(names: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    """Ours, and of the others those whose names hold one of the words in `others`; all of them without such words."""
    return tuple(
        name
        for name in names
        if not others or name.startswith(PREFUSE) or any(word.lower() in name.lower() for word in others)
    )


def on_device() -> tuple[list[str], dict[str, str]]:
    """Names of all hands there are for CUDA tensors, prefuse's own first; and of those that are missing, with why."""
    found = [PREFUSE, PREFUSE_INPLACE, LOG_SOFTMAX, CROSS_ENTROPY, COMPILED, COMPILED_LOSS]
    absent = {}
    for name in LIBRARIES:
        try:
            hand(name)
        except Exception as error:  # a library that is there but broken raises whatever it likes
            absent[name] = f"{type(error).__name__}: {error}"
        else:
            found.append(name)
    return found, absent


def log_softmax_gather(logits: Tensor, labels: Tensor) -> Tensor:
    """The one-line program that everything else is measured against."""
    return logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """PyTorch's own loss, negated."""
    return -functional.cross_entropy(logits, labels, reduction="none")


def inputs(
    rows: int, vocabulary: int, dtype: torch.dtype, seed: int = 0, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Random logits [rows, vocabulary] and labels [rows], made without a temporary of the logits' size."""
    generator = torch.Generator(device).manual_seed(seed)
    logits = torch.empty(rows, vocabulary, dtype=dtype, device=device).normal_(0.0, _SPREAD, generator=generator)
    return logits, torch.randint(vocabulary, (rows,), generator=generator, device=device)


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


def before_backward(gather: Gather, logits: Tensor, labels: Tensor, upstream: Tensor) -> Callable[[], object]:
    """Runs the forward pass and returns the backward pass alone."""
    leaf = logits.detach().requires_grad_()
    logps = gather(_as_computed(leaf), labels)
    return lambda: torch.autograd.grad(logps, leaf, upstream)


def bound(name: str, logits: Tensor, labels: Tensor, backward: bool) -> Callable[[], None]:
    """A hand with its inputs, to be run as often as one likes.

    The hand that writes over its logits gets a copy, so that all others go on reading the same numbers.
    """
    gather = hand(name)
    if not backward:
        return functools.partial(forward, gather, logits, labels)
    own = logits.clone() if name in OVERWRITES else logits
    return functools.partial(forward_backward, gather, own, labels, torch.ones(len(labels), device=labels.device))


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
