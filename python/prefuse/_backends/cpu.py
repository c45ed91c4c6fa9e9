"""The CPU backend: hands tensors to the extension, which computes on as many threads as PyTorch may use."""

from __future__ import annotations

import torch

from prefuse import _prefuse
from prefuse._buffers import View, optional_view, view
from prefuse._rows import Rows


def rows_forward(rows: Rows, out: torch.Tensor) -> None:
    """Write the statistics named by `rows.stats` into `out` [S, *lead]."""
    _prefuse.rows_forward(
        view(rows.logits),
        view(rows.labels),
        optional_view(rows.mask),
        optional_view(rows.reference),
        _temperature(rows),
        rows.scale,
        rows.softcap,
        rows.ignore_index,
        rows.statistics,
        rows.k,
        _by_statistic(out),
        torch.get_num_threads(),
    )


def rows_backward(rows: Rows, grads: torch.Tensor, saved: torch.Tensor, gradient: torch.Tensor) -> None:
    """Write d(Σ grads·statistics)/dlogits into `gradient`, which may be the memory of `rows.logits`."""
    _prefuse.rows_backward(
        view(rows.logits),
        view(rows.labels),
        optional_view(rows.mask),
        optional_view(rows.reference),
        _temperature(rows),
        rows.scale,
        rows.softcap,
        rows.ignore_index,
        rows.statistics,
        _by_statistic(grads),
        _by_statistic(saved),
        view(gradient),
        torch.get_num_threads(),
    )


def segment_sum(values: torch.Tensor, offsets: torch.Tensor, out: torch.Tensor) -> None:
    """Write Σ values[offsets[r]:offsets[r+1]] into `out[r]`."""
    _prefuse.segment_sum(view(values), view(offsets), view(out), torch.get_num_threads())


def segment_expand(values: torch.Tensor, offsets: torch.Tensor, out: torch.Tensor) -> None:
    """Write values[r] into `out[offsets[r]:offsets[r+1]]`."""
    _prefuse.segment_expand(view(values), view(offsets), view(out), torch.get_num_threads())


def _temperature(rows: Rows) -> float | View:
    return rows.temperature if rows.temperatures is None else view(rows.temperatures)


def _by_statistic(stacked: torch.Tensor) -> View:
    """`stacked` [S, *lead], contiguous, as [S, N]."""
    statistics = stacked.shape[0]
    count = stacked.numel() // statistics
    address, dtype, _, _ = view(stacked)
    return address, dtype, (statistics, count), (count, 1)
