"""wandb's offline files ``run-*.wandb``: blocks in the format of LevelDB's logs, and in them wandb's own messages.

wandb's reader of the blocks in Python (``wandb.sdk.internal.datastore``) is gone since wandb 0.30, so they are taken
apart here; the messages are read by ``wandb.proto`` of the wandb that is installed.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_BEGINNING = struct.Struct("<4sHB")
_MARK = (b":W&B", 0xBEE1, 0)
_BLOCK = 32768
_HEADER = struct.Struct("<IHB")  # CRC-32 of kind and content, bytes of content, kind
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows that a run logged, in order; keys of nested dictionaries are joined by dots.

    Raises:
        ImportError: wandb is not installed.
        ValueError: not a file of wandb's, or a part of it is damaged. An unfinished end, as of a training that still
            runs or was killed, ends the rows.
    """
    try:
        from wandb.proto.wandb_internal_pb2 import Record
    except ImportError as error:
        raise ImportError(f"run: {path} holds messages of wandb's, which wandb reads; pip install wandb") from error
    for content in _messages(path):
        message = Record.FromString(content)
        if message.WhichOneof("record_type") == "history":
            items = message.history.item
            yield {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _messages(path: Path) -> Iterator[bytes]:
    """Whole messages, put together of their parts: none crosses the end of a block."""
    data = path.read_bytes()
    if len(data) < _BEGINNING.size or _BEGINNING.unpack_from(data) != _MARK:
        raise ValueError(f"run: {path}: expected an offline run of wandb's, which begins with {_MARK[0].decode()!r}")
    parts: list[bytes] = []
    for kind, content in _parts(data, path):
        if (kind in (_WHOLE, _FIRST)) is bool(parts):
            raise ValueError(f"run: {path} is damaged: a message of which not all parts are there")
        parts.append(content)
        if kind in (_WHOLE, _LAST):
            yield b"".join(parts)
            parts = []


def _parts(data: bytes, path: Path) -> Iterator[tuple[int, bytes]]:
    at = _BEGINNING.size
    while True:
        if _BLOCK - at % _BLOCK < _HEADER.size:  # filled up with zeros
            at += _BLOCK - at % _BLOCK
        start = at + _HEADER.size
        if start > len(data):
            return
        checksum, size, kind = _HEADER.unpack_from(data, at)
        content = data[start : start + size]
        if len(content) < size:
            return
        if kind not in (_WHOLE, _FIRST, _MIDDLE, _LAST) or zlib.crc32(bytes([kind]) + content) != checksum:
            raise ValueError(f"run: {path} is damaged at byte {at}: the checksum is not that of the content")
        yield kind, content
        at = start + size
