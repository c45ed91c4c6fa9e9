"""What Liger's losses share: names of arguments, checks, and sums of logits that are never made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from prefuse._parallel.sharded_weights import gathered, whole
from prefuse.linear.functions import linear_sequence_logps
from prefuse.linear.gemm import sum_dtype

_LIGER_NAMES = {
    "hidden": "_input",
    "labels": "target",
    "reference": "ref_input",
    "reference_hidden": "ref_input",
    "reference_weight": "ref_weight",
    "reference_bias": "ref_bias",
}


@contextmanager
def liger_names(**names: str) -> Iterator[None]:
    """Has the engine's errors name Liger's arguments; `names` are those that one loss has beyond the common ones."""
    known = _LIGER_NAMES | names
    try:
        yield
    except (TypeError, ValueError) as error:
        name, colon, rest = str(error).partition(":")
        if name not in known:
            raise
        raise type(error)(known[name] + colon + rest) from None


def check_padded(_input: Tensor, target: Tensor, name: str = "target") -> None:
    """Refuses all but padded batches, [B, T, H] and [B, T]."""
    for argument, value, dimensions in (("_input", _input, "[B, T, H]"), (name, target, "[B, T]")):
        if not isinstance(value, Tensor):
            raise TypeError(f"{argument}: expected a tensor {dimensions}, got {type(value).__name__}")
    if _input.ndim != 3:
        raise ValueError(f"_input: expected shape [B, T, H], got {tuple(_input.shape)}")
    if target.shape != _input.shape[:2]:
        raise ValueError(f"{name}: expected shape {tuple(_input.shape[:2])} as _input has, got {tuple(target.shape)}")


def reference_of(
    use_ref_model: bool,
    ref_input: Tensor | None,
    ref_weight: Tensor | None,
    ref_bias: Tensor | None,
    _input: Tensor,
    target: Tensor,
    ignore_index: int,
) -> dict[str, Any]:
    """The reference's arguments as `preference_loss` takes them; none of them where no reference is to be used."""
    if not use_ref_model:
        return {}
    for name, value in (("ref_input", ref_input), ("ref_weight", ref_weight)):
        if value is None:
            raise ValueError(f"{name}: missing, and use_ref_model is True")
    if ref_input is not None and ref_weight is not None and is_wider(ref_input, _input):
        # Beside the policy's its logits would be rounded.
        with torch.no_grad(), liger_names(hidden="ref_input", weight="ref_weight", bias="ref_bias"):
            logps = linear_sequence_logps(ref_input, ref_weight, target, bias=ref_bias, ignore_index=ignore_index)
        return {"reference": logps.to(torch.promote_types(_input.dtype, torch.float32))}
    return {"reference": ref_input, "reference_weight": ref_weight, "reference_bias": ref_bias}


def is_wider(ref_input: Any, _input: Any) -> bool:
    """Whether the reference's dtype has values that the policy's has not; under autocast they have one."""
    if not isinstance(ref_input, Tensor) or not isinstance(_input, Tensor):
        return False
    one = torch.is_autocast_enabled(_input.device.type) and _input.dtype != torch.float64 != ref_input.dtype
    return not one and torch.promote_types(ref_input.dtype, _input.dtype) != _input.dtype


@torch.no_grad()
def logit_sums(_input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The sum of each response's logits over all its positions and classes, ignored ones too: [B].

    Σ over t and v of ``h_t·w_v + b_v`` is ``(Σ h_t)·(Σ w_v) + T Σ b_v``: no logits are needed.
    """
    with gathered([weight], [bias]):
        dtype = sum_dtype(_input.dtype)
        classes = whole(weight).sum(0, dtype=dtype)
        # A product and a sum rather than a matrix product, which autocast would round.
        sums: Tensor = (_input.sum(1, dtype=dtype) * classes).sum(-1)
        return sums if bias is None else sums + _input.shape[1] * whole(bias).sum(dtype=dtype)


def logit_means(_input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`logit_sums` over the number of positions and classes: [B]."""
    with gathered([weight], [bias]):
        return logit_sums(_input, weight, bias) / (_input.shape[1] * weight.shape[0])
