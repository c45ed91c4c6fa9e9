"""Columns of probabilities of strips of rows: found, gathered, multiplied, added to a sum. On CUDA alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

import prefuse._prefuse as _prefuse
from prefuse._backends.nvrtc import prepare

UNIT = 8
"""Numbers of 16 bits that kernels bring at once: the columns of a strip, and features, are a multiple."""


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


class ToInput(NamedTuple):
    """What `to_input` reads, and the sums that it writes.

    Attributes:
        values: the probabilities of each strip, [rows, columns], one strip behind the other, float16 or bfloat16.
        columns: [L] int64, those of all strips, filled up with -1.
        strips: [S, 5] int64: first row, behind the last; where its columns begin, behind them; where its values begin.
        weight: [V, H] of the values' dtype.
        factors: [M] float32: what each row's product is multiplied by.
        tails: [M] float32: what its strip's mean is multiplied by.
        means: [S, H] float32.
        out: [M, H] float32.
        strip_rows: the most rows of a strip.
    """

    values: Tensor
    columns: Tensor
    strips: Tensor
    weight: Tensor
    factors: Tensor
    tails: Tensor
    means: Tensor
    out: Tensor
    strip_rows: int


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


def multiplies(matrix: Tensor) -> bool:
    """Whether `to_input` and `to_weight` take such a matrix; PyTorch multiplies all others."""
    units = matrix.dtype in (torch.float16, torch.bfloat16) and matrix.shape[1] % UNIT == 0
    return units and has_tensor_cores(matrix.device)


def has_tensor_cores(device: torch.device) -> bool:
    """Whether it is a GPU with the instructions of these kernels."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def in_units(matrix: Tensor) -> Tensor:
    """The matrix, or a copy whose rows begin at 16-byte boundaries and lie one behind the other."""
    bytes_apart = matrix.stride(0) * matrix.element_size()
    fits = matrix.stride(1) == 1 and bytes_apart % 16 == 0 and matrix.data_ptr() % 16 == 0
    return matrix if fits else matrix.clone(memory_format=torch.contiguous_format)


def to_input(call: ToInput) -> None:
    """Write factors·(values @ weight[columns]) + tails·means, of each row's strip."""
    prepare()
    _prefuse.cuda_columns_to_input(call, *_queue(call.out))


def to_weight(total: Tensor, values: Tensor, columns: Tensor, inputs: Tensor) -> None:
    """Add (values.T @ inputs)[i] to total[columns[i]], where that is not negative; no two columns are equal.

    Shapes: total [V, H] float32, values [rows, columns] and inputs [rows, H] contiguous float16 or bfloat16.
    """
    prepare()
    _prefuse.cuda_columns_to_weight((total, values, columns, inputs), *_queue(total))


def _queue(tensor: Tensor) -> tuple[int, int]:
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream
