"""The pages that the site makes of the objectives and of their tests."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from prefuse import objectives
from prefuse.catalogue import catalogue
from tests import evidence
from tests.objectives.conftest import pytest_pyfunc_call
from tools import objectives_page as pages
from tools.objectives_page import has_picture, picture

DOCS = Path(__file__).parents[2] / "docs"


def test_every_objective_is_on_the_page_of_its_module():
    found = {name: family for family in pages.families() for name in sections(pages.page(family))}
    assert sorted(found) == [page.name for page in catalogue()]
    assert (found["dpo"], found["kto"], found["ppo"]) == ("dpo_family", "pointwise", "policy_gradient")


def sections(markdown):
    return re.findall(r"^## (\w+)$", markdown, re.MULTILINE)


def test_a_page_says_what_the_objective_does():
    text = pages.page("dpo_family")
    assert text.startswith(
        "# Pair objectives on one margin, the difference of the two log-ratios\n\nOf `prefuse.objectives.dpo_family`."
    )
    section = text.split("\n## dpo\n")[1].split("\n## ")[0]
    for part in (
        "*Direct Preference Optimization: Your Language Model is Secretly a Reward Model*: Rafailov et al. 2023, "
        "[arXiv:2305.18290](https://arxiv.org/abs/2305.18290), eq. 7.",
        f"$$\n{objectives.dpo.latex()}\n$$",
        "![loss and gradient weight against the margin](dpo.svg)",
        "Takes `chosen_logps` (one float per pair)",
        "Hyper-parameters: `beta` = 0.1 in (0, inf)",
        "Variants: `original` as the paper",
        "<details><summary>gradient</summary>",
    ):
        assert part in section, part


def test_links_lead_to_the_page_of_the_family():
    who = "[all](objectives.md), [who](objectives.md#who-means-what)"
    assert pages.linked(f"[dpo](objectives.md#dpo), [kto](../objectives.md#kto), {who}") == (
        f"[dpo](objectives/dpo_family.md#dpo), [kto](../objectives/pointwise.md#kto), {who}"
    )


def test_the_table_names_every_objective():
    lines = pages.contents().splitlines()[2:]
    assert [line.split("]")[0] for line in lines] == [f"| [{page.name}" for page in catalogue()]


def test_pages_in_git_have_the_places_that_the_site_fills():
    for page, tables in (("objectives.md", ("objectives", "variants")), ("evidence.md", ("evidence",))):
        text = (DOCS / page).read_text(encoding="utf-8")
        assert all(text.count(f"<!-- table of {table} -->") == 1 for table in tables)


def test_pictures_are_drawn_of_pairs_of_log_ratios():
    pages = {page.name: page for page in catalogue()}
    assert {name for name in ("dpo", "simpo", "tdpo1", "kto", "ppo") if has_picture(pages[name])} == {"dpo", "simpo"}
    assert picture(pages["dpo"]) == picture(pages["dpo"])  # the same bytes each time
    assert b"</svg>" in picture(pages["dpo"])


def test_the_table_of_evidence_has_a_line_for_every_objective():
    table = evidence.markdown()
    assert [f"| [{page.name}](objectives.md#{page.name}) | " in table for page in catalogue()].count(False) == 0
    row = next(line for line in table.splitlines() if line.startswith("| [apo_zero]"))
    assert row.split(" | ")[5:7] == ["DPO `apo_zero`", "DPO `apo_zero`"]  # TRL, Liger


def test_every_objective_has_evidence():
    """Worked numbers, identities, a second implementation, extreme input, a kernel that was run and compiled."""
    found = set(evidence.collected())
    for page in catalogue():
        kinds = {case.kind for case in found if case.objective == page.name}
        missing = {"numbers", "identities", "pytorch", "extremes", "emulated", "compiled"} - kinds
        assert not missing, f"{page.name}: no evidence of {', '.join(sorted(missing))}; see docs/architecture.md"
    assert {case.kind for case in found} == set(evidence.KINDS)
    assert {case.objective for case in found} == {page.name for page in catalogue()}


@pytest.mark.parametrize(("claimed", "lies"), [("sft", False), ("dpo", True)])
def test_a_test_has_to_compute_what_it_is_evidence_for(claimed, lies):
    def case(name):
        return objectives.sft(chosen_logps=np.array([-3.0]), chosen_lengths=np.array([2]))

    mark = pytest.mark.evidence("numbers").mark
    item = SimpleNamespace(
        get_closest_marker=lambda _: mark, callspec=SimpleNamespace(params={"name": claimed}), function=case
    )
    running = pytest_pyfunc_call(item)
    next(running)
    case(claimed)
    with pytest.raises(pytest.fail.Exception if lies else StopIteration):
        running.send(None)
