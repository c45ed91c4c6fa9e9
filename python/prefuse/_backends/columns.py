"""Columns of probabilities of strips of rows: found, gathered, added to a sum. On CUDA alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

import prefuse._prefuse as _prefuse
from prefuse._backends.nvrtc import prepare


class Strips(NamedTuple):
    """Rows of logits [N, V] in strips of `strip_rows`, of which the last may have fewer.

    Attributes:
        logits: [N, V], rows of numbers that lie one behind the other.
        factors: [N], of the dtype of statistics: scale/temperature times log2(e).
        lse: [N], of the dtype of statistics, over the whole vocabulary.
        labels: [N] int64; what is no number of a column is no label.
        strip_rows: rows of a strip.
    """

    logits: Tensor
    factors: Tensor
    lse: Tensor
    labels: Tensor
    strip_rows: int

    @property
    def number(self) -> int:
        """How many strips there are."""
        return -(-self.logits.shape[0] // self.strip_rows)


class Gathered(NamedTuple):
    """What `gather` reads and writes.

    Attributes:
        columns: [L] int64, those of each strip, filled up with -1.
        starts: [strips + 1] int64, where each strip's begin.
        values: [strip_rows·L], a matrix [strip_rows, columns] for each strip: the probabilities, 0 of labels.
        sums: [parts, N], of the dtype of statistics: what each row has in each part of its strip's columns.
    """

    columns: Tensor
    starts: Tensor
    values: Tensor
    sums: Tensor


def find(strips: Strips, eps: float, active: Tensor, tails: Tensor) -> None:
    """Write into `active`, [strips, V] bool, in which columns a row has a probability of at least `eps`, and into
    `tails`, [strips, V] of the logits' dtype, the sums over rows in the others, over `eps`. Labels count for nothing.
    """
    prepare()
    _prefuse.cuda_columns_find(strips, eps, (active, tails), *_queue(active))


def parts(longest: int) -> int:
    """Parts of a strip's columns that have sums of their own, where the longest list is so long."""
    return _prefuse.cuda_columns_parts(longest)


def gather(strips: Strips, gathered: Gathered) -> None:
    """Write the probabilities in the columns, and their sums."""
    prepare()
    _prefuse.cuda_columns_gather(strips, gathered, *_queue(gathered.values))


def add(total: Tensor, product: Tensor, columns: Tensor) -> None:
    """Add product[i] to total[columns[i]], where that is not negative; no two columns are equal."""
    prepare()
    _prefuse.cuda_columns_add((total, product, columns), *_queue(total))


def _queue(tensor: Tensor) -> tuple[int, int]:
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream
