"""Files of preference data, whole and broken, and the command `inspect`."""

from __future__ import annotations

import csv
import gzip
import json
import re

import datasets
import pandas as pd
import pytest

from prefuse import curate
from prefuse.__main__ import main
from prefuse._display import tables
from tests.curate import inspected


def lines(rows):
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def written(path, rows):
    """Rows as a file of the kind that its name says."""
    kind = path.name.split(".")[1]
    if kind in ("csv", "tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif kind == "folder":
        datasets.Dataset.from_list(rows).save_to_disk(path)
    else:
        text = json.dumps(rows) if kind == "json" else lines(rows)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


NAMES = ("a.jsonl", "a.ndjson", "a.json", "a.jsonl.gz", "a.parquet", "a.folder", "a.csv", "a.tsv")
KINDS = [(name, data) for name in NAMES for data in inspected.CLEAN]
KINDS = [pair for pair in KINDS if pair[0][2] not in "ct" or pair[1] in ("pairs", "labelled")]  # CSV has no lists


@pytest.mark.parametrize(("name", "data"), KINDS)
def test_files_of_every_kind(name, data, tmp_path):
    rows = inspected.CLEAN[data](30)
    path = written(tmp_path / name, rows)
    assert curate.inspect(path).as_dict() == curate.inspect(str(path)).as_dict() == curate.inspect(rows).as_dict()


def test_text_that_tries_a_file(tmp_path):
    rows = inspected.pairs(5)
    rows[2]["chosen"] = ' a,"b"\r\nc\u2028d\u0085e\x0bf — 猫.'
    for name in ("a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet"):
        found = curate.inspect(written(tmp_path / name, rows))
        assert found.as_dict() == curate.inspect(rows).as_dict(), name


def test_json_lines_under_another_name_and_a_byte_order_mark(tmp_path):
    (tmp_path / "a.json").write_text("\ufeff" + lines(inspected.pairs(5)) + "\n\n", encoding="utf-8")
    assert curate.inspect(tmp_path / "a.json").rows == 5


def test_long_fields_of_csv(tmp_path):
    rows = inspected.pairs(3)
    rows[1]["chosen"] = "x" * 300_000
    limit = csv.field_size_limit()
    assert curate.inspect(written(tmp_path / "a.csv", rows)).lengths["chosen"].max() == 300_000
    assert csv.field_size_limit() == limit


ROW = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "expected rows, got an empty file"),
        ("a.jsonl", " \n\n", "expected rows, got an empty file"),
        ("a.csv", "", "expected rows, got an empty file"),
        ("a.jsonl", ROW + "{'prompt': 'a'}\n", "line 2: expected a JSON object, got \"{'prompt': 'a'}\""),
        ("a.jsonl", ROW + '\n["a"]\n', "line 3: expected a JSON object, got '\\[\"a\"\\]'"),
        ("a.jsonl", ROW + ROW[:20], "line 2: expected a JSON object, got .*Unterminated"),
        ("a.jsonl", "<!doctype html>\n<html>", "line 1: expected a JSON object, got '<!doctype html>'"),
        ("a.jsonl", "[" * 100_000, "line 1: expected a JSON object"),
        ("a.json", '{"data": []}', "expected a list of objects, got one object with 'data'"),
        ("a.json", "[1, 2]", "row 0: expected an object, got '1'"),
        ("a.json", "3", "expected a list of objects, got '3'"),
        ("a.json", "[{]", "line 1: expected a JSON object"),
        ("a.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        ("a.jsonl", b"\xff\xfe{\x00", "expected UTF-8, got the byte 0xff at offset 0"),
        ("a.jsonl", '{"prompt": "a"}\n', "expected the columns prompt, chosen and rejected .* got prompt"),
        ("a.jsonl", ROW + '{"prompt": "a", "chosen": "b"}\n', "no column 'rejected' in row 1, while others have it"),
        ("a.csv", "prompt,chosen,rejected\na,b\n", "line 2: expected 3 fields, as its first line has, got 2"),
        ("a.csv", "prompt,chosen,rejected\n", "expected at least one row, got none"),
        ("a.csv", "prompt,chosen,chosen\na,b,c\n", "expected different names of columns in its first line"),
        ("a.csv", 'prompt,chosen,rejected\na,"b,c\n', "line 2: "),
        ("a.csv", "prompt;chosen;rejected\na;b;c\n", "got prompt;chosen;rejected"),
        ("a.csv", "chosen,rejected\n\"[{'role': 'user'}]\",x\n", "chosen: got messages written out as text"),
        ("a.parquet", "PAR1", "expected a Parquet file"),
        ("a.parquet", ROW, "expected a Parquet file"),
        ("a.jsonl.gz", ROW, "cannot be read: Not a gzipped file"),
        ("a.txt", ROW, "expected a name that ends in .jsonl, .ndjson, .json, .csv, .tsv, .parquet, or a folder"),
        ("a", ROW, "expected a name that ends in"),
        (".gz", ROW, "expected a name that ends in"),
        ("a.parquet.gz", ROW, "expected a Parquet file"),
    ],
)
def test_broken_files(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((ValueError, TypeError), match=message) as raised:
        curate.inspect(path)
    assert str(raised.value).startswith("data: ")


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data: no file or folder .*nothing\.jsonl"):
        curate.inspect(tmp_path / "nothing.jsonl")
    with pytest.raises(ValueError, match="got another folder"):
        curate.inspect(tmp_path)
    datasets.DatasetDict({"train": datasets.Dataset.from_list(inspected.pairs(2))}).save_to_disk(tmp_path / "splits")
    with pytest.raises(TypeError, match="expected rows, got DatasetDict; pass one of its splits: train"):
        curate.inspect(tmp_path / "splits")
    streamed = datasets.Dataset.from_list(inspected.pairs(2)).to_iterable_dataset()
    with pytest.raises(TypeError, match=r"expected a list of dicts, .* got IterableDataset"):
        curate.inspect(streamed)


def test_the_command(tmp_path, capsys):
    path = written(tmp_path / "a.jsonl", inspected.pairs(30))
    inspected.tokenizer().save_pretrained(tmp_path / "tokenizer")
    out, plots = tmp_path / "out.json", tmp_path / "pictures"
    options = ["--tokenizer", str(tmp_path / "tokenizer"), "--json", str(out), "--plots", str(plots), "--sample", "20"]
    assert main(["inspect", str(path), *options]) == 0
    printed = capsys.readouterr().out
    assert "30 rows of pairs, text" in printed and "prefix" in printed and "share_prompts=True" in printed
    saved = json.loads(out.read_text())
    assert saved["ok"] and saved["sampled"] == 20 and saved["checks"]["prefix"]["of"] == 20
    assert (plots / "inspection.png").stat().st_size > 1000


def test_the_exit_status(tmp_path, capsys):
    rows = [{"question": row["prompt"], "chosen": row["chosen"], "rejected": ""} for row in inspected.pairs(30)]
    path = written(tmp_path / "a.jsonl", rows)
    assert main(["inspect", str(path), "--column", "prompt=question"]) == 1
    assert "empty: leave them out" in capsys.readouterr().out
    assert main(["inspect", str(path), "--column", "prompt=question", "--tolerance", "0.5"]) == 1
    for arguments, message in (
        ([str(path)], ""),
        ([str(tmp_path / "b.jsonl")], "inspect: data: no file or folder"),
        ([str(path), "--column", "prompt"], "inspect: --column: got 'prompt', expected NAME=COLUMN"),
        ([str(path), "--column", "x=y"], "inspect: columns: expected names among"),
        ([str(path), "--sample", "0"], "inspect: sample: expected at least 1"),
    ):
        status = main(["inspect", *arguments])
        assert status == (2 if message else 1), arguments
        assert re.match(message, capsys.readouterr().err)


def test_what_is_found_is_read_from_the_left(tmp_path, capsys, monkeypatch):
    """In a narrow terminal as well: the text takes more lines, and names and numbers stay whole."""
    monkeypatch.setenv("COLUMNS", "60")
    rows = inspected.pairs(30)
    assert main(["inspect", str(written(tmp_path / "a.jsonl", [*rows, {**rows[0], "chosen": "[bold]x"}]))]) == 0
    printed = capsys.readouterr().out
    (line,) = (line for line in printed.splitlines() if "contradiction" in line)
    cells = re.split("[│┃]", line)[1:-1]
    assert [cell.strip() for cell in cells[:3]] == ["contradiction", "0", "31"]
    assert cells[3].startswith(" no row says") and all(len(line) <= 60 for line in printed.splitlines()[:8])
    table = tables.plain(
        "title", ("name", "count", "what"), [("a", "1", "short"), ("b", "22", "a longer one")], text=("what",)
    )
    assert table.splitlines()[2:4] == ["a         1  short", "b        22  a longer one"]
