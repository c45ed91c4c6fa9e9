"""How the caller's arrays lie: which element of which array is which token, response, pair or group.

The program wants every space as one run of elements, children of one parent next to each other. Callers give padded
`[R, T]` tokens with a mask, packed ones with `cu_seqlens`, and responses of a group in any order. A `Layout` says how
many elements each space has, where its parents' segments begin, and which flat positions of the caller's arrays to
take (None: all, in order).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..tracing.kinds import BATCH, PAIR, Kind, pair_space, token_space
from .arrays import ONE, Array, Arrays

Index = np.ndarray[Any, np.dtype[np.int64]]


@dataclass
class Layout:
    """Where the elements of each space are. Keys are space names."""

    counts: dict[str, int] = field(default_factory=lambda: {BATCH: 1})
    offsets: dict[str, Index] = field(default_factory=dict)
    take: dict[str, Index] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=lambda: {BATCH: ()})


def one_to_one(spaces: Iterable[str], count: int) -> Layout:
    """Return the layout of columns that all have one value per item, or one for the batch."""
    counts, shapes = dict.fromkeys(spaces, count), dict.fromkeys(spaces, (count,))
    return Layout(counts | {BATCH: 1}, shapes=shapes | {BATCH: ()})


def arrange(
    kind: Kind, columns: Mapping[str, str], arguments: Mapping[str, Array], arrays: Arrays, grouped: bool
) -> Layout:
    """Work out the layout of one call.

    Args:
        kind: the objective's kind.
        columns: {argument: space} of the columns it reads.
        arguments: everything the caller gave.
        arrays: the array library in use.
        grouped: whether the objective looks at groups of responses.

    Raises:
        ValueError: a mask, `cu_seqlens` or `groups` is missing, or the lengths of two arguments disagree.
    """
    return Arranger(kind, columns, arguments, arrays).arrange(grouped)


class Arranger:
    """Works a layout out with NumPy."""

    def __init__(self, kind: Kind, columns: Mapping[str, str], arguments: Mapping[str, Array], arrays: Arrays) -> None:
        self.kind = kind
        self.columns = columns
        self.arguments = arguments
        self.arrays = arrays
        self.layout = Layout()
        self.counted: dict[str, str] = {}  # space -> the argument that told how many

    def arrange(self, grouped: bool) -> Layout:
        """Return the layout; `grouped` as in the function."""
        response = self.kind.response
        order = None
        if self.kind is PAIR:
            self._size("group", self._count_of("group", 1))
        elif grouped:
            order = self._arrange_groups()
        else:
            self._size(response, self._count_of(response, 1))
            self._size("group", self.layout.counts[response])
        for space, prefix in self._token_spaces():
            self._arrange_tokens(space, prefix, order)
        for space in (BATCH, "group", response):
            self._check_shapes(space)
        self._check_pairs()
        return self.layout

    def _size(self, space: str, count: int, shape: tuple[int, ...] | None = None) -> None:
        self.layout.counts[space] = count
        self.layout.shapes[space] = (count,) if shape is None else shape

    # How many responses (or pairs): by the first argument that tells

    def _count_of(self, space: str, rank: int) -> int:
        for name, where in self.columns.items():
            if where == space and name in self.arguments and len(self.arguments[name].shape) == rank:
                self.counted[space] = name
                return int(self.arguments[name].shape[0])
        described = min(self._layout_names() & set(self.arguments), default=None)
        if described is not None:
            rows = int(self.arguments[described].shape[0]) if len(self.arguments[described].shape) else 0
            return rows if described.endswith("mask") else max(rows - 1, 0)
        wrong = next((name for name, where in self.columns.items() if where == space), None)
        if wrong is None:
            raise ValueError(f"nothing given tells the number of {self.kind.level(space)}s")
        raise ValueError(f"{wrong}: {self._expected(space)}, got shape {_shape(self.arguments[wrong])}")

    def _layout_names(self) -> set[str]:
        prefixes = {name.rpartition("mask")[0] for name in self.arguments if name.endswith("mask")}
        prefixes |= {name.rpartition("cu_seqlens")[0] for name in self.arguments if name.endswith("cu_seqlens")}
        return {f"{prefix}{stem}" for prefix in prefixes for stem in ("mask", "cu_seqlens")} - set(self.columns)

    # Groups

    def _arrange_groups(self) -> Index | None:
        """Lay responses out group by group; return their order, or None if the caller's is that order already."""
        if "groups" not in self.arguments:
            self._arrange_rectangle()
            return None
        identifiers = self.arrays.numpy(self.arguments["groups"])
        if identifiers.ndim != 1 or identifiers.dtype.kind not in "iu":
            raise ValueError(
                f"groups: expected one integer id per response, shape [R], got {identifiers.dtype} "
                f"of shape {_shape(identifiers)}"
            )
        _, inverse, sizes = np.unique(identifiers, return_inverse=True, return_counts=True)
        self._size("response", len(identifiers))
        self._size("group", len(sizes))
        self._set_groups(sizes)
        if (inverse[1:] >= inverse[:-1]).all():
            return None
        order = np.argsort(inverse, kind="stable")
        self.layout.take["response"] = order
        return order

    def _arrange_rectangle(self) -> None:
        """Take responses given as [G, K]: K to a group."""
        for column, space in self.columns.items():
            if space == "response" and len(self.arguments[column].shape) == 2:
                groups, members = (int(size) for size in self.arguments[column].shape)
                self._size("response", groups * members, (groups, members))
                self._size("group", groups)
                self._set_groups(np.full(groups, members))
                return
        raise ValueError(
            "groups: missing; give one integer id per response, or all response columns as [G, K] "
            "(K responses to each of G prompts)"
        )

    def _set_groups(self, sizes: Index) -> None:
        self.layout.offsets["response"] = _offsets(sizes)
        pairs = int((sizes.astype(np.int64) ** 2).sum())
        self._size(pair_space("response"), pairs)

    # Tokens

    def _token_spaces(self) -> list[tuple[str, str]]:
        """Return (token space, argument prefix) for every token space that is used or described."""
        found: dict[str, str] = {}
        for space in self.columns.values():
            if space.startswith("token"):
                role = space.partition(":")[2]
                found[space] = f"{role}_" if role else ""
        for name in sorted(self._layout_names()):
            if name in self.arguments:
                prefix = name.removesuffix("mask").removesuffix("cu_seqlens")
                found[token_space(prefix[:-1] or None)] = prefix
        return list(found.items())

    def _arrange_tokens(self, space: str, prefix: str, order: Index | None) -> None:
        mask, lengths = self.arguments.get(f"{prefix}mask"), self.arguments.get(f"{prefix}cu_seqlens")
        if (mask is None) == (lengths is None):
            both = "" if mask is None else ", not both"
            raise ValueError(
                f"{prefix}mask: token columns need either {prefix}mask [R, T] (true where a token counts) or "
                f"{prefix}cu_seqlens [R + 1] (where each response begins in a packed [N]){both}"
            )
        if mask is not None:
            self._arrange_padded(space, f"{prefix}mask", mask, order)
        else:
            self._arrange_packed(space, f"{prefix}cu_seqlens", lengths, order)

    def _arrange_padded(self, space: str, name: str, given: Array, order: Index | None) -> None:
        self._check_mask(name, given)
        mask = self.arrays.numpy(given).astype(bool, copy=False)
        rows = mask if order is None else mask[order]
        self.layout.offsets[space] = _offsets(np.count_nonzero(rows, axis=1))
        count = int(self.layout.offsets[space][-1])
        self._size(space, count, mask.shape)
        if order is not None:
            row, column = np.nonzero(rows)
            self.layout.take[space] = order[row] * mask.shape[1] + column
        elif count != mask.size:
            self.layout.take[space] = np.flatnonzero(mask)
        self._check_shapes(space)

    def _check_mask(self, name: str, mask: Array) -> None:
        responses = self.layout.counts[self.kind.response]
        if len(mask.shape) != 2 or mask.shape[0] != responses:
            raise ValueError(f"{name}: expected shape [{responses}, T], got {_shape(mask)}")

    def _check_starts(self, name: str, starts: Array, integers: bool) -> None:
        responses = self.layout.counts[self.kind.response]
        if tuple(starts.shape) != (responses + 1,) or not integers:
            raise ValueError(
                f"{name}: expected integers of shape [{responses + 1}] (one more than responses), "
                f"got {starts.dtype} of shape {_shape(starts)}"
            )

    def _arrange_packed(self, space: str, name: str, given: Array, order: Index | None) -> None:
        starts = self.arrays.numpy(given)
        self._check_starts(name, starts, starts.dtype.kind in "iu")
        starts = starts.astype(np.int64, copy=False)
        lengths = np.diff(starts)
        if starts[0] != 0 or (lengths < 0).any():
            raise ValueError(f"{name}: expected offsets that begin at 0 and never decrease")
        count = int(starts[-1])
        self._size(space, count)
        if order is None:
            self.layout.offsets[space] = np.ascontiguousarray(starts)
        else:
            self.layout.offsets[space] = offsets = _offsets(lengths[order])
            shift = np.repeat(starts[:-1][order] - offsets[:-1], lengths[order])
            self.layout.take[space] = shift + np.arange(count)
        self._check_shapes(space)

    # Shapes

    def _check_shapes(self, space: str) -> None:
        for name, where in self.columns.items():
            if where == space and name in self.arguments:
                like = self.counted.get(space)
                check_shape(name, self.arguments[name], self.layout.shapes[space], lambda: self._expected(space), like)

    def _check_pairs(self) -> None:
        """Pairs come as [G, K, K], or as one run of all K² of each group, groups by ascending id."""
        space = pair_space(self.kind.response)
        for name, where in self.columns.items():
            if where == space and name in self.arguments:
                array, count = self.arguments[name], self.layout.counts[space]
                if len(array.shape) not in (1, 3) or int(np.prod(array.shape)) != count:
                    raise ValueError(
                        f"{name}: expected one value per pair (i, j) of a group's responses, shape [G, K, K] "
                        f"or [{count}], got shape {_shape(array)}"
                    )
                self.layout.shapes[space] = tuple(array.shape)

    def _expected(self, space: str) -> str:
        return f"expected one value per {self.kind.level(space)}"


def check_shape(name: str, array: Array, shape: Sequence[int], what: Callable[[], str], like: str | None) -> None:
    """Refuse an array of the wrong shape; a number may come as `[]` or `[1]`.

    Args:
        name: the argument.
        array: its value.
        shape: expected.
        what: what is expected, in words.
        like: the argument whose shape it is, if it comes from one.

    Raises:
        ValueError: names the argument, what came and what was expected.
    """
    came = tuple(array.shape)
    if came != tuple(shape) and not (shape == () and came == ONE):
        source = f" ({_shape_text(shape)} is that of {like})" if like else ""
        raise ValueError(f"{name}: {what()}, shape {_shape_text(shape)}, got shape {_shape(array)}{source}")


def _offsets(lengths: np.ndarray[Any, Any]) -> Index:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _shape(array: Array) -> str:
    return _shape_text(array.shape)


def _shape_text(shape: Sequence[int]) -> str:
    return f"[{', '.join(str(int(size)) for size in shape)}]"
