"""Rows of whatever kind the caller has, as columns: the only place that knows lists of dicts, pandas and `datasets`.

Neither pandas nor `datasets` is imported here: whoever passes their rows has done it.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

Rows = TypeVar("Rows")
"""A list of dicts, a `pandas.DataFrame` or a `datasets.Dataset`; what comes out is of the kind that went in."""

Column: TypeAlias = "Sequence[Any] | NDArray[Any]"
Indices: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]


class Part(NamedTuple):
    """Which rows to take, and which of their columns under which names (source: target)."""

    rows: Indices
    names: Mapping[str, str]


class Table(ABC, Generic[Rows]):
    """The operations that every procedure here is made of. Nothing is changed in place.

    Attributes:
        rows: as the caller gave them.
        name: the argument to name in errors.
    """

    def __init__(self, rows: Rows, name: str) -> None:
        self.rows = rows
        self.name = name

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """The columns; those of the first row in a list of dicts, none if it is empty."""

    @abstractmethod
    def values(self, column: str) -> list[Any]:
        """A column as Python objects."""

    @abstractmethod
    def gathered(self, parts: Sequence[Part]) -> Rows:
        """New rows: the columns of all parts, which take equally many rows, side by side."""

    @abstractmethod
    def with_columns(self, columns: Mapping[str, Column]) -> Rows:
        """The rows with further columns, or these columns replaced."""

    @abstractmethod
    def followed_by(self, others: Sequence[Rows]) -> Rows:
        """These rows, then those of the others, which have the same columns."""

    def numbers(self, column: str) -> Floats:
        """A column as float64 [N]; ValueError at a missing, infinite or NaN value, TypeError at what is no number."""
        self.require(column)
        return finite(column, self._array(column), f"{self.name}: column '{column}'")

    def _array(self, column: str) -> Iterable[Any]:
        """A column that is there as an array, where that is cheaper than Python objects."""
        return self.values(column)

    def group_ids(self, column: str) -> Indices:
        """Equal values as equal numbers 0, 1, … in order of first appearance; ValueError at a missing value."""
        self.require(column)
        return self._ids(column) if len(self) else np.zeros(0, np.int64)

    def _ids(self, column: str) -> Indices:
        return _numbered(column, self.values(column))

    def require(self, *columns: str) -> None:
        """ValueError for a column that is not there; nothing is asked of no rows."""
        for column in columns:
            if len(self) and column not in self.names:
                raise ValueError(f"{self.name}: no column '{column}'; there are {', '.join(map(str, self.names))}")

    def selected(self, indices: Indices) -> Rows:
        """These rows, in this order."""
        return self.gathered([Part(indices, {name: name for name in self.names})])


class _Dicts(Table[list[dict[str, Any]]]):
    def __len__(self) -> int:
        return len(self.rows)

    @property
    def names(self) -> list[str]:
        return list(self.rows[0]) if self.rows else []

    def values(self, column: str) -> list[Any]:
        self.require(column)
        return self._picked(self.rows, column)

    def gathered(self, parts: Sequence[Part]) -> list[dict[str, Any]]:
        columns: dict[str, list[Any]] = {}
        for rows, names in parts:
            taken = [self.rows[index] for index in rows.tolist()]
            columns.update({target: self._picked(taken, source) for source, target in names.items()})
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def _picked(self, rows: list[dict[str, Any]], column: str) -> list[Any]:
        try:
            return [row[column] for row in rows]
        except KeyError:
            at = next(index for index, row in enumerate(self.rows) if column not in row)
            raise ValueError(f"{self.name}: no column '{column}' in row {at}, while others have it") from None

    def with_columns(self, columns: Mapping[str, Column]) -> list[dict[str, Any]]:
        added = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return [{**row, **new} for row, new in zip(self.rows, added, strict=True)]

    def followed_by(self, others: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        return [row for rows in (self.rows, *others) for row in rows]


class _Frame(Table[Any]):
    def __len__(self) -> int:
        return len(self.rows)

    @property
    def names(self) -> list[str]:
        return list(self.rows.columns)

    def values(self, column: str) -> list[Any]:
        self.require(column)
        return cast("list[Any]", self.rows[column].tolist()) if len(self) else []

    def _array(self, column: str) -> Iterable[Any]:
        return np.asarray(self.rows[column]) if len(self) else ()

    def _ids(self, column: str) -> Indices:
        try:
            ids, _ = sys.modules["pandas"].factorize(self.rows[column])
        except TypeError:  # values that have no hash: lists of messages
            return super()._ids(column)
        if (ids < 0).any():
            raise ValueError(f"{column}: missing in row {int(np.flatnonzero(ids < 0)[0])}")
        return np.asarray(ids, dtype=np.int64)

    def gathered(self, parts: Sequence[Part]) -> Any:
        columns = {
            target: self.rows[source].array.take(rows)
            for rows, names in parts
            for source, target in names.items()
            if source in self.rows.columns
        }
        return sys.modules["pandas"].DataFrame(columns)

    def with_columns(self, columns: Mapping[str, Column]) -> Any:
        pandas = sys.modules["pandas"]
        return self.rows.assign(
            **{name: pandas.Series(values, index=self.rows.index) for name, values in columns.items()}
        )

    def followed_by(self, others: Sequence[Any]) -> Any:
        return sys.modules["pandas"].concat([self.rows, *others], ignore_index=True)


class _Dataset(Table[Any]):
    def __len__(self) -> int:
        return len(self.rows)

    @property
    def names(self) -> list[str]:
        return list(self.rows.column_names)

    def values(self, column: str) -> list[Any]:
        self.require(column)
        if not len(self):
            return []
        return cast("list[Any]", self.rows.select_columns([column]).with_format(None)[:][column])

    def _ids(self, column: str) -> Indices:
        values = _arrow(self.rows.select_columns([column]))[column]
        if values.null_count or values.type.num_fields:  # nothing to number, or lists of messages
            return super()._ids(column)
        chunks = values.dictionary_encode().unify_dictionaries().chunks
        return np.concatenate([np.asarray(chunk.indices, dtype=np.int64) for chunk in chunks])

    def gathered(self, parts: Sequence[Part]) -> Any:
        if len(parts) == 1:
            rows, names = parts[0][0], self._there(parts[0].names)
            return self.rows.select_columns(list(names)).select(rows).rename_columns(names)
        features, columns = {}, {}
        for rows, wanted in parts:
            names = self._there(wanted)
            taken = _arrow(self.rows.select_columns(list(names))).take(rows)
            features.update({target: self.rows.features[source] for source, target in names.items()})
            columns.update({target: taken[source] for source, target in names.items()})
        return _in_memory(features, columns)

    def with_columns(self, columns: Mapping[str, Column]) -> Any:
        datasets = sys.modules["datasets"]
        kept = self.rows.remove_columns([name for name in columns if name in self.rows.column_names])
        lists = {
            name: values.tolist() if isinstance(values, np.ndarray) else values for name, values in columns.items()
        }
        added = datasets.Dataset.from_dict(lists)
        features, columns = {}, {}
        for rows in (kept, added):
            features.update(rows.features)
            columns.update({name: _arrow(rows)[name] for name in rows.column_names})
        return _in_memory(features, columns)

    def followed_by(self, others: Sequence[Any]) -> Any:
        return sys.modules["datasets"].concatenate_datasets([self.rows, *(self._alike(rows) for rows in others)])

    def _alike(self, rows: Any) -> Any:
        """Rows with the features of these, e.g. both kinds of string as one."""
        features = self.rows.features
        if rows.features == features:
            return rows
        arrow = _arrow(rows).select(list(features)).cast(features.arrow_schema)
        return _in_memory(features, {name: arrow[name] for name in features})

    def _there(self, names: Mapping[str, str]) -> dict[str, str]:
        """Those of the columns that there are: all of them, unless there is no row."""
        return {source: target for source, target in names.items() if source in self.rows.column_names}

    def _array(self, column: str) -> Iterable[Any]:
        return cast("Iterable[Any]", _arrow(self.rows.select_columns([column]))[column].to_numpy()) if len(self) else ()


def _in_memory(features: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
    """A data set of Arrow columns, as they are."""
    datasets, pyarrow = sys.modules["datasets"], sys.modules["pyarrow"]
    info = datasets.DatasetInfo(features=datasets.Features(features))
    return datasets.Dataset(pyarrow.table(dict(columns)), info=info)


def _arrow(rows: Any) -> Any:
    """A data set as an Arrow table, nothing decoded."""
    return rows.with_format("arrow")[:]


def table(rows: Rows, name: str = "rows") -> Table[Rows]:
    """Rows of a known kind as a table; TypeError for others."""
    if isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
        return cast("Table[Rows]", _Dicts(rows, name))
    if _is_of("pandas", "DataFrame", rows):
        return cast("Table[Rows]", _Frame(rows, name))
    if _is_of("datasets", "Dataset", rows):
        return cast("Table[Rows]", _Dataset(rows, name))
    hint = "; pass one of its splits" if _is_of("datasets", "DatasetDict", rows) else ""
    raise TypeError(
        f"{name}: expected a list of dicts, a pandas.DataFrame or a datasets.Dataset, got {type(rows).__name__}{hint}"
    )


def finite(argument: str, values: Iterable[Any], place: str | None = None) -> Floats:
    """Numbers as float64; an error names the argument (or the place it stands) and the first index that is wrong."""
    try:
        given = values if isinstance(values, np.ndarray) else np.asarray(list(values))
    except ValueError:
        raise ValueError(f"{place or argument}: expected lists of equal lengths") from None
    if given.dtype.kind not in "biuf":
        for value in given.ravel().tolist():
            if not _is_number(value):
                raise TypeError(f"{place or argument}: expected numbers, got {value!r}")
    numbers = np.asarray(given, np.float64, order="C")
    usable = np.isfinite(numbers)
    if not usable.all():
        at = np.argwhere(~usable)[0].tolist()
        where = f"row {at[0]}" if place and len(at) == 1 else str(at)
        raise ValueError(f"{place or argument}: {numbers[tuple(at)]} at {where}, expected finite numbers")
    return numbers


def _is_number(value: object) -> bool:
    """None too, which becomes NaN."""
    return value is None or isinstance(value, (int, float, np.number))


def hooked(name: str, hook: Callable[..., Iterable[Any]], count: int, *arguments: Any) -> list[Any]:
    """What the caller's function returns for `count` items: as many; ValueError if not."""
    answer: Any = hook(*arguments)
    returned = answer.tolist() if isinstance(answer, (np.ndarray, torch.Tensor)) else list(answer)
    if len(returned) != count:
        raise ValueError(f"{name}: expected it to return {count} items, one for each, got {len(returned)}")
    return returned


def _is_of(library: str, kind: str, rows: object) -> bool:
    module = sys.modules.get(library)
    return module is not None and isinstance(rows, getattr(module, kind))


def _numbered(column: str, values: Sequence[Any]) -> Indices:
    for index, value in enumerate(values):
        if value is None or value != value:
            raise ValueError(f"{column}: missing in row {index}")
    seen: dict[Any, int] = {}
    try:
        ids = [seen.setdefault(value, len(seen)) for value in values]
    except TypeError:
        seen.clear()
        ids = [seen.setdefault(_hashable(value), len(seen)) for value in values]
    return np.asarray(ids, dtype=np.int64)


def _hashable(value: Any) -> Any:
    """Lists and dicts, such as the messages of a conversation, as tuples of equal content."""
    if isinstance(value, dict):
        return "dict", tuple(sorted((key, _hashable(item)) for key, item in value.items()))
    if isinstance(value, (list, tuple, np.ndarray)):
        return "list", tuple(_hashable(item) for item in value)
    return value
