"""Weights that other libraries cut up: FSDP2's DTensors, and DeepSpeed ZeRO-3's partitioned parameters."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

_LETS_IN = "prefuse lets gradients in"


def whole(parameter: Any) -> Any:
    """A DTensor that data-parallel training has cut up (FSDP2), gathered once; anything else as it is.

    The gradient is averaged over the mesh and cut up again, as FSDP2 does with the gradients of its modules.
    """
    if not hasattr(parameter, "full_tensor"):
        return parameter
    return _Whole.apply(parameter)


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


def gathered_head(
    weight: Any, bias: Any, lora: Any, reference_weight: Any, reference_bias: Any, **others: Any
) -> contextlib.AbstractContextManager[None]:
    """`gathered` for what a head's call was given, not checked yet: shapes show only where parameters are whole."""
    matrices = lora[:2] if isinstance(lora, tuple | list) else ()
    return gathered([weight, bias, *matrices, reference_weight, reference_bias])


@contextlib.contextmanager
def gathered(*groups: Sequence[Any]) -> Iterator[None]:
    """Holds parameters that DeepSpeed ZeRO-3 has partitioned whole while the block runs."""
    for tensor in itertools.chain(*groups):
        if is_zero3(tensor) and tensor.requires_grad and torch.is_grad_enabled():
            _let_gradients_in(tensor)
    parts = {id(tensor): tensor for group in groups for tensor in group if _is_partitioned(tensor)}
    if not parts:
        yield
        return
    with sys.modules["deepspeed"].zero.GatheredParameters(list(parts.values())):
        yield


def is_zero3(tensor: Any) -> bool:
    """Whether it is a parameter that ZeRO-3 partitions, whole at present or not."""
    return getattr(tensor, "ds_status", None) is not None


def _is_partitioned(tensor: Any) -> bool:
    """Whether it is a parameter of ZeRO-3's that is not whole at present (a tied one may be)."""
    status = getattr(tensor, "ds_status", None)
    return status is not None and getattr(status, "name", "") != "AVAILABLE" and "deepspeed" in sys.modules


def _let_gradients_in(parameter: Tensor) -> None:
    """Has autograd take a gradient of a parameter that is partitioned when the gradient arrives.

    It lays the gradient out as the parameter is, which then is empty; so for this moment the gradient stands in for it.
    """
    node: Any = parameter.view_as(parameter).grad_fn.next_functions[0][0]  # type: ignore[union-attr]
    if _LETS_IN in node.metadata:
        return
    node.metadata[_LETS_IN] = True
    partitioned: list[Tensor] = []

    def stand_in(gradients: tuple[Tensor | None, ...]) -> None:
        if gradients[0] is not None and _is_partitioned(parameter):
            partitioned.append(parameter.data)
            parameter.data = gradients[0]

    def step_back(*_: Any) -> None:
        if partitioned:
            parameter.data = partitioned.pop()

    node.register_prehook(stand_in)
    node.register_hook(step_back)
