"""Rows out of a file: JSON lines, JSON, CSV, Parquet, or a folder that `datasets` saved. Every error names the file."""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_POINTER = "version https://git-lfs"


def rows_of(path: str | Path) -> Any:
    """The rows of a file: a list of dicts, or columns by name; a `datasets.Dataset` of a folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not what its name says, or its name says nothing; the message has the line where there is one.
        ImportError: reading it takes a library that is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"data: no file or folder {path}")
    if path.is_dir():
        return _folder(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] == ".gz"
    kind = next(iter(suffixes[-2:-1] if packed else suffixes[-1:]), "")
    if kind not in SUFFIXES:
        _wrong(path, f"expected a name that ends in {', '.join(SUFFIXES)}, or a folder that datasets saved")
    if kind == ".parquet":
        return _parquet(path)
    text = _text(path, packed)
    if kind in (".csv", ".tsv"):
        return _csv(path, text, "\t" if kind == ".tsv" else ",")
    return _whole(path, text) if kind == ".json" else list(_lines(path, text))


def _text(path: Path, packed: bool) -> str:
    try:
        content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, OSError) as error:
        _wrong(path, f"cannot be read: {error}", error)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        _wrong(path, f"expected UTF-8, got the byte {content[error.start]:#04x} at offset {error.start}", error)
    if text.startswith(_POINTER):
        _wrong(path, "is the pointer of Git LFS to the data, not the data; fetch it with: git lfs pull")
    if not text.strip():
        _wrong(path, "expected rows, got an empty file")
    return text


def _lines(path: Path, text: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(io.StringIO(text, newline="\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            _wrong(path, f"line {number}: expected a JSON object, got {_start(line)} ({error})", error)
        if not isinstance(row, dict):
            _wrong(path, f"line {number}: expected a JSON object, got {_start(line)}")
        yield row


def _whole(path: Path, text: str) -> list[dict[str, Any]]:
    """A list of objects; or an object per line, which many call .json too."""
    try:
        found = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return list(_lines(path, text))
    if isinstance(found, dict):
        if len(text.strip().splitlines()) == 1 and not any(isinstance(value, list) for value in found.values()):
            return [found]
        _wrong(path, f"expected a list of objects, got one object with {', '.join(map(repr, list(found)[:8]))}")
    if not isinstance(found, list):
        _wrong(path, f"expected a list of objects, got {_start(text)}")
    for row, value in enumerate(found):
        if not isinstance(value, dict):
            _wrong(path, f"row {row}: expected an object, got {_start(repr(value))}")
    return found


def _csv(path: Path, text: str, delimiter: str) -> Mapping[str, list[Any]]:
    limit = csv.field_size_limit(sys.maxsize if sys.maxsize < 2**31 else 2**31 - 1)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names = next(reader)
        rows = []
        for row in reader:
            if row and len(row) != len(names):
                _wrong(
                    path, f"line {reader.line_num}: expected {len(names)} fields, as its first line has, got {len(row)}"
                )
            if row:
                rows.append(row)
    except csv.Error as error:
        _wrong(path, f"line {reader.line_num}: {error}", error)
    finally:
        csv.field_size_limit(limit)
    if len(set(names)) != len(names):
        _wrong(path, f"expected different names of columns in its first line, got {', '.join(names)}")
    columns = zip(*rows, strict=True) if rows else ((),) * len(names)
    return {name: list(column) for name, column in zip(names, columns, strict=True)}


def _parquet(path: Path) -> Mapping[str, list[Any]]:
    reader = _library("pyarrow.parquet", path)
    try:
        table = reader.read_table(path)
    except Exception as error:  # pyarrow's own kinds, which need not be installed to be named here
        _wrong(path, f"expected a Parquet file: {str(error).splitlines()[0]}", error)
    return {name: table[name].to_pylist() for name in table.column_names}


def _folder(path: Path) -> Any:
    if not any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
        _wrong(path, f"expected a file ({', '.join(SUFFIXES)}) or a folder that datasets saved, got another folder")
    return _library("datasets", path).load_from_disk(str(path))


def _library(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise ImportError(f"{package} is not installed, which reads {path}; pip install {package}") from error


def _start(text: str) -> str:
    shown = text.strip()
    return repr(shown if len(shown) <= 40 else f"{shown[:40]}…")


def _wrong(path: Path, what: str, cause: BaseException | None = None) -> NoReturn:
    raise ValueError(f"data: {path}: {what}") from cause
