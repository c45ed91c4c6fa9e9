"""The files of `kernels/`: each can be read by itself, and those on disk are those in the extension."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from prefuse import _prefuse
from prefuse._backends.nvrtc import SHARED_MEMORY
from prefuse._backends.rows import bits_of
from tests.emulator.emulator import COMPILER, KERNELS, Launch

FILES = sorted(path for path in KERNELS.iterdir() if path.suffix in (".cu", ".cuh"))
FLAGS = (KERNELS / "compile_flags.txt").read_text().split()
"""What an editor is told, too."""


@pytest.mark.needs("compiler")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_includes_what_it_uses(file: Path, tmp_path: Path) -> None:
    twice = tmp_path / "twice.cpp"
    twice.write_text(f'#include "{file}"\n' + (f'#include "{file}"\n' if file.suffix == ".cuh" else ""))
    command = [str(COMPILER), *FLAGS, "-fsyntax-only", str(twice)]
    checked = subprocess.run(command, cwd=KERNELS, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr[:4000]


def launches() -> list[Launch]:
    """Launches of all kernels that are not generated."""
    width, rows = 1 << 17, 4
    logits, labels = ("f32", (rows, width), (width, 1)), ("i64", (rows,), (1,))
    table = ("f32", (2, rows), (rows, 1))
    call = ((logits, labels, None, None, 1.0, 1.0, 0.0, -100, 0, width), bits_of(["logp", "lse"]))
    _, found = _prefuse.cuda_plan_rows_forward(*call, 10, table, None, 1000)
    found += _prefuse.cuda_plan_rows_backward(*call, table, table, logits)
    found += _prefuse.cuda_plan_rows_both(*call, 10, table, table, logits, None, (132, 90, SHARED_MEMORY[90]))
    values, offsets = ("f32", (4,), (1,)), ("i64", (5,), (1,))
    found += _prefuse.cuda_plan_segment_sum(values, offsets, values)
    strips = (logits, values, values, ("i64", (rows,), (1,)), rows)
    flags, tails = ("bool", (1, width), (width, 1)), ("f32", (1, width), (width, 1))
    found += _prefuse.cuda_plan_columns_find(strips, 0.5, (flags, tails))
    gathered = (("i64", (8,), (1,)), ("i64", (2,), (1,)), ("f32", (rows * 8,), (1,)), ("f32", (1, rows), (rows, 1)))
    found += _prefuse.cuda_plan_columns_gather(strips, gathered)
    found += _prefuse.cuda_plan_columns_add((logits, ("f32", (8, width), (width, 1)), gathered[0]))
    halves, sums = ("bf16", (rows, 8), (8, 1)), ("f32", (rows, 8), (8, 1))
    strips = ("i64", (rows, 5), (5, 1))
    one = (("bf16", (rows * 8,), (1,)), gathered[0], strips, halves, values, values, sums, sums, rows)
    found += _prefuse.cuda_plan_columns_to_input(one)
    found += _prefuse.cuda_plan_columns_to_weight((sums, halves, gathered[0], halves))
    found += _prefuse.cuda_plan_distance_forward(logits, logits, values, None)
    return found + _prefuse.cuda_plan_distance_backward(logits, logits, values, logits)


def test_the_files_on_disk_are_those_in_the_extension() -> None:
    embedded = {name: text for launch in launches() for name, text in launch["sources"]}
    generated = {"objective.cuh"}
    assert set(embedded) | generated == {file.name for file in FILES}
    for name, text in embedded.items():
        assert text == (KERNELS / name).read_text(encoding="utf-8"), f"{name} has changed: build the extension again"


def test_a_launch_has_its_headers_and_its_own_file_last() -> None:
    names = {launch["kernel"]: [name for name, _ in launch["sources"]] for launch in launches()}
    assert names["segment_sum"] == ["units.cuh", "ptx.cuh", "segments.cu"]
    assert names["rows_combine"][-1] == "rows_combine.cu" and "rows_gradient.cuh" not in names["rows_combine"]
    for files in names.values():
        assert len(set(files)) == len(files)
