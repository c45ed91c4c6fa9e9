"""The notebooks run, are kept without what they printed, and are listed in the documentation."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples/notebooks").glob("*.ipynb"))
LONGEST_CELL = 300  # seconds


def test_all_of_them_are_listed():
    listed = re.findall(r"notebooks/([\w]+\.ipynb)", (ROOT / "docs/notebooks.md").read_text(encoding="utf-8"))
    assert listed == [path.name for path in NOTEBOOKS] and len(listed) == 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_printed_is_stored(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (not cell.outputs and cell.execution_count is None)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=LONGEST_CELL, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in shown if output.output_type == "error"]
    if path.stem.startswith(("02", "03")):
        assert any("image/png" in output.get("data", {}) for output in shown)
    if path.stem.startswith(("01", "02")):
        assert any("text/latex" in output.get("data", {}) for output in shown)
