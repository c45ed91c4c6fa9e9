"""The sampler's support: the classes of a row that top-k, top-p and min-p leave to be drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from prefuse._arguments.checks import check_integer

WITHOUT = frozenset({"mean_logit", "ref_logp", "ref_lse", "kl", "rkl"})
"""Statistics that have no meaning, or another, on a part of the classes."""


@dataclass(frozen=True)
class Support:
    """Which classes a sampler could have drawn: min-p first, then top-k, then top-p, as vLLM applies them.

    Statistics with a support are those of the probabilities renormalised over it. It is looked up at z, after scale,
    soft cap and temperature; a constant for the gradient. Classes that are equal to the smallest kept one are kept,
    too, and so is the label, wherever it stands.

    Attributes:
        top_k: how many of the largest are kept, at least 1; None: all.
        top_p: in (0, 1]: of the sorted rest the fewest whose probabilities add up to more than this, or to it; 1: all.
        min_p: in [0, 1]: classes less probable than this times the most probable are left out; 0: none.

    Raises:
        TypeError: one is no number.
        ValueError: one is out of its range.
    """

    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if self.top_k is not None and check_integer("top_k", self.top_k) < 1:
            raise ValueError(f"top_k: expected at least 1, or None for all, got {self.top_k}")
        for name, value in (("top_p", self.top_p), ("min_p", self.min_p)):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected 0 < p <= 1, got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p: expected 0 <= p <= 1, got {self.min_p}")

    @torch.no_grad()
    def left_out(self, z: Tensor, labels: Tensor) -> Tensor:
        """Bool [*lead, V]: the classes of z [*lead, V] outside of the support; a row with a NaN keeps all.

        Labels [*lead] that are no classes keep none.
        """
        cutoff = torch.full_like(z[..., :1], -math.inf)
        if self.min_p:
            cutoff = z.amax(-1, keepdim=True) + math.log(self.min_p)
        if self.top_k is not None and self.top_k < z.shape[-1]:
            cutoff = torch.maximum(cutoff, z.topk(self.top_k, -1).values[..., -1:])
        if self.top_p < 1:
            cutoff = torch.maximum(cutoff, self._smallest(z.masked_fill(z < cutoff, -math.inf)))
        out = z < cutoff
        known = (labels >= 0) & (labels < z.shape[-1])
        at = torch.where(known, labels, 0)[..., None]
        return out.scatter(-1, at, out.gather(-1, at) & ~known[..., None])

    def _smallest(self, z: Tensor) -> Tensor:
        """The smallest that top-p keeps of each row."""
        rising = z.sort(-1).values
        below = rising.double().softmax(-1).cumsum(-1)
        dropped = (below <= 1 - self.top_p).sum(-1, keepdim=True).clamp(max=z.shape[-1] - 1)
        return rising.gather(-1, dropped)


def check_support(support: object, names: tuple[str, ...]) -> Support | None:
    """`support` as it was given.

    Raises:
        TypeError: it is no `Support`.
        ValueError: a statistic among `names` that has no meaning on it.
    """
    if support is None:
        return None
    if not isinstance(support, Support):
        raise TypeError(f"support: expected a prefuse.Support, got {type(support).__name__}")
    if not WITHOUT.isdisjoint(names):
        wrong = ", ".join(name for name in names if name in WITHOUT)
        raise ValueError(f"stats: {wrong} cannot be had over a part of the classes; leave them out, or the support")
    return support


def transformed(
    logits: Tensor, labels: Tensor, support: Support, temperature: float | Tensor, softcap: float | None, scale: float
) -> Tensor:
    """z of logits [N, V] in float32 (float64 for float64), −inf outside of the support, where no gradient passes."""
    z = logits.to(torch.promote_types(logits.dtype, torch.float32)) * scale
    if softcap:
        z = softcap * torch.tanh(z / softcap)
    z = z / (temperature[:, None].to(z.dtype) if isinstance(temperature, Tensor) else temperature)
    return z.masked_fill(support.left_out(z, labels), -math.inf)


def spread(values: Tensor, places: Tensor, shape: torch.Size) -> Tensor:
    """Values [M] at their flat places in a tensor of this shape, 0 elsewhere."""
    return values.new_zeros(shape.numel()).index_put((places,), values).view(shape)
