"""Responses in a batch: padded [B, T], or packed end to end with `cu_seqlens` [R + 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from prefuse._arguments.checks import INTEGERS, check_mask, check_tensor


def check_layout(labels: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> Tensor | None:
    """Checks that `labels` are [B, T], or [N] or [1, N] with `cu_seqlens`; returns `cu_seqlens` as int64."""
    check_tensor("labels", labels, INTEGERS, "an integer")
    if mask is not None:
        check_mask(mask, labels)
    shape = tuple(labels.shape)
    if cu_seqlens is None:
        if labels.ndim != 2:
            raise ValueError(f"labels: expected shape (B, T), or cu_seqlens with a packed batch, got {shape}")
        return None
    check_tensor("cu_seqlens", cu_seqlens, INTEGERS, "an integer", like=labels)
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(f"cu_seqlens: expected shape (R + 1,), got {tuple(cu_seqlens.shape)}")
    if labels.ndim not in (1, 2) or (labels.ndim == 2 and labels.shape[0] != 1):
        raise ValueError(f"labels: expected shape (N,) or (1, N) with cu_seqlens, got {shape}")
    return cu_seqlens.to(torch.int64)


def shift_left(
    labels: Tensor, mask: Tensor | None, ignore_index: int, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Labels (and mask) moved one position to the left, so that each meets the logits that predict it.

    The last position of every response is ignored. The logits stay whole: to slice them would make autograd build a
    second gradient of their size.
    """
    moved = labels.roll(-1, dims=-1)
    moved_mask = None if mask is None else mask.roll(-1, dims=-1)
    ends = torch.arange(1, labels.shape[-1] + 1, device=labels.device)
    if cu_seqlens is None:
        last = ends == labels.shape[-1]
    else:  # `isin` would do, but makes the host wait for a device
        cu_seqlens = cu_seqlens.contiguous()
        at = torch.searchsorted(cu_seqlens, ends).clamp(max=cu_seqlens.shape[0] - 1)
        last = cu_seqlens[at] == ends
    return torch.where(last, ignore_index, moved), moved_mask


def scored_tokens(labels: Tensor, mask: Tensor | None, ignore_index: int) -> Tensor:
    """Which tokens are scored: bool, the shape of `labels`."""
    scored = labels != ignore_index
    return scored if mask is None else scored & (mask != 0)
