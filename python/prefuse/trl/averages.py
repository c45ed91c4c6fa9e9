"""Means over the batches of all processes, gathered in one collective call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Means:
    """Weighted means by name.

    Args:
        device: where sums are kept.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, tuple[Tensor | float, Tensor | float]] = {}

    def add(self, name: str, total: Tensor | float, weight: Tensor | float) -> None:
        """Adds a sum and the weight, or count, of what was summed. Every process adds the same names."""
        self._sums[name] = (total, weight)

    def over_processes(self, accelerator: Any) -> dict[str, tuple[float, float]]:
        """Sum and weight by name, over all processes: a collective call, and the only one."""
        if not self._sums:
            return {}
        dtype = torch.float32 if self._device.type == "mps" else torch.float64
        own = torch.stack(
            [
                torch.as_tensor(value, dtype=dtype, device=self._device).detach()
                for sums in self._sums.values()
                for value in sums
            ]
        )
        totals = accelerator.reduce(own, reduction="sum").view(-1, 2).tolist()
        return {name: (total, weight) for name, (total, weight) in zip(self._sums, totals, strict=True)}
