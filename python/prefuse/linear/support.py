"""The fused head over a sampler's support: a tile's logits are made, cut down to the support, scored, and dropped.

The backward pass makes each tile of logits again, of the same rows and all classes, so by the same product: the same
bits, and so the same support. That is the plan "recompute" with whole rows; no other plan is made for it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prefuse._parallel.sharded_weights import is_zero3
from prefuse._statistics.support import Support, spread
from prefuse.functional import token_stats
from prefuse.linear.gemm import add_product, multiply, project, sum_dtype
from prefuse.linear.operands import Operands

Z_BYTES = 48
"""Of a class of a tile, beside its logit: z, its gradient, and what sorting it takes."""


class Asked(NamedTuple):
    """What is asked of the tiles: names, with a gradient, k, the support, and how many rows a tile has."""

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
        ValueError: a ZeRO-3 parameter, or while nothing can be looked at (a CUDA graph, torch.compile).
    """
    (hidden,), (weight,), labels = operands.inputs, operands.weights, operands.labels
    if index is None:
        raise ValueError("support: rows that are scored have to be looked at; not under torch.compile or a CUDA graph")
    if is_zero3(weight):
        raise ValueError(
            "support: a DeepSpeed ZeRO-3 weight would have to be gathered again; gather it around the call"
        )
    rows = max(1, workspace_bytes // (weight.shape[0] * (hidden.dtype.itemsize + Z_BYTES)))
    asked = Asked(names, differentiated, k, support, rows, *operands[7:10])
    temperatures = None if operands.temperatures is None else operands.temperatures.reshape(-1)[index]
    own = hidden.reshape(-1, hidden.shape[-1])[index]
    stacked = _Tiles.apply(own, weight, operands.bias, labels.reshape(-1)[index], temperatures, asked)
    return {name: spread(value, index, labels.shape) for name, value in zip(names, stacked, strict=True)}


class _Tiles(torch.autograd.Function):
    """Statistics of rows [M, H], one [M] each."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        temperatures: Tensor | None,
        asked: Asked,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(hidden, weight, bias, labels, temperatures)
        ctx.asked = asked
        ctx.set_materialize_grads(False)
        parts = [
            _scored(_logits(hidden[part], weight, bias), part, labels, temperatures, asked)
            for part in _parts(hidden, asked)
        ]
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        made = tuple(
            torch.cat([part[name] for part in parts]) if parts else hidden.new_zeros(0, dtype=dtype)
            for name in asked.names
        )
        constant = [value for name, value in zip(asked.names, made, strict=True) if name not in asked.differentiated]
        ctx.mark_non_differentiable(*constant)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        hidden, weight, bias, labels, temperatures = ctx.saved_tensors
        asked: Asked = ctx.asked
        wants = ctx.needs_input_grad
        upstream = {
            name: grad
            for name, grad in zip(asked.names, grads, strict=True)
            if grad is not None and name in asked.differentiated
        }
        d_hidden = torch.zeros_like(hidden) if wants[0] else None
        d_weight = torch.zeros_like(weight, dtype=sum_dtype(weight.dtype)) if wants[1] else None
        d_bias = None if bias is None or not wants[2] else torch.zeros_like(bias, dtype=sum_dtype(bias.dtype))
        for part in _parts(hidden, asked) if upstream else ():
            logits = _logits(hidden[part], weight, bias).requires_grad_()
            with torch.enable_grad():
                found = _scored(logits, part, labels, temperatures, asked)
            outputs, of_rows = [found[name] for name in upstream], [grad[part] for grad in upstream.values()]
            (d_logits,) = torch.autograd.grad(outputs, logits, of_rows)
            if d_hidden is not None:
                multiply(d_logits, weight, d_hidden[part])
            if d_weight is not None:
                add_product(d_weight, d_logits.t(), hidden[part])
            if d_bias is not None:
                d_bias += d_logits.sum(0, dtype=d_bias.dtype)
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None or bias is None else d_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def _parts(hidden: Tensor, asked: Asked) -> list[slice]:
    return [slice(start, start + asked.rows) for start in range(0, hidden.shape[0], asked.rows)]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = hidden.new_empty((hidden.shape[0], weight.shape[0]))
    project([hidden], [weight], bias, logits)
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
