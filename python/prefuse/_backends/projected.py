"""Statistics of float32 logits that are never written, of bfloat16 hidden states and weight: x86-64 CPUs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import prefuse._prefuse as _prefuse
from prefuse._backends.lists import Lists, Sampling, written
from prefuse._backends.rows import bits_of

AVAILABLE: bool = _prefuse.projects_rows()
"""Whether it is known to be fast on this machine."""

STATISTICS = ("logp", "lse")
"""What is computed."""


class Projected(NamedTuple):
    """Rows whose logits are ``hidden @ weight.T + bias`` in float32.

    Attributes:
        hidden: [N, H] bfloat16.
        weight: [V, H] bfloat16.
        bias: [V], 16 bits or float32.
        labels: [N] int64.
        temperature: a number or [N].
        scale: of the logits.
        ignore_index: the label of rows to leave out.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    labels: Tensor
    temperature: float | Tensor
    scale: float
    ignore_index: int

    def _arguments(self) -> tuple[tuple[Any, ...], int, tuple[Any, Any, Any]]:
        rows, classes = self.hidden.shape[0], self.weight.shape[0]
        bias = None if self.bias is None else self.bias.detach().float()
        return (
            (
                ("f32", (rows, classes), (classes, 1)),
                self.labels.contiguous(),
                None,
                None,
                self.temperature,
                self.scale,
                0.0,
                self.ignore_index,
                0,
                classes,
            ),
            bits_of(STATISTICS),
            (_dense(self.hidden), _dense(self.weight), bias),
        )

    def forward(self, out: Tensor) -> None:
        """Write `STATISTICS` of the rows into `out` [2, N] float32."""
        if self.labels.numel():
            _prefuse.rows_projected(*self._arguments(), out, torch.get_num_threads())

    def lists(self, table: Tensor, numbers: Tensor, sampling: Sampling) -> Lists:
        """As `prefuse._backends.lists.make`, with `STATISTICS` for `table`, of which none are there before."""
        at_label = table.new_empty((2, self.labels.shape[0]))
        if not self.labels.numel():
            return Lists(numbers.new_empty(0), numbers.new_empty(0), table.new_empty(0), at_label)
        found = _prefuse.projected_lists(
            *self._arguments(),
            (table, numbers, at_label),
            (sampling.eps, sampling.seed, sampling.step),
            torch.get_num_threads(),
        )
        return written(found, at_label)


def _dense(matrix: Tensor) -> Tensor:
    """A matrix whose rows' elements lie next to each other."""
    matrix = matrix.detach()
    return matrix if matrix.stride(-1) == 1 and not matrix.is_neg() else matrix.resolve_neg().contiguous()
