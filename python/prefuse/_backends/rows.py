"""What is asked of the rows: which statistics, of which logits, under which transform; every argument checked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

STATISTICS = (
    "logp",
    "lse",
    "entropy",
    "log_sum_sq",
    "mean_logit",
    "top1",
    "topk_mass",
    "topk_entropy",
    "ref_logp",
    "ref_lse",
    "kl",
    "rkl",
)
"""Every statistic of a row, in the order of their bits in a set, which is that of the extension.

`ref_lse` is the reference's log-sum-exp, which the gradients of `kl` and `rkl` need."""

REFERENCE_STATISTICS = frozenset({"ref_logp", "ref_lse", "kl", "rkl"})
BACKWARD_NEEDS = {
    "logp": ("lse", "logp"),
    "lse": ("lse", "logp"),
    "mean_logit": ("lse", "logp"),
    "entropy": ("lse", "logp", "entropy"),
    "kl": ("lse", "logp", "ref_lse", "ref_logp", "kl"),
    "rkl": ("lse", "logp", "ref_lse", "ref_logp"),
}
"""Statistics with a gradient, and what of the forward pass that gradient reads; log-probabilities because the label's
logit less its log-probability has more digits than a log-sum-exp far from 0. That of `mean_logit` is a constant, but 0
in a row of nothing but −inf, which the log-sum-exp (whose own gradient reads both) tells."""

_BITS = {name: 1 << i for i, name in enumerate(STATISTICS)}


def bits_of(names: Iterable[str]) -> int:
    """The set of these statistics: bit i stands for `STATISTICS[i]`."""
    bits = 0
    for name in names:
        bits |= _BITS[name]
    return bits


def names_of(bits: int) -> tuple[str, ...]:
    """The statistics of a set, in the order of `STATISTICS`."""
    return tuple([name for name, bit in _BITS.items() if bits & bit])


def position(name: str, bits: int) -> int:
    """Where a statistic stands in the tables of a set that has it."""
    return (bits & (_BITS[name] - 1)).bit_count()


_READ_BY_GRADIENTS = tuple((_BITS[name], bits_of(needs)) for name, needs in BACKWARD_NEEDS.items())


def with_backward_needs(bits: int) -> int:
    """The set with whatever the gradients of its statistics read."""
    found = bits
    for bit, needs in _READ_BY_GRADIENTS:
        if bits & bit:
            found |= needs
    return found


class Rows(NamedTuple):
    """Checked rows: the tensors, then the transform and the statistics, a set of bits. `softcap` 0 is off.

    The fields are the operators' arguments: `operands`, since operators take whole vocabularies.

    The V logits of a row are those of the classes ``[first_class, first_class + V)`` out of `classes` (None: V, all of
    them). Labels are numbers of classes, of whichever block; a label of another block has log-probability −inf in this
    one. Statistics are those of the block; for the backward pass the caller puts those of the whole vocabulary in
    their place.
    """

    logits: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor | None
    reference: torch.Tensor | None
    temperatures: torch.Tensor | None
    temperature: float
    scale: float
    softcap: float
    ignore_index: int
    stats: int
    k: int
    first_class: int = 0
    classes: int | None = None

    @property
    def statistics(self) -> tuple[str, ...]:
        """The names in `stats`, in the order of the output's first dimension."""
        return names_of(self.stats)

    @property
    def vocabulary(self) -> int:
        """The number of classes that labels are numbers of."""
        return self.logits.shape[-1] if self.classes is None else self.classes

    @property
    def operands(self) -> tuple[Any, ...]:
        """The arguments of the operators: everything but the block."""
        return self[:-2]

    def arguments(self) -> tuple[Any, ...]:
        """What the extension takes, good for one call or several."""
        return (
            self.logits,
            self.labels,
            self.mask,
            self.reference,
            self.temperature if self.temperatures is None else self.temperatures,
            self.scale,
            self.softcap,
            self.ignore_index,
            self.first_class,
            self.vocabulary,
        )
