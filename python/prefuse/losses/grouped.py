"""The plan "grouped": groups of responses are scored while their logits are there, the gradient is made at once.

For each tile of whole groups: logits, statistics, the objective on all groups seen so far, the gradient over the
logits, and the two products. The objective is called on the whole batch every time; what it says of groups whose
statistics are not there yet is not looked at, and it says nothing of one group that depends on another, which the
planner has made sure of. The last call sees everything: its loss, rewards and metrics are the result. Of the batches of
other processes that are scored with this one (`data_group`) it is the only call that does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from prefuse._backends import storage
from prefuse.linear.call import Call
from prefuse.linear.gemm import add_product, multiply, sum_dtype
from prefuse.linear.operators import ONCE_DIFFERENTIABLE
from prefuse.linear.passes import Gradients, Wants
from prefuse.scoring.autograd import first_order_only
from prefuse.scoring.score import Score

FLOAT16_SCALE = 1024.0
"""What gradients are multiplied by before they become float16: its range ends where that of a mean's begins."""


class ScoreOf(Protocol):
    """Scores a batch."""

    def __call__(self, values: dict[str, Tensor], complete: bool = True) -> Score:
        """The score of statistics by name, and whether they are `complete`."""


def scored(
    call: Call,
    chunks: Sequence[tuple[int, int]],
    differentiated: Sequence[str],
    score_of: ScoreOf,
    shape: torch.Size,
    wants: Wants,
    columns: Sequence[Tensor],
) -> tuple[Score, dict[str, Tensor], Gradients, list[Tensor | None]]:
    """Score and statistics of a batch, the gradients of the head's tensors and of `columns`, for an upstream one of 1.

    Args:
        call: its rows ordered by group.
        chunks: first and last of the rows of each tile.
        differentiated: the statistics that the loss depends on differentiably.
        score_of: scores the statistics of all tokens, each of `shape`.
        shape: that of the labels.
        wants: whose gradients are wanted.
        columns: further tensors to differentiate by.
    """
    table = call.new_table(call.tokens).zero_()
    sums = _Sums(call, wants, many=len(chunks) > 1)
    score: Score | None = None
    of_columns: list[Tensor | None] = []
    buffer = call.buffer(max((last - first for first, last in chunks), default=1))
    for first, last in chunks:
        part = call.part(first, last)
        rows = call.tile(part, buffer)
        own = call.statistics(rows)
        table[:, part] = own
        scorer = functools.partial(score_of, complete=last == chunks[-1][1])
        score, grads, of_columns = _differentiate(call, table, differentiated, scorer, shape, columns)
        upstream = {name: grad[part] * sums.scale for name, grad in grads.items()}
        call.pull(rows, call.kernel_grads(upstream, last - first), own, rows.logits)
        sums.add(part, call.narrowed(rows.logits))
    if score is None:  # nothing is scored
        score, _, of_columns = _differentiate(call, table, differentiated, score_of, shape, columns)
    return score, _by_name(call, table, shape), sums.gradients(), of_columns


def _differentiate(
    call: Call,
    table: Tensor,
    differentiated: Sequence[str],
    score_of: Callable[[dict[str, Tensor]], Score],
    shape: torch.Size,
    columns: Sequence[Tensor],
) -> tuple[Score, dict[str, Tensor], list[Tensor | None]]:
    """Score what is known, and d(loss)/d(statistics) and d(loss)/d(columns)."""
    values = _by_name(call, table, shape)
    leaves = {name: values[name].detach().requires_grad_() for name in differentiated}
    with torch.enable_grad():
        score = score_of(values | leaves)
        found = torch.autograd.grad(score.loss, [*leaves.values(), *columns], allow_unused=True)
    grads = {
        name: grad.reshape(-1) for name, grad in zip(leaves, found[: len(leaves)], strict=True) if grad is not None
    }
    return score, grads, list(found[len(leaves) :])


def _by_name(call: Call, table: Tensor, shape: torch.Size) -> dict[str, Tensor]:
    return {name: value.reshape(shape) for name, value in zip(call.names, call.values(table).unbind(0), strict=True)}


