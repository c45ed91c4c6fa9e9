"""Statistics of eager calls: what the operators compute, past the dispatcher, which takes longer than a small batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prefuse._backends.rows import BACKWARD_NEEDS, Rows, position
from prefuse._statistics import operators

_PLAIN = (Tensor, torch.nn.Parameter)


def is_observed(rows: Rows) -> bool:
    """Whether anything has to see operators: a compiler, a mode, a transform, a tracer, the profiler, a subclass."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()
        or rows.logits.is_meta
        or any(tensor is not None and type(tensor) not in _PLAIN for tensor in rows[:5])
    )


def statistics(rows: Rows, asked: Sequence[str], inplace: bool) -> tuple[Tensor, ...]:
    """The statistics `asked`, each [*lead] and nobody else's memory.

    Args:
        rows: with what the gradient needs, where `rows.logits` require one.
        asked: names, all in `rows.stats`.
        inplace: let the backward pass write the gradient over the logits.
    """
    if not (rows.logits.requires_grad and torch.is_grad_enabled()):
        found = operators.forward(rows).unbind(0)
        return tuple([found[position(name, rows.stats)] for name in asked])
    if inplace:
        operators.check_owner(rows.logits)
    values: tuple[Tensor, ...] = _Statistics.apply(rows.logits, rows, asked, inplace)
    return values


class _Statistics(torch.autograd.Function):
    """One output for each statistic, so that autograd needs no stack of them, and no gradient of one."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, rows: Rows, asked: Sequence[str], inplace: bool) -> tuple[Tensor, ...]:
        saved = operators.forward(rows)
        places = [position(name, rows.stats) for name in asked]
        values = tuple([saved[place].clone() for place in places])
        ctx.mark_non_differentiable(*(v for v, name in zip(values, asked, strict=True) if name not in BACKWARD_NEEDS))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*rows[:5], saved)
        ctx.options, ctx.inplace, ctx.places = rows.operands[5:], inplace, places
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 3
        if all(grad is None for grad in grads):
            return None, *nothing
        logits, *others, saved = ctx.saved_tensors
        table = torch.zeros_like(saved)
        for place, grad in zip(ctx.places, grads, strict=True):
            if grad is not None:
                table[place] = grad
        rows = Rows(logits, *others, *ctx.options)
        if ctx.inplace or torch.is_grad_enabled() or is_observed(rows):
            return operators.logits_gradient(table, saved, rows.operands, ctx.inplace), *nothing
        return operators.backward(table, saved, rows), *nothing
