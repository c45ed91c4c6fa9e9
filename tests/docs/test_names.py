"""The guides name objectives, functions, papers and tests that exist, and evidence that there is."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import pytest

from prefuse import objectives
from prefuse.catalogue import catalogue
from tests import evidence

ROOT = Path(__file__).parents[2]
CHOOSING, PAPERS = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("choosing.md", "papers.md"))
WORDS = {"finite differences": "slopes", "TRL": "TRL", "Liger": "Liger"}
"""What the column "evidence" of papers.md says, and the kind of evidence it means."""


def linked(text):
    """Objectives that a text links to."""
    return re.findall(r"\[(\w+)\]\(objectives\.md#(\w+)\)", text)


@pytest.mark.parametrize("page", [CHOOSING, PAPERS], ids=["choosing", "papers"])
def test_linked_objectives_exist(page):
    assert len(linked(page)) > 100
    assert all(name == anchor and name in objectives.names() for name, anchor in linked(page))


@pytest.mark.parametrize("page", [CHOOSING, PAPERS], ids=["choosing", "papers"])
def test_named_functions_exist(page):
    for name in set(re.findall(r"`prefuse\.([\w.]+)`", page)):
        assert pkgutil.resolve_name(f"prefuse.{name}"), name
    for name in set(re.findall(r"`metrics\.(\w+)`", page)):
        assert pkgutil.resolve_name(f"prefuse.metrics.{name}"), name


def test_every_objective_is_linked_from_the_papers():
    there = {name for name, _ in linked(PAPERS)} | {"daa"}
    missing = [page.name for page in catalogue() if page.paper and page.name not in there]
    assert not missing, f"docs/papers.md: no row links to {', '.join(missing)}"


def test_papers_of_objectives_have_their_rows_and_titles():
    rows = dict(re.findall(r"^\| \[(.+)\]\(https://arxiv\.org/abs/([\d.]+)\)", PAPERS, re.MULTILINE))
    titles = {identifier: title for title, identifier in rows.items()}
    for page in catalogue():
        assert page.paper is None or titles[page.paper] == page.title, page.name


def rows():
    """Paper, what it proposes, where it is, evidence, what is left out."""
    lines = [line.strip("| ").split(" | ") for line in PAPERS.splitlines() if line.startswith("| [")]
    assert len(lines) > 100
    return lines


def test_evidence_in_the_papers_is_in_the_table():
    found = {(case.objective, case.kind) for case in evidence.collected()}
    for paper, _, here, claims, _ in rows():
        for claim in filter(None, map(str.strip, claims.split(","))):
            names = [name for name, _ in linked(here)]
            if claim in WORDS:
                assert names and all((name, WORDS[claim]) in found for name in names), (paper, claim)
            elif claim == "[table](evidence.md)":
                assert names, paper
            else:
                assert (ROOT / claim.strip("`")).is_file(), (paper, claim)
