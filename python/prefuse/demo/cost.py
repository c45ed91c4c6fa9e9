"""Time and peak extra memory of the fused log-probabilities, forward and backward, beside plain PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prefuse.bench import gather
from prefuse.bench.memory import peak_extra_bytes
from prefuse.bench.timing import interleaved

_DTYPE = "float32"
_ROUNDS = 7


@dataclass(frozen=True)
class Cost:
    """One hand on one shape: median seconds, and bytes above the inputs (None where the system cannot tell)."""

    hand: str
    rows: int
    vocabulary: int
    seconds: float
    peak_extra_bytes: int | None


def compare(shapes: list[tuple[int, int]]) -> list[Cost]:
    """Forward and backward of float32 logits of each shape (rows, vocabulary), all hands in the same rounds."""
    return [cost for rows, vocabulary in shapes for cost in _compare(rows, vocabulary)]


def _compare(rows: int, vocabulary: int) -> list[Cost]:
    logits, labels = gather.inputs(rows, vocabulary, getattr(torch, _DTYPE))
    runs = {name: gather.bound(name, logits, labels, backward=True) for name in gather.BY_HAND}
    timings = interleaved(runs, _ROUNDS)
    return [
        Cost(name, rows, vocabulary, timings[name].median, _memory(name, rows, vocabulary)) for name in gather.BY_HAND
    ]


def _memory(name: str, rows: int, vocabulary: int) -> int | None:
    arguments = {"name": name, "rows": rows, "vocabulary": vocabulary, "dtype": _DTYPE, "backward": True}
    return peak_extra_bytes("prefuse.bench.gather:run", **arguments)
