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
    return gathered([weight, bias, *matrices], constants=[reference_weight, reference_bias])


@contextlib.contextmanager
def gathered(*groups: Sequence[Any], constants: Sequence[Any] = ()) -> Iterator[None]:
    """Holds parameters that DeepSpeed ZeRO-3 has partitioned whole while the block runs.

    Gradients of graphs made in the block arrive after they are partitioned again, which `_let_gradients_in` allows.
    Parameters that are among `constants` alone require none for as long.
    """
    parameters = {id(tensor): tensor for tensor in itertools.chain(*groups, constants) if is_zero3(tensor)}
    if not parameters:
        yield
        return
    differentiated = {id(tensor) for tensor in itertools.chain(*groups)}
    partitioned = [tensor for tensor in parameters.values() if _is_partitioned(tensor)]
    with (
        _whole_for_now(partitioned),
        _without_gradient([tensor for key, tensor in parameters.items() if key not in differentiated]),
    ):
        # Parameters do not own their nodes: these must live until the block's graph, if it makes one, owns them.
        nodes = [_let_gradients_in(tensor) for tensor in parameters.values() if _wants_gradient(tensor)]
        yield
        del nodes


def _whole_for_now(partitioned: list[Any]) -> contextlib.AbstractContextManager[Any]:
    if not partitioned:
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[Any] = sys.modules["deepspeed"].zero.GatheredParameters(partitioned)
    return context


@contextlib.contextmanager
def _without_gradient(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Keeps parameters out of the block's graph: DeepSpeed fails where no gradient comes to one that is in it."""
    changed = [parameter.requires_grad_(False) for parameter in parameters if _wants_gradient(parameter)]
    try:
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(True)


def _wants_gradient(tensor: Tensor) -> bool:
    return tensor.requires_grad and tensor.is_leaf and torch.is_grad_enabled()


def is_zero3(tensor: Any) -> bool:
    """Whether it is a parameter that ZeRO-3 partitions, whole at present or not."""
    return getattr(tensor, "ds_status", None) is not None


def _is_partitioned(tensor: Any) -> bool:
    """Whether it is a parameter of ZeRO-3's that is not whole at present (a tied one may be)."""
    status = getattr(tensor, "ds_status", None)
    return status is not None and getattr(status, "name", "") != "AVAILABLE" and "deepspeed" in sys.modules


def _let_gradients_in(parameter: Tensor) -> Any:
    """The node that accumulates a whole parameter's gradient, able to when the parameter is partitioned by then.

    The node expects gradients of the shape that the parameter had when the node was made, so it must be made while the
    parameter is whole. It lays the gradient out as the parameter is, which is empty when partitioned; so for this
    moment the gradient stands in for it.

    Raises:
        RuntimeError: the parameter has a node already, made while it was partitioned.
    """
    node: Any = parameter.view_as(parameter).grad_fn.next_functions[0][0]  # type: ignore[union-attr]
    if _LETS_IN in node.metadata:
        return node
    expected = tuple(node._input_metadata[0].shape)
    if expected != tuple(parameter.shape):
        raise RuntimeError(
            f"a parameter of shape {list(parameter.shape)} that ZeRO-3 partitions is still in a graph that was made"
            f" while it was partitioned and expects gradients of shape {list(expected)}: gather it with"
            " deepspeed.zero.GatheredParameters wherever it is used, or let that graph go before this call"
        )
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
    return node
