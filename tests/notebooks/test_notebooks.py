"""The notebooks run, are kept without what they printed, and are listed in the documentation."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from prefuse.demo.pretrained import source

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples/notebooks").glob("*.ipynb"))
LONGEST_CELL = 900  # seconds
NEED_THE_MODEL = ("05", "06")
SHOW_RESULTS = ("07",)
"""Beginnings of names: notebooks that run SmolLM2, and those that draw the files of benchmarks/results."""


def test_all_of_them_are_listed():
    listed = re.findall(r"notebooks/([\w]+\.ipynb)", (ROOT / "docs/notebooks.md").read_text(encoding="utf-8"))
    assert listed == [path.name for path in NOTEBOOKS] and len(listed) == 7


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_printed_is_stored(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (not cell.outputs and cell.execution_count is None)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    if path.stem.startswith(NEED_THE_MODEL) and (missing := source.has_smollm2()):
        pytest.skip(missing)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    folder = path.parent if path.stem.startswith(SHOW_RESULTS) else tmp_path
    NotebookClient(notebook, timeout=LONGEST_CELL, resources={"metadata": {"path": str(folder)}}).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in shown if output.output_type == "error"]
    if path.stem.startswith(("02", "03", "06", "07")):
        assert any("image/png" in output.get("data", {}) for output in shown)
    if path.stem.startswith(("01", "02", "05")):
        assert any("text/latex" in output.get("data", {}) for output in shown)
