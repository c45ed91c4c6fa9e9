"""The CPU backend: hands tensors to the extension, which computes on as many threads as PyTorch may use."""

from __future__ import annotations

import torch

import prefuse._prefuse as _prefuse
from prefuse._backends.rows import Rows


def rows_forward(rows: Rows, out: torch.Tensor) -> None:
    """Write the statistics named by `rows.stats` into `out` [S, *lead]."""
    if not rows.labels.numel():  # torch gives empty tensors any strides
        return
    _prefuse.rows_forward(
        rows.arguments(),
        rows.stats,
        rows.k,
        out,
        torch.get_num_threads(),
    )


def rows_backward(rows: Rows, grads: torch.Tensor, saved: torch.Tensor, gradient: torch.Tensor) -> None:
    """Write d(Σ grads·statistics)/dlogits into `gradient`, which may be the memory of `rows.logits`."""
    if not rows.labels.numel():
        return
    _prefuse.rows_backward(
        rows.arguments(),
        rows.stats,
        grads,
        saved,
        gradient,
        torch.get_num_threads(),
    )


def rows_both(rows: Rows, grads: torch.Tensor, out: torch.Tensor, gradient: torch.Tensor) -> None:
    """`rows_forward` into `out` and `rows_backward` from it into `gradient`, to the bit, in one visit to the logits."""
    if not rows.labels.numel():
        return
    _prefuse.rows_both(
        rows.arguments(),
        rows.stats,
        rows.k,
        grads,
        out,
        gradient,
        torch.get_num_threads(),
    )


def segment_sum(values: torch.Tensor, offsets: torch.Tensor, out: torch.Tensor) -> None:
    """Write Σ values[offsets[r]:offsets[r+1]] into `out[r]`."""
    try:
        _prefuse.segment_sum(values, offsets, out)
    except ValueError as error:
        raise ValueError(
            f"cu_seqlens: expected offsets that begin with 0, never decrease and end with {values.shape[0]}, "
            f"the number of tokens, got {offsets.tolist()}"
        ) from error


def segment_expand(values: torch.Tensor, offsets: torch.Tensor, out: torch.Tensor) -> None:
    """Write values[r] into `out[offsets[r]:offsets[r+1]]`."""
    _prefuse.segment_expand(values, offsets, out)


def distance_forward(first: torch.Tensor, second: torch.Tensor, out: torch.Tensor) -> None:
    """Write ‖first[b] - second[b]‖² into `out[b]`."""
    _prefuse.distance_forward(first, second, out, torch.get_num_threads())


def distance_backward(first: torch.Tensor, second: torch.Tensor, grads: torch.Tensor, gradient: torch.Tensor) -> None:
    """Write 2·grads·(first - second) into `gradient`."""
    _prefuse.distance_backward(first, second, grads, gradient, torch.get_num_threads())
