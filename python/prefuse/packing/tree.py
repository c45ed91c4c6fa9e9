"""Which prefixes the rows of a batch have in common: a tree of segments, each computed once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

MINIMUM = 16
"""Shorter prefixes are computed once per row: each segment costs calls of the attention in every layer."""


@dataclass(frozen=True)
class PrefixTree:
    """Segments of tokens in depth-first order, laid end to end: a segment comes right before those that continue it.

    A path from a root to a segment is the beginning of one row, or of several. The usual batch of pairs has a root per
    prompt, and under it a segment per response.

    Attributes:
        lengths: tokens of each segment.
        parents: the index of the segment that each continues, −1 for roots.

    Raises:
        ValueError: an empty segment, or segments that are not in depth-first order.
    """

    lengths: tuple[int, ...]
    parents: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.lengths) != len(self.parents):
            raise ValueError(f"parents: expected one per length, {len(self.lengths)}, got {len(self.parents)}")
        path: list[int] = []
        for segment, (length, parent) in enumerate(zip(self.lengths, self.parents, strict=True)):
            if length < 1:
                raise ValueError(f"lengths: expected at least 1 token per segment, got {length} for segment {segment}")
            while path and path[-1] != parent:
                path.pop()
            if parent != -1 and not path:
                raise ValueError(
                    f"parents: expected depth-first order, got {parent} for segment {segment}, which does not follow it"
                )
            path.append(segment)

    @property
    def tokens(self) -> int:
        """Of all segments."""
        return self.starts[-1]

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each segment begins; the last number is where all end."""
        return tuple(itertools.accumulate(self.lengths, initial=0))

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """How many tokens of its path come before each segment."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent < 0 else depths[parent] + self.lengths[parent])
        return tuple(depths)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Where all that continues each segment ends."""
        ends = list(self.starts[1:])
        for segment in reversed(range(len(ends))):
            if (parent := self.parents[segment]) >= 0:
                ends[parent] = max(ends[parent], ends[segment])
        return tuple(ends)

    @property
    def longest_path(self) -> int:
        """Tokens of the longest path."""
        return max(depth + length for depth, length in zip(self.depths, self.lengths, strict=True))

    def path(self, segment: int) -> tuple[int, ...]:
        """The segments from the root to this one."""
        found = [segment]
        while (parent := self.parents[found[-1]]) >= 0:
            found.append(parent)
        return tuple(reversed(found))


def prefix_tree(rows: Sequence[NDArray[np.int64]], minimum: int = MINIMUM) -> tuple[PrefixTree, list[tuple[int, ...]]]:
    """The tree of the prefixes that rows have in common.

    Args:
        rows: one array of tokens [T] per row; a second dimension holds what must be equal, too.
        minimum: prefixes that are fewer tokens longer than what they continue are not shared.

    Returns:
        The tree, and of each row the segments that it is made of.
    """
    table, lengths = _table(rows)
    order = np.lexsort(table.T[::-1]) if table.shape[1] else np.arange(len(table))
    table, lengths = table[order], lengths[order]
    common = np.minimum(_common(table), np.minimum(lengths[1:], lengths[:-1]))
    made = _Builder(common, lengths, max(1, minimum))
    made.add(0, len(order), 0, -1)
    paths: list[tuple[int, ...]] = [()] * len(order)
    for place, row in enumerate(order):
        paths[row] = tuple(made.paths[place])
    return PrefixTree(tuple(made.lengths), tuple(made.parents)), paths


def _table(rows: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows as numbers [R, T] that are equal where all of a token is, filled up with −1; and their lengths."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    flat = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    if flat.ndim == 2:
        flat = _in_one_number(flat)
    table = np.full((len(rows), int(lengths.max(initial=0))), -1, dtype=np.int64)
    table[np.arange(table.shape[1]) < lengths[:, None]] = flat
    return table, lengths


def _in_one_number(columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers from 0 that are equal where all columns are."""
    found = np.zeros(len(columns), np.int64)
    for column in columns.T if len(columns) else ():
        found = found * (int(column.max()) - int(column.min()) + 1) + (column - column.min())
    return found


def _common(table: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many leading tokens neighbouring rows share [R − 1]."""
    equal = table[1:] == table[:-1]
    if not equal.size:
        return np.zeros(len(equal), np.int64)
    common: NDArray[np.int64] = np.where(equal.all(1), table.shape[1], np.argmin(equal, axis=1))
    return common


class _Builder:
    """Adds segments depth first, from sorted rows and what neighbours have in common."""

    def __init__(self, common: NDArray[np.int64], rows: NDArray[np.int64], minimum: int) -> None:
        self._common = common
        self._rows = rows
        self._minimum = minimum
        self.lengths: list[int] = []
        self.parents: list[int] = []
        self.paths: list[list[int]] = [[] for _ in rows]

    def add(self, first: int, last: int, depth: int, parent: int) -> None:
        """Segments for rows `first` up to `last`, of which `depth` tokens are in `parent` and above.

        Without recursion: a group of rows may share prefixes of as many lengths as there are rows.
        """
        waiting = [(first, last, depth, parent)]
        while waiting:
            first, last, depth, parent = waiting.pop()
            if last - first == 1:
                self._segment(first, last, int(self._rows[first]) - depth, parent)
                continue
            groups = self._groups(first, last, depth)
            if len(groups) > 1:
                waiting += [(start, end, depth, parent) for start, end in reversed(groups)]
                continue
            shared = int(self._common[first : last - 1].min())
            segment = self._segment(first, last, shared - depth, parent)
            groups = self._groups(first, last, shared)
            waiting += [(start, end, shared, segment) for start, end in reversed(groups)]

    def _groups(self, first: int, last: int, depth: int) -> list[tuple[int, int]]:
        """Neighbours that share enough tokens after `depth` to have a segment of their own."""
        apart = self._common[first : last - 1] < depth + self._minimum
        bounds = [first, *(int(place) + first + 1 for place in np.flatnonzero(apart)), last]
        return list(itertools.pairwise(bounds))

    def _segment(self, first: int, last: int, length: int, parent: int) -> int:
        if length == 0:
            return parent
        self.lengths.append(length)
        self.parents.append(parent)
        for row in range(first, last):
            self.paths[row].append(len(self.lengths) - 1)
        return len(self.lengths) - 1
