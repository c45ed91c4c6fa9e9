"""Notebooks, run by a kernel of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples/notebooks").glob("*.ipynb"))
LONGEST_CELL = 900  # seconds


def of(*numbers: str) -> list[Path]:
    """Those whose names begin with these numbers."""
    return [path for path in NOTEBOOKS if path.stem.startswith(numbers)]


def run(path: Path, folder: Path, instead: tuple[str, str] | None = None) -> list[dict[str, Any]]:
    """Runs it in `folder`, one line replaced by another; what its cells show, by type of content."""
    notebook = nbformat.read(path, as_version=4)
    if instead is not None:
        (cell,) = (cell for cell in notebook.cells if instead[0] in cell.source)
        cell.source = cell.source.replace(*instead)
    NotebookClient(notebook, timeout=LONGEST_CELL, resources={"metadata": {"path": str(folder)}}).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in shown if output.output_type == "error"]
    return [output.get("data", {}) for output in shown]
