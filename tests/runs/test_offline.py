"""Files in the format of wandb's offline runs, written here: whole, unfinished and damaged ones.

What wandb itself writes is in `test_reading`. Here a message of the same fields takes the place of wandb's.
"""

from __future__ import annotations

import json
import struct
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from prefuse import runs

BLOCK, HEADER = 32768, 7


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`Record` with the fields of wandb's that are read, and one that is not."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="stand_in.proto", package="stand_in", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, int, str, bool]) -> Any:
        made = file.message_type.add(name=name)
        for title, number, kind, of, repeated in fields:
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            made.field.add(name=title, number=number, type=kind, label=label, type_name=of or None)
        return made

    text, inner = kinds.TYPE_STRING, kinds.TYPE_MESSAGE
    message(
        "HistoryItem",
        ("key", 1, text, "", False),
        ("nested_key", 2, text, "", True),
        ("value_json", 16, text, "", False),
    )
    message("HistoryRecord", ("item", 1, inner, ".stand_in.HistoryItem", True))
    message("SummaryRecord", ("note", 1, text, "", False))
    record = message(
        "Record",
        ("history", 2, inner, ".stand_in.HistoryRecord", False),
        ("summary", 3, inner, ".stand_in.SummaryRecord", False),
    )
    record.oneof_decl.add(name="record_type")
    for one in record.field:
        one.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    module = ModuleType("wandb.proto.wandb_internal_pb2")
    module.Record = message_factory.GetMessageClass(pool.FindMessageTypeByName("stand_in.Record"))  # type: ignore[attr-defined]
    for name in ("wandb", "wandb.proto"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.Record  # type: ignore[attr-defined]


def row(record: Any, values: dict[str, Any]) -> bytes:
    made = record()
    for name, value in values.items():
        item = made.history.item.add(value_json=json.dumps(value))
        if "." in name:
            item.nested_key.extend(name.split("."))
        else:
            item.key = name
    return made.SerializeToString()


def note(record: Any, size: int) -> bytes:
    made = record()
    made.summary.note = "x" * size
    return made.SerializeToString()


def file_of(contents: list[bytes]) -> bytes:
    """The format as LevelDB describes it, after a beginning of seven bytes that counts to the first block."""
    data = bytearray(struct.pack("<4sHB", b":W&B", 0xBEE1, 0))
    for content in contents:
        rest, first = content, True
        while first or rest:
            left = BLOCK - len(data) % BLOCK
            if left < HEADER:
                data += bytes(left)
                left = BLOCK
            part, rest = rest[: left - HEADER], rest[left - HEADER :]
            kind = bytes([{(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}[first, not rest]])
            data += struct.pack("<IH", zlib.crc32(kind + part), len(part)) + kind + part
            first = False
    return bytes(data)


def losses(path: Path) -> list[float]:
    return runs.read(path).series["loss"].values.tolist()


@pytest.mark.parametrize("size", [0, 1, *range(BLOCK - 80, BLOCK - 20, 3), BLOCK, 3 * BLOCK + 5])
def test_messages_end_anywhere_in_a_block(messages: Any, tmp_path: Path, size: int) -> None:
    rows = [row(messages, {"train/loss": 1.0 / at, "train/global_step": at}) for at in (1, 2, 4)]
    path = tmp_path / "run-a.wandb"
    path.write_bytes(file_of([rows[0], note(messages, size), *rows[1:], note(messages, 5)]))
    assert losses(path) == [1.0, 0.5, 0.25]


def test_keys_of_dictionaries_and_what_is_no_number(messages: Any, tmp_path: Path) -> None:
    path = tmp_path / "run-a.wandb"
    path.write_bytes(file_of([row(messages, {"_step": 3, "eval.loss": 2, "note": "text", "loss": float("nan")})]))
    found = runs.read(tmp_path)
    assert found.series["eval.loss"].values.tolist() == [2.0] and found.last_step == 3
    assert (
        set(found.series) == {"eval.loss", "loss"} and found.series["loss"].values[0] != found.series["loss"].values[0]
    )


def test_a_run_that_is_still_written(messages: Any, tmp_path: Path) -> None:
    """Whatever part of the last row is there, the rows before it are read."""
    path = tmp_path / "run-a.wandb"
    rows = [row(messages, {"loss": float(at), "_step": at}) for at in (1, 2)]
    whole, start = file_of(rows), len(file_of(rows[:1]))
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        assert losses(path) == [1.0]
    long = file_of([rows[0], note(messages, 2 * BLOCK)])
    path.write_bytes(long[: BLOCK + 100])
    assert losses(path) == [1.0]


def test_damaged_files_and_others(messages: Any, tmp_path: Path) -> None:
    path = tmp_path / "run-a.wandb"
    whole = file_of([row(messages, {"loss": 1.0, "_step": 1}), note(messages, 40_000)])

    def refused(data: bytes, match: str) -> None:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=match):
            runs.read(path)

    refused(b"", "expected an offline run of wandb's")
    refused(b"PAR1 and more", "run-a.wandb: expected an offline run of wandb's, which begins with ':W&B'")
    for place in (7, 13, 16, 20):
        refused(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :], "is damaged at byte 7: the checksum")
    refused(whole[:BLOCK] + file_of([note(messages, 3)])[7:], "is damaged: a message of which not all parts are there")
    refused(file_of([note(messages, 3)]), "nothing was logged")


def test_without_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    (tmp_path / "run-a.wandb").write_bytes(file_of([]))
    with pytest.raises(ImportError, match="holds messages of wandb's, which wandb reads; pip install wandb"):
        runs.read(tmp_path)
