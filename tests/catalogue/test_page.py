"""docs/objectives.md is what the objectives say of themselves now; `make docs` writes it."""

from __future__ import annotations

from pathlib import Path

from prefuse.catalogue import catalogue
from prefuse.catalogue.page import has_picture, markdown

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_not_stale():
    assert (DOCS / "objectives.md").read_text(encoding="utf-8") == markdown(), "stale: run `make docs`"


def test_every_objective_of_log_ratios_has_its_picture():
    drawn = {path.stem for path in (DOCS / "objectives").glob("*.svg")}
    assert drawn == {page.name for page in catalogue() if has_picture(page)}
