"""The CUDA backend: queues our kernels on PyTorch's current stream, with PyTorch's memory, and never waits.

What cannot be looked at without waiting is not an error here: a label outside [0, classes), or a temperature that is no
positive number, makes its row NaN. With `PREFUSE_DEBUG=1` in the environment both are looked at, and are the same
`ValueError` as on the CPU.
"""

from __future__ import annotations

import os

import torch

import prefuse._prefuse as _prefuse
from prefuse._arguments.checks import check_values as refuse_values
from prefuse._backends.nvrtc import prepare
from prefuse._backends.rows import Rows


def rows_forward(rows: Rows, out: torch.Tensor) -> None:
    """Write the statistics named by `rows.stats` into `out` [S, *lead]."""
    prepare()
    if os.environ.get("PREFUSE_DEBUG") == "1":
        check_values(rows)
    device, stream = _queue(rows.logits)
    numbers = _prefuse.cuda_rows_workspace(rows.logits, rows.reference, rows.stats, device)
    workspace = out.new_empty(numbers)
    _prefuse.cuda_rows_forward(rows.arguments(), rows.stats, rows.k, out, workspace, device, stream)


def rows_backward(rows: Rows, grads: torch.Tensor, saved: torch.Tensor, gradient: torch.Tensor) -> None:
    """Write d(Σ grads·statistics)/dlogits into `gradient`, which may be the memory of `rows.logits`."""
    prepare()
    _prefuse.cuda_rows_backward(
        rows.arguments(),
        rows.stats,
        grads,
        saved,
        gradient,
        *_queue(rows.logits),
    )


def rows_both(rows: Rows, grads: torch.Tensor, out: torch.Tensor, gradient: torch.Tensor) -> None:
    """`rows_forward` into `out` and `rows_backward` from it into `gradient`, to the bit.

    The logits are read once where a row can be held in shared memory: from compute capability 9.0 on, up to 8 blocks of
    a cluster, rows of logits and gradient at 16-byte boundaries, no reference and no top-k statistics.
    """
    prepare()
    if os.environ.get("PREFUSE_DEBUG") == "1":
        check_values(rows)
    device, stream = _queue(rows.logits)
    numbers = _prefuse.cuda_rows_workspace(rows.logits, rows.reference, rows.stats, device)
    workspace = out.new_empty(numbers)
    tables = (grads, out, gradient)
    _prefuse.cuda_rows_both(rows.arguments(), rows.stats, rows.k, *tables, workspace, device, stream)


def segment_sum(values: torch.Tensor, offsets: torch.Tensor, out: torch.Tensor) -> None:
    """Write Σ values[offsets[r]:offsets[r+1]] into `out[r]`."""
    prepare()
    _prefuse.cuda_segment_sum(values, offsets, out, *_queue(values))


def segment_expand(values: torch.Tensor, offsets: torch.Tensor, out: torch.Tensor) -> None:
    """Write values[r] into `out[offsets[r]:offsets[r+1]]`."""
    prepare()
    _prefuse.cuda_segment_expand(values, offsets, out, *_queue(values))


def distance_forward(first: torch.Tensor, second: torch.Tensor, out: torch.Tensor) -> None:
    """Write ‖first[b] - second[b]‖² into `out[b]`."""
    prepare()
    samples = first, second
    workspace = out.new_empty(_prefuse.cuda_distance_workspace(*samples), dtype=torch.float64)
    _prefuse.cuda_distance_forward(*samples, out, workspace, *_queue(first))


def distance_backward(first: torch.Tensor, second: torch.Tensor, grads: torch.Tensor, gradient: torch.Tensor) -> None:
    """Write 2·grads·(first - second) into `gradient`."""
    prepare()
    _prefuse.cuda_distance_backward(first, second, grads, gradient, *_queue(first))


def check_values(rows: Rows) -> None:
    """Raises `ValueError` for the first label or temperature out of range in a live row; waits for the device."""
    classes = rows.vocabulary
    meaning = "the last dimension of logits" if classes == rows.logits.shape[-1] else "the number of classes"
    refuse_values(rows.labels, rows.mask, rows.temperatures, rows.ignore_index, classes, meaning)


def _queue(tensor: torch.Tensor) -> tuple[int, int]:
    """The device's number and the handle of its current stream, asked for at every call."""
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream
