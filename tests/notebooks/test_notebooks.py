"""The notebooks run, are kept without what they printed, and are listed in the documentation."""

import re

import nbformat
import pytest

from tests.notebooks.running import NOTEBOOKS, ROOT, of, run

SHOW_RESULTS = "07"
"""Draws files of benchmarks/results. Those that run SmolLM2 are in tests/demo/test_smollm2.py."""


def test_all_of_them_are_listed():
    listed = re.findall(r"notebooks/([\w]+\.ipynb)", (ROOT / "docs/notebooks.md").read_text(encoding="utf-8"))
    assert listed == [path.name for path in NOTEBOOKS] and len(listed) == 7


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_printed_is_stored(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (not cell.outputs and cell.execution_count is None)


@pytest.mark.parametrize("path", of("01", "02", "03", "04", SHOW_RESULTS), ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    shown = run(path, path.parent if path.stem.startswith(SHOW_RESULTS) else tmp_path)
    if path.stem.startswith(("02", "03", "07")):
        assert any("image/png" in found for found in shown)
    if path.stem.startswith(("01", "02")):
        assert any("text/latex" in found for found in shown)
