"""The fused head over a sampler's support: a tile's logits are made, cut down to the support, scored, and dropped.

The backward pass makes each tile of logits again, of the same rows and all classes, so by the same product: the same
bits, and so the same support. That is the plan "recompute" with whole rows; no other plan is made for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prefuse._parallel.sharded_weights import gathered
from prefuse._statistics.support import Support, spread
from prefuse.functional import token_stats
from prefuse.linear.gemm import add_product, multiply, project, sum_dtype
from prefuse.linear.operands import Operands

Z_BYTES = 48
"""Of a class of a tile, beside its logit: z, its gradient, and what sorting it takes."""


class Asked(NamedTuple):
    """What is asked of the tiles: names, with a gradient, k, the support, and how many rows a tile has.

    `factors` is the number of inputs, and of weights: two with an adapter.
    """

    factors: int

    names: tuple[str, ...]
    differentiated: tuple[str, ...]
    k: int
    support: Support
    rows: int
    temperature: float
    scale: float
    softcap: float


def check_alone(given: dict[str, Any]) -> None:
    """Refuses the options of the head that a support cannot go with.

    Args:
        given: by name, None (or 0) where they were not given.

    Raises:
        ValueError: names the first.
    """
    for name, value in given.items():
        if value and not (name == "plan" and value in ("forward", "recompute")):
            raise ValueError(f"{name}: cannot go with a support; leave out one of the two")


def supported(
    operands: Operands,
    index: Tensor | None,
    names: tuple[str, ...],
    differentiated: tuple[str, ...],
    k: int,
    support: Support,
    workspace_bytes: int,
) -> dict[str, Tensor]:
    """Statistics over the support by name, in the shape of the labels; 0 for rows that are not scored.

    Raises:
        ValueError: while nothing can be looked at (a CUDA graph, torch.compile).
    """
    inputs, weights, labels = operands.inputs, operands.weights, operands.labels
    if index is None:
        raise ValueError("support: rows that are scored have to be looked at; not under torch.compile or a CUDA graph")
    rows = max(1, workspace_bytes // (weights[0].shape[0] * (inputs[0].dtype.itemsize + Z_BYTES)))
    asked = Asked(len(inputs), names, differentiated, k, support, rows, *operands[7:10])
    temperatures = None if operands.temperatures is None else operands.temperatures.reshape(-1)[index]
    own = [factor.reshape(-1, factor.shape[-1])[index] for factor in inputs]
    stacked = _Tiles.apply(asked, labels.reshape(-1)[index], temperatures, operands.bias, *own, *weights)
    return {name: spread(value, index, labels.shape) for name, value in zip(names, stacked, strict=True)}


class _Tiles(torch.autograd.Function):
    """Statistics of rows, one [M] each, from the head's inputs [M, H_f] followed by its weights [V, H_f]."""

    @staticmethod
    def forward(
        ctx: Any, asked: Asked, labels: Tensor, temperatures: Tensor | None, bias: Tensor | None, *head: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(labels, temperatures, bias, *head)
        ctx.asked = asked
        ctx.set_materialize_grads(False)
        inputs, weights = head[: asked.factors], head[asked.factors :]
        parts = [
            _scored(_logits(inputs, weights, bias, part), part, labels, temperatures, asked)
            for part in _parts(labels, asked)
        ]
        dtype = torch.promote_types(inputs[0].dtype, torch.float32)
        made = tuple(
            torch.cat([part[name] for part in parts]) if parts else labels.new_zeros(0, dtype=dtype)
            for name in asked.names
        )
        constant = [value for name, value in zip(asked.names, made, strict=True) if name not in asked.differentiated]
        ctx.mark_non_differentiable(*constant)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        labels, temperatures, bias, *head = ctx.saved_tensors
        asked: Asked = ctx.asked
        upstream = {
            name: grad
            for name, grad in zip(asked.names, grads, strict=True)
            if grad is not None and name in asked.differentiated
        }
        with gathered(head, [bias]):
            inputs, weights = head[: asked.factors], head[asked.factors :]
            wants_bias, wants = ctx.needs_input_grad[3], ctx.needs_input_grad[4:]
            d_head = [
                torch.zeros_like(each, dtype=sum_dtype(each.dtype) if f >= asked.factors else each.dtype)
                if wanted
                else None
                for f, (each, wanted) in enumerate(zip(head, wants, strict=True))
            ]
            d_bias = None if bias is None or not wants_bias else torch.zeros_like(bias, dtype=sum_dtype(bias.dtype))
            d_inputs, d_weights = d_head[: asked.factors], d_head[asked.factors :]
            for part in _parts(labels, asked) if upstream else ():
                logits = _logits(inputs, weights, bias, part).requires_grad_()
                with torch.enable_grad():
                    found = _scored(logits, part, labels, temperatures, asked)
                outputs, of_rows = [found[name] for name in upstream], [grad[part] for grad in upstream.values()]
                (d_logits,) = torch.autograd.grad(outputs, logits, of_rows)
                for d_input, d_weight, factor, weight in zip(d_inputs, d_weights, inputs, weights, strict=True):
                    if d_input is not None:
                        multiply(d_logits, weight, d_input[part])
                    if d_weight is not None:
                        add_product(d_weight, d_logits.t(), factor[part])
                if d_bias is not None:
                    d_bias += d_logits.sum(0, dtype=d_bias.dtype)
            found_bias = None if d_bias is None or bias is None else d_bias.to(bias.dtype)
            narrow = [None if made is None else made.to(each.dtype) for made, each in zip(d_head, head, strict=True)]
        return None, None, None, found_bias, *narrow


def _parts(labels: Tensor, asked: Asked) -> list[slice]:
    return [slice(start, start + asked.rows) for start in range(0, labels.shape[0], asked.rows)]


def _logits(inputs: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor | None, part: slice) -> Tensor:
    own = [factor[part] for factor in inputs]
    logits = own[0].new_empty((own[0].shape[0], weights[0].shape[0]))
    project(own, weights, bias, logits)
    return logits


def _scored(
    logits: Tensor, part: slice, labels: Tensor, temperatures: Tensor | None, asked: Asked
) -> dict[str, Tensor]:
    return dict(
        token_stats(
            logits,
            labels[part],
            asked.names,
            temperature=asked.temperature if temperatures is None else temperatures[part],
            softcap=asked.softcap or None,
            scale=asked.scale,
            k=asked.k,
            ignore_index=-(2**63),  # all rows here are scored
            support=asked.support,
        )
    )
