"""Where rows, segments and distances are computed: one module per device type, found by its name.

A backend is a module `prefuse._backends.<device type>` with the functions of `Backend`, named in `DEVICES`; nothing
else names devices. Beside them: `rows`, what they are asked; `arrays`, how tensors reach the extension;
`storage`, memory kept between steps; `nvrtc`, the compiler of the kernels.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Protocol, cast

import torch

from prefuse._backends.rows import Rows

DEVICES = ("cpu", "cuda")
"""The device types that there is a module for."""


class Backend(Protocol):
    """What a backend module provides. Outputs are allocated by the caller; all but gradients are contiguous."""

    def rows_forward(self, rows: Rows, out: torch.Tensor) -> None:
        """Write the statistics named by `rows.stats` into `out` [S, *lead]."""

    def rows_backward(self, rows: Rows, grads: torch.Tensor, saved: torch.Tensor, gradient: torch.Tensor) -> None:
        """Write d(Σ grads·statistics)/dlogits into `gradient`, which may be the memory of `rows.logits`."""

    def rows_both(self, rows: Rows, grads: torch.Tensor, out: torch.Tensor, gradient: torch.Tensor) -> None:
        """`rows_forward` into `out` [S, *lead] and `rows_backward` from it into `gradient`, with the logits read once.

        For `grads` [S, *lead] that are known beforehand. `rows.stats` must name what their gradients need.
        """

    def segment_sum(self, values: torch.Tensor, offsets: torch.Tensor, out: torch.Tensor) -> None:
        """Write Σ values[offsets[r]:offsets[r+1]] into `out[r]`."""

    def segment_expand(self, values: torch.Tensor, offsets: torch.Tensor, out: torch.Tensor) -> None:
        """Write values[r] into `out[offsets[r]:offsets[r+1]]`."""

    def distance_forward(self, first: torch.Tensor, second: torch.Tensor, out: torch.Tensor) -> None:
        """Write ‖first[b] - second[b]‖² into `out[b]`, for matrices of dense rows; float64 goes with float64 only."""

    def distance_backward(
        self, first: torch.Tensor, second: torch.Tensor, grads: torch.Tensor, gradient: torch.Tensor
    ) -> None:
        """Write 2·grads·(first - second) into `gradient`, which is contiguous and of the dtype of `first`."""


def backend(device: torch.device) -> Backend:
    """The module that computes on `device`."""
    return _module(device.type)


@cache
def _module(name: str) -> Backend:
    return cast(Backend, importlib.import_module(f"{__name__}.{name}"))
