"""Statistics of float32 logits that are never written, of bfloat16 hidden states and weight: CPUs with tiles (AMX)."""

from __future__ import annotations

import torch
from torch import Tensor

import prefuse._prefuse as _prefuse
from prefuse._backends.arrays import capsule, optional_capsule
from prefuse._backends.rows import bits_of

AVAILABLE: bool = _prefuse.projects_rows()
"""Whether this machine has the instructions, and the system lets the process use them; without them it is slow."""

STATISTICS = ("logp", "lse")
"""What is computed."""


def forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    temperature: float | Tensor,
    scale: float,
    ignore_index: int,
    out: Tensor,
) -> None:
    """Write `STATISTICS` of the rows into `out` [2, N] float32, of ``hidden @ weight.T + bias`` in float32.

    Args:
        hidden: [N, H] bfloat16.
        weight: [V, H] bfloat16.
        bias: [V], 16 bits or float32.
        labels: [N] int64.
        temperature: a number or [N].
        scale: of the logits.
        ignore_index: the label of rows to leave out.
        out: written.
    """
    if not labels.numel():
        return
    rows, classes = hidden.shape[0], weight.shape[0]
    _prefuse.rows_projected(
        (
            ("f32", (rows, classes), (classes, 1)),
            capsule(labels.contiguous()),
            None,
            None,
            capsule(temperature) if isinstance(temperature, Tensor) else temperature,
            scale,
            0.0,
            ignore_index,
            0,
            classes,
        ),
        bits_of(STATISTICS),
        (capsule(_dense(hidden)), capsule(_dense(weight)), optional_capsule(None if bias is None else bias.float())),
        capsule(out),
        torch.get_num_threads(),
    )


def _dense(matrix: Tensor) -> Tensor:
    """A matrix whose rows' elements lie next to each other."""
    matrix = matrix.detach()
    return matrix if matrix.stride(-1) == 1 and not matrix.is_neg() else matrix.resolve_neg().contiguous()
