"""Weights that other libraries cut up: FSDP2's DTensors, and DeepSpeed ZeRO-3's partitioned parameters."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


def whole(parameter: Tensor) -> Tensor:
    """A DTensor that data-parallel training has cut up (FSDP2), gathered once; any other tensor as it is.

    The gradient is averaged over the mesh and cut up again, as FSDP2 does with the gradients of its modules.
    """
    if not hasattr(parameter, "full_tensor"):
        return parameter
    gathered: Tensor = _Whole.apply(parameter)
    return gathered


class _Whole(torch.autograd.Function):
    """DTensor to tensor; back, the mean over the processes, each keeping its part."""

    @staticmethod
    def forward(ctx: Any, parameter: Any) -> Any:
        ctx.mesh, ctx.placements = parameter.device_mesh, parameter.placements
        return parameter.detach().full_tensor()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        from torch.distributed.tensor import DTensor, Partial

        parts = [Partial("sum")] * ctx.mesh.ndim
        spread = DTensor.from_local(gradient / ctx.mesh.size(), ctx.mesh, parts, run_check=False)
        return spread.redistribute(placements=ctx.placements)


@contextlib.contextmanager
def gathered(*groups: Sequence[Tensor | None]) -> Iterator[None]:
    """Holds parameters that DeepSpeed ZeRO-3 has partitioned whole while the block runs."""
    parts = {
        id(tensor): tensor for group in groups for tensor in group if tensor is not None and _is_partitioned(tensor)
    }
    if not parts:
        yield
        return
    with sys.modules["deepspeed"].zero.GatheredParameters(list(parts.values())):
        yield


def whole_shape(tensor: Tensor) -> torch.Size:
    """The shape of a tensor, where ZeRO-3 has partitioned it that of the whole."""
    size = getattr(tensor, "ds_shape", None)
    return tensor.shape if size is None else torch.Size(size)


def _is_partitioned(tensor: Tensor) -> bool:
    """Whether it is a parameter of ZeRO-3's that is not whole at present (a tied one may be)."""
    status = getattr(tensor, "ds_status", None)
    return status is not None and getattr(status, "name", "") != "AVAILABLE" and "deepspeed" in sys.modules
