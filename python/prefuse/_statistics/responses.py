"""Numbers per response from numbers per token."""

from __future__ import annotations

import torch
from torch import Tensor

from prefuse._arguments.layout import scored_tokens
from prefuse._statistics import operators


def sum_responses(values: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Per-token `values` summed per response in float64: [R], dtype of `values`."""
    if cu_seqlens is None:
        count, length = values.shape
        cu_seqlens = torch.arange(count + 1, device=values.device) * length
    sums: Tensor = operators.segment_sum(values.reshape(-1), cu_seqlens)
    return sums


def count_scored(labels: Tensor, mask: Tensor | None, ignore_index: int, cu_seqlens: Tensor | None) -> Tensor:
    """How many tokens of each response are scored: [R], int64."""
    scored = scored_tokens(labels, mask, ignore_index)
    if cu_seqlens is None:
        return scored.sum(-1)
    return sum_responses(scored.to(torch.float64), cu_seqlens).to(torch.int64)
