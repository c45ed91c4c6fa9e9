"""How small tensors of the host get to a device, and whether anything may be waited for there."""

from __future__ import annotations

from typing import overload

import torch


@overload
def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor: ...
@overload
def sent(tensor: torch.Tensor | None, device: torch.device) -> torch.Tensor | None: ...
def sent(tensor: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    """The tensor on this device; the host does not wait for what is queued there, as it would without pinned memory."""
    if tensor is None or tensor.device == device:
        return tensor
    if device.type == "cuda" and tensor.device.type == "cpu" and not torch.compiler.is_compiling():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured, during which nothing can be looked at."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
