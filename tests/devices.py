"""One suite for every backend: the device under test, and references that are computed on the CPU all the same.

A module takes part with ``pytestmark = pytest.mark.usefixtures("device")``: the fixture makes each device in turn the
one that new tensors are made on, so the tests read as if there were one device only. Random numbers are drawn on the
CPU by functions wrapped in `on_the_cpu`, and so are the same on every device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

DEVICES = ("cpu", "cuda")


def under_test() -> torch.device:
    """The device that tensors are made on now."""
    return torch.empty(0).device


def here(value: Any) -> Any:
    """`value`, a tensor or tensors in dicts, lists and tuples, on the device under test."""
    device = under_test()
    return tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), value)


def on_the_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` computed on the CPU with copies of its tensors; what it returns is on the device under test."""

    @functools.wraps(function)
    def computed(*arguments: Any, **options: Any) -> Any:
        if under_test().type == "cpu":
            return function(*arguments, **options)
        arguments, options = tree_map_only(torch.Tensor, torch.Tensor.cpu, (arguments, options))
        with torch.device("cpu"):
            result = function(*arguments, **options)
        return here(result)

    return computed


@on_the_cpu
def uniform(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Numbers in [0, 1)."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@on_the_cpu
def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@on_the_cpu
def integers(high: int, *shape: int, seed: int) -> torch.Tensor:
    """Integers in [0, high)."""
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))