class _Sums:
    """The head's gradients, as they come together from tile to tile."""

    def __init__(self, call: Call, wants: Wants, many: bool) -> None:
        self.call = call
        self.many = many
        self.scale = FLOAT16_SCALE if call.dtype == torch.float16 else 1.0
        self.inputs = [
            self._room(factor, self._dtype_of_input(factor), filled=call.index is None) if wanted else None
            for factor, wanted in zip(call.head.inputs, wants.inputs, strict=True)
        ]
        self.weights = [
            self._room(weight, sum_dtype(weight.dtype) if many else self._dtype(weight), filled=not many)
            if wanted
            else None
            for weight, wanted in zip(call.head.weights, wants.weights, strict=True)
        ]
        bias = call.head.bias
        self.bias = torch.zeros_like(bias, dtype=sum_dtype(bias.dtype)) if wants.bias and bias is not None else None

    def _dtype(self, tensor: Tensor) -> torch.dtype:
        """Gradients in float16 have to wait in float32 for the factor that brings them into range."""
        return torch.float32 if tensor.dtype == torch.float16 else tensor.dtype

    def _dtype_of_input(self, tensor: Tensor) -> torch.dtype:
        """Shares of a sum over processes are rounded once, when they are added up."""
        return self.call.reduced_dtype if self.call.shard.name else self._dtype(tensor)

    def _room(self, like: Tensor, dtype: torch.dtype, filled: bool) -> Tensor:
        """Room for a gradient: zeros, unless a tile is going to have `filled` it."""
        made = storage.empty(like.shape, dtype, like.device)
        return made if filled and self.call.count else made.zero_()

    def add(self, part: Tensor | slice, gradient: Tensor) -> None:
        """Add what a tile's d(loss)/d(logits) gives."""
        for total, weight in zip(self.inputs, self.call.head.weights, strict=True):
            if total is not None:
                product = total.new_empty((gradient.shape[0], weight.shape[1]))
                multiply(gradient, weight, product)
                total[part] = product
        for total, factor in zip(self.weights, self.call.head.rows(part), strict=True):
            if total is not None and self.many:
                add_product(total, gradient.t(), factor, exact=bool(self.call.shard.name))
            elif total is not None:
                multiply(gradient.t(), factor, total)
        if self.bias is not None:
            self.bias += gradient.sum(0, dtype=self.bias.dtype)

    def gradients(self) -> Gradients:
        """The sums, those of 16 bits rounded."""
        narrow = [None if total is None else total.to(self._dtype(weight)) for total, weight in self._weights()]
        bias = None if self.bias is None else self.bias.to(self._dtype(self.call.head.bias))  # type: ignore[arg-type]
        inputs = [None if total is None else self.call.shard.reduce(total) for total in self.inputs]
        return Gradients(inputs, narrow, bias)

    def _weights(self) -> Any:
        return zip(self.weights, self.call.head.weights, strict=True)


class Attached(torch.autograd.Function):
    """A loss whose gradients are known: backward hands them out, times the upstream gradient."""

    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, gradients: list[Tensor | None], scales: list[float], *tensors: Tensor
    ) -> Tensor:
        """The loss; `gradients` and what they were multiplied by belong to `tensors`."""
        ctx.save_for_backward(*gradients)
        ctx.scales, ctx.dtypes = scales, [tensor.dtype for tensor in tensors]
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        """Each gradient times the upstream one, in its tensor's dtype."""
        with torch.no_grad():
            plain = upstream.device.type == "cpu" and float(upstream) == 1.0
            gradients = [
                None if gradient is None else _times(gradient, upstream, scale, dtype, plain)
                for gradient, scale, dtype in zip(ctx.saved_tensors, ctx.scales, ctx.dtypes, strict=True)
            ]
        if torch.is_grad_enabled():
            gradients = first_order_only(gradients, ONCE_DIFFERENTIABLE)
        return None, None, None, *gradients


def _times(gradient: Tensor, upstream: Tensor, scale: float, dtype: torch.dtype, plain: bool) -> Tensor:
    if plain and scale == 1.0 and gradient.dtype == dtype:  # nobody writes into it while this node may need it again
        return gradient
    return torch.mul(gradient, upstream / scale, out=torch.empty_like(gradient, dtype=dtype))
