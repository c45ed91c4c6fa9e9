"""Responses whose tokens lie on several processes, as under context or sequence parallelism."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from prefuse._arguments.checks import check_flag
from prefuse._parallel.data import all_gather, check_process_group

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def sum_over_group(values: Tensor, group: ProcessGroup, *, averaged: bool = True) -> Tensor:
    """The sum over a group's processes of what each has of the same responses; the same bits on all of them.

    For sums of log-probabilities where each process has some of a response's tokens: every process scores its own
    tokens with labels that were shifted before they were cut, sums them by response, and gives the sums here; responses
    of which it has no token are 0. All processes then compute the same loss from the results.

    Args:
        values: any shape, the same on all processes; float (sums) or integer (lengths, which take no gradient).
        group: the processes that share responses; a collective call.
        averaged: gradients of parameters are averaged over the processes of the group afterwards, as DDP, FSDP and
            DeepSpeed do: the gradient that reaches this process's part is then the number of processes times that of
            the result. False: they are summed, and it is that of the result.

    Returns:
        The sum, added up in float64 in order of rank and rounded once to the dtype of `values`.

    Raises:
        TypeError: no tensor of real numbers, or no process group.
    """
    if not isinstance(values, Tensor) or values.is_complex() or values.dtype == torch.bool:
        got = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"values: expected a tensor of real numbers, got {got}")
    if group is None:
        raise TypeError("group: expected a torch.distributed.ProcessGroup that this process belongs to, got None")
    check_process_group("group", group)
    factor = dist.get_world_size(group) if check_flag("averaged", averaged) else 1
    total: Tensor = _Sum.apply(values, group, factor)
    return total


class _Sum(torch.autograd.Function):
    """The sum of all processes' values; back, the result's gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any, factor: int) -> Tensor:
        ctx.factor = factor
        everyone = all_gather(values.contiguous(), group)
        if not values.is_floating_point():
            return everyone.sum(0, dtype=values.dtype)
        return everyone.double().sum(0).to(values.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient * ctx.factor, None, None
