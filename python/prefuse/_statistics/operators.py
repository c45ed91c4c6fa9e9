"""The `torch.library` operators: what autograd, `torch.compile` and the dispatcher see of prefuse.

`prefuse::token_stats` returns all statistics stacked in one tensor [S, *lead]; `prefuse::token_stats_backward`
allocates the gradient, `prefuse::token_stats_backward_` writes it over the logits. `prefuse::segment_sum` and
`prefuse::segment_expand` are each other's transpose.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from prefuse._arguments.transforms import refuse_vmap
from prefuse._backends import backend, storage
from prefuse._backends.rows import Rows, names_of, with_backward_needs
from prefuse._statistics.schema import arguments_of

ONCE_DIFFERENTIABLE = (
    "prefuse.token_stats is differentiable once: its gradient has no derivative of its own; "
    "take second derivatives of the same statistics written in PyTorch (log_softmax and gather)"
)


_ROWS = arguments_of(Rows, len(Rows._fields) - 2)  # without the block of classes: operators take whole vocabularies
_BACKWARD = f"(Tensor grads, Tensor saved, {_ROWS})"


@torch.library.custom_op("prefuse::token_stats", mutates_args=(), schema=f"({_ROWS}, bool inplace) -> Tensor")
def token_stats(*arguments: Any) -> Tensor:
    """The set `stats` of statistics of every row, stacked: [S, *lead], float32 or (from float64) float64."""
    rows, inplace = Rows(*arguments[:-1]), arguments[-1]
    if inplace:
        check_owner(rows.logits)
    return forward(rows)


def forward(rows: Rows) -> Tensor:
    """What `prefuse::token_stats` returns."""
    out = _stacked(rows)
    backend(rows.logits.device).rows_forward(rows, out)
    return out


@token_stats.register_fake
def _(*arguments: Any) -> Tensor:
    return _stacked(Rows(*arguments[:-1]))


@torch.library.custom_op("prefuse::token_stats_backward", mutates_args=(), schema=f"{_BACKWARD} -> Tensor")
def token_stats_backward(grads: Tensor, saved: Tensor, *arguments: Any) -> Tensor:
    """d(Σ grads·statistics)/dlogits as a new contiguous tensor; `saved` is what `token_stats` returned for `stats`."""
    return backward(grads, saved, Rows(*arguments))


def backward(grads: Tensor, saved: Tensor, rows: Rows) -> Tensor:
    """What `prefuse::token_stats_backward` returns."""
    gradient = storage.empty(rows.logits.shape, rows.logits.dtype, rows.logits.device)
    backend(rows.logits.device).rows_backward(rows, grads.contiguous(), saved, gradient)
    return gradient


@token_stats_backward.register_fake
def _(grads: Tensor, saved: Tensor, logits: Tensor, *_: object) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


@torch.library.custom_op(
    "prefuse::token_stats_backward_",
    mutates_args=("logits",),
    schema=f"{_BACKWARD.replace('Tensor logits', 'Tensor(a2!) logits')} -> ()",
)
def token_stats_backward_(grads: Tensor, saved: Tensor, *arguments: Any) -> None:
    """As `token_stats_backward`, with the gradient written over `logits`."""
    rows = Rows(*arguments)
    backend(rows.logits.device).rows_backward(rows, grads.contiguous(), saved, rows.logits)


@token_stats_backward_.register_fake
def _(*_: object) -> None:
    return None


@torch.library.custom_op("prefuse::segment_sum", mutates_args=())
def segment_sum(values: Tensor, offsets: Tensor) -> Tensor:
    """Sums of `values` [N] over the segments `offsets[r]:offsets[r+1]`, accumulated in float64: [R], same dtype."""
    out = values.new_empty(offsets.shape[0] - 1)
    backend(values.device).segment_sum(values, offsets, out)
    return out


@segment_sum.register_fake
def _(values: Tensor, offsets: Tensor) -> Tensor:
    return values.new_empty(offsets.shape[0] - 1)


@torch.library.custom_op("prefuse::segment_expand", mutates_args=())
def segment_expand(values: Tensor, offsets: Tensor, length: int) -> Tensor:
    """`values` [R] repeated over the segments `offsets[r]:offsets[r+1]`: [length]."""
    out = values.new_empty(length)
    backend(values.device).segment_expand(values, offsets, out)
    return out


@segment_expand.register_fake
def _(values: Tensor, offsets: Tensor, length: int) -> Tensor:
    return values.new_empty(length)


def _stacked(rows: Rows) -> Tensor:
    dtype = torch.float64 if rows.logits.dtype == torch.float64 else torch.float32
    return rows.logits.new_empty((rows.stats.bit_count(), *rows.labels.shape), dtype=dtype)


def check_owner(logits: Tensor) -> None:
    """Refuses to overwrite what the user still sees. Checked as the operator runs, since compiled code does not
    distinguish leaves."""
    base = logits if logits._base is None else logits._base
    if base.is_leaf and base.requires_grad:
        raise ValueError(
            "inplace: logits are a leaf tensor (or a view of one), whose values the gradient would replace; "
            "expected the output of a model, or inplace=False"
        )


def _save_rows(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows, inplace = Rows(*inputs[:-1]), inputs[-1]
    missing = with_backward_needs(rows.stats) & ~rows.stats
    if missing:
        raise ValueError(
            f"stats: the gradient also needs {', '.join(names_of(missing))}; use prefuse.functional.token_stats"
        )
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*rows[:5], output)
    ctx.options, ctx.inplace = rows.operands[5:], inplace


def _token_stats_gradient(ctx: Any, grads: Tensor | None) -> tuple[Tensor | None, ...]:
    nothing = (None,) * 11
    if grads is None:
        return None, *nothing
    logits, *others, saved = ctx.saved_tensors
    return logits_gradient(grads, saved, (logits, *others, *ctx.options), ctx.inplace), *nothing


def logits_gradient(grads: Tensor, saved: Tensor, arguments: tuple[Any, ...], inplace: bool) -> Tensor:
    """d(Σ grads·statistics)/dlogits, for `inplace` in the memory of the logits; `arguments` are those of `Rows`."""
    if not inplace:
        gradient: Tensor = token_stats_backward(grads, saved, *arguments)
        return gradient
    # An alias outside the graph that shares the version counter: whoever else saved these logits will be told.
    logits, *others = arguments
    over: Tensor = logits.detach()
    token_stats_backward_(grads, saved, over, *others)
    return over


def _refuse_second_derivative(ctx: Any, *grads: Tensor | None) -> NoReturn:
    raise RuntimeError(ONCE_DIFFERENTIABLE)


def _save_offsets(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(inputs[1])
    ctx.length = inputs[0].shape[0]


def _segment_sum_gradient(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
    (offsets,) = ctx.saved_tensors
    return None if grad is None else segment_expand(grad.contiguous(), offsets, ctx.length), None


def _segment_expand_gradient(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None, None]:
    (offsets,) = ctx.saved_tensors
    return None if grad is None else segment_sum(grad.contiguous(), offsets), None, None


token_stats.register_autograd(_token_stats_gradient, setup_context=_save_rows)
token_stats_backward.register_autograd(_refuse_second_derivative)
segment_sum.register_autograd(_segment_sum_gradient, setup_context=_save_offsets)
segment_expand.register_autograd(_segment_expand_gradient, setup_context=_save_offsets)
for _operator in (token_stats, token_stats_backward, segment_sum, segment_expand):
    _operator.register_vmap(refuse_vmap)
