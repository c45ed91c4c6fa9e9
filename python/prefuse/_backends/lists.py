"""Lists in place of probabilities: made of rows of logits, multiplied with matrices. On the CPU alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

import prefuse._prefuse as _prefuse
from prefuse._backends.rows import Rows


class Sampling(NamedTuple):
    """From which probability on they are listed as they are, and what the hash is made of beside row and class."""

    eps: float
    seed: int
    step: int


class Lists(NamedTuple):
    """Probabilities of M rows as lists, times dz/dx of their logits: those that are listed, of all classes but labels.

    Attributes:
        lengths: [M] int64, entries of each row.
        classes: [L] int64, places in the rows, one row behind the other.
        values: [L], of the dtype of statistics.
        at_label: [2, M]: (1 - p)·dz/dx and p·dz/dx of the label.
    """

    lengths: Tensor
    classes: Tensor
    values: Tensor
    at_label: Tensor


def make(rows: Rows, table: Tensor, fresh: bool, numbers: Tensor, sampling: Sampling) -> Lists:
    """The lists of rows [M, V], whose `numbers` [M] go into the hash.

    With `fresh` their statistics `rows.stats` come first, into `table` [S, M]; else `table` has those of the whole
    vocabulary.
    """
    count = rows.labels.shape[0]
    at_label = table.new_empty((2, count))
    if not count:
        return Lists(numbers.new_empty(0), numbers.new_empty(0), table.new_empty(0), at_label)
    found = _prefuse.rows_lists(
        rows.arguments(),
        rows.stats,
        rows.k,
        (table, numbers, at_label),
        fresh,
        (sampling.eps, sampling.seed, sampling.step),
        torch.get_num_threads(),
    )
    return written(found, at_label)


def written(found: _prefuse.Lists, at_label: Tensor) -> Lists:
    """What has been found, in tensors."""
    count, entries = at_label.shape[1], len(found)
    lengths, classes = (torch.empty(length, dtype=torch.int64) for length in (count, entries))
    lists = Lists(lengths, classes, at_label.new_empty(entries), at_label)
    found.write(lists.lengths, lists.classes, lists.values)
    return lists


class Matrix(NamedTuple):
    """A matrix A [M, V]: ``rest``, [M], times the listed values, and ``at_label``, [M], at the labels.

    Attributes:
        offsets: [M + 1] int64, where each row's list begins and the last ends.
        labels: [M] int64; what is no number of a column has no entry.
        width: V.
    """

    offsets: Tensor
    classes: Tensor
    values: Tensor
    rest: Tensor
    at_label: Tensor
    labels: Tensor
    width: int

    def by_row(self, weight: Tensor, out: Tensor) -> None:
        """Out [M, H] = A @ weight [V, H]; `out` has the dtype of `weight` or that of the sums, float32 or float64."""
        if out.numel():
            _prefuse.lists_by_row(self, weight, out, torch.get_num_threads())

    def by_class(self, inputs: Tensor, out: Tensor, sums: Tensor | None, base: Tensor | None = None) -> None:
        """Out [V, H] = A.T @ inputs [M, H], and `sums` [V] those of A's columns.

        Every row of `out` has `base` [H], of the dtype of the sums, besides.
        """
        _prefuse.lists_by_class(self, inputs, base, out, sums, torch.get_num_threads())
