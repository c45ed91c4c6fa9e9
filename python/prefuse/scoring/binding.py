"""Where a call's tensors are, and how they get to where objectives run."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def common_device(arguments: Mapping[str, torch.Tensor]) -> torch.device:
    """Return the one device of the arguments; numbers may stay on the CPU.

    Raises:
        ValueError: they are on several, or on one that holds no data.
    """
    devices: dict[torch.device, str] = {}
    for name, array in arguments.items():
        if array.ndim or array.device.type != "cpu":
            devices.setdefault(array.device, name)
    if len(devices) > 1:
        where = ", ".join(f"{name} is on {device}" for device, name in devices.items())
        raise ValueError(f"{where}; give all columns on one device")
    device = next(iter(devices), torch.device("cpu"))
    if device.type == "meta":
        raise ValueError(f"{next(iter(devices.values()))}: a meta tensor holds no data to score")
    return device


def on_cpu(arguments: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the arguments on the CPU; autograd brings gradients back."""
    return {name: array.cpu() for name, array in arguments.items()}
