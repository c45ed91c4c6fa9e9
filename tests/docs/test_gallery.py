"""The papers' toy experiments: their claims hold, their figures are drawn, and the page shows them all."""

import importlib
import runpy
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAPERS = ROOT / "examples" / "papers"
NAMES = sorted(path.stem for path in PAPERS.glob("*.py") if path.stem not in ("__main__", "lab"))


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """As `python examples/papers` has it, on one thread: the problems are too small for two."""
    monkeypatch.syspath_prepend(str(PAPERS))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    for name in (*NAMES, "lab"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", NAMES)
def test_the_claim_holds_and_is_drawn(name, tmp_path):
    pytest.importorskip("matplotlib")
    lab, paper = importlib.import_module("lab"), importlib.import_module(name)
    data = paper.main()
    figures = [tmp_path / "first.svg", tmp_path / "second.svg"]
    for figure in figures:
        lab.figure(paper, data, figure)
    assert figures[0].read_bytes() == figures[1].read_bytes()
    assert figures[0].stat().st_size < 60_000


def test_the_page_is_what_the_scripts_say():
    runner = runpy.run_path(str(PAPERS / "__main__.py"))
    made = runner["page"]([importlib.import_module(name) for name in NAMES])
    assert (ROOT / "docs" / "gallery.md").read_text() == made, "stale: run `make gallery`"
    assert {path.stem for path in (ROOT / "docs" / "gallery").glob("*.svg")} == set(NAMES)
