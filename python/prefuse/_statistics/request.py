"""From the arguments of `token_stats` to what a backend is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from prefuse._arguments.checks import (
    FLOATS,
    check_device,
    check_k,
    check_scored,
    check_tensor,
    check_transform,
    rows_contiguous,
)
from prefuse._backends.rows import REFERENCE_STATISTICS, STATISTICS, Rows, bits_of


def check_rows(
    logits: torch.Tensor,
    labels: torch.Tensor,
    stats: str | Sequence[str],
    *,
    reference_logits: torch.Tensor | None,
    mask: torch.Tensor | None,
    ignore_index: int,
    temperature: float | torch.Tensor,
    softcap: float | None,
    scale: float,
    k: int,
    devices: Sequence[str],
) -> tuple[Rows, tuple[str, ...]]:
    """Checks everything that can be seen without reading the tensors: the rows, and the names of what was asked for.

    Raises `TypeError` for a wrong type or dtype and `ValueError` for a wrong shape, device, layout or range. Values
    inside the tensors (labels, per-token temperatures) are checked where they are read, by the backend.
    """
    check_tensor("logits", logits, FLOATS, "a float16, bfloat16, float32 or float64")
    check_device("logits", logits, devices)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits: expected shape (..., V) with V >= 1, got {tuple(logits.shape)}")
    mask = check_scored(labels, mask, logits, "logits")
    names = check_statistics(stats, reference_logits, "reference_logits")
    if reference_logits is not None:
        check_tensor("reference_logits", reference_logits, FLOATS, "a floating-point", like=logits)
        if reference_logits.shape != logits.shape:
            shapes = tuple(logits.shape), tuple(reference_logits.shape)
            raise ValueError(f"reference_logits: expected the shape of logits, {shapes[0]}, got {shapes[1]}")
        reference_logits = rows_contiguous(reference_logits.detach())
    rows = Rows(
        rows_contiguous(logits),
        labels.to(torch.int64),
        mask,
        reference_logits if REFERENCE_STATISTICS.intersection(names) else None,
        *check_transform(temperature, softcap, scale, ignore_index, logits),
        bits_of(names),
        check_k(k),
    )
    return rows, names


def check_statistics(stats: str | Sequence[str], reference: object, argument: str) -> tuple[str, ...]:
    """The names of the statistics, each once; `argument` is what the `reference` they may need is called."""
    if not isinstance(stats, Iterable):
        raise TypeError(f"stats: expected the name of a statistic, or several, got {type(stats).__name__}")
    names = (stats,) if isinstance(stats, str) else tuple(dict.fromkeys(stats))
    if not names:
        raise ValueError("stats: expected at least one statistic, got none")
    for name in names:
        if name not in STATISTICS:
            raise ValueError(f"stats: unknown statistic {name!r}; known are {', '.join(STATISTICS)}")
        if name in REFERENCE_STATISTICS and reference is None:
            raise ValueError(f"{argument}: missing, and the statistic {name!r} needs it")
    return names
