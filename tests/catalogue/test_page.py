"""docs/objectives.md is what the objectives say of themselves now, docs/evidence.md what the tests do; `make docs`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from prefuse import objectives
from prefuse.catalogue import catalogue
from tests import evidence
from tests.objectives.conftest import pytest_pyfunc_call
from tools.objectives_page import has_picture, markdown, picture

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_not_stale():
    assert (DOCS / "objectives.md").read_text(encoding="utf-8") == markdown(), "stale: run `make docs`"


def test_pictures_are_drawn_of_pairs_of_log_ratios():
    pages = {page.name: page for page in catalogue()}
    assert {name for name in ("dpo", "simpo", "tdpo1", "kto", "ppo") if has_picture(pages[name])} == {"dpo", "simpo"}
    assert picture(pages["dpo"]) == picture(pages["dpo"])  # the same bytes each time
    assert b"</svg>" in picture(pages["dpo"])


def test_the_evidence_is_not_stale():
    assert (DOCS / "evidence.md").read_text(encoding="utf-8") == evidence.markdown(), "stale: run `make docs`"


def test_every_objective_has_evidence():
    """Worked numbers, identities, a second implementation, extreme input, a kernel that was run and compiled."""
    found = set(evidence.collected())
    for page in catalogue():
        kinds = {case.kind for case in found if case.objective == page.name}
        assert {"numbers", "identities", "pytorch", "extremes", "emulated", "compiled"} <= kinds, page.name
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
