"""What results show of themselves: HTML that is well-formed, escaped and complete; text, unless at a prompt."""

from __future__ import annotations

import sys
from xml.etree import ElementTree

import pytest
import torch

import prefuse
from prefuse import doctor
from prefuse._display import html, progress
from prefuse.catalogue.checking import Finding, Report, Reports
from prefuse.language import pair_objective
from prefuse.linear.plans import Job, choose

HOSTILE = '<script>alert("x")</script> & <b>'


def hostile(pair, *, beta=0.1):
    return beta * (pair.rejected.logp - pair.chosen.logp)


hostile.__doc__ = f"{HOSTILE} ({HOSTILE} 2024)\n\n{HOSTILE}"
hostile = pair_objective(hostile)


def text_of(shown):
    """The text that a reader sees; an error where the HTML is not well-formed."""
    assert "<script" not in shown
    return " | ".join(ElementTree.fromstring(f"<div>{shown}</div>").itertext())


def score(**options):
    columns = {f"{role}_logps": [-1.0, -2.0] for role in ("chosen", "rejected", "ref_chosen", "ref_rejected")}
    return prefuse.objectives.dpo(**columns, **options)


def test_a_score():
    text = text_of(score()._repr_html_())
    assert "loss | 0.693147 | rewards/chosen | 0 |" in text and "logps/chosen | -1.5" in text
    assert "gradients | to chosen_logps, " in text
    assert "loss | <2 values> |" in text_of(score(reduction="none")._repr_html_())


def test_a_score_from_hidden_states_names_its_plan():
    labels = torch.zeros(2, 3, dtype=torch.int64)
    found = prefuse.preference_loss("simpo", hidden=torch.zeros(2, 3, 4), weight=torch.zeros(5, 4), labels=labels)
    assert "plan | forward: nothing wants a gradient" in text_of(found._repr_html_())


def test_a_plan():
    plan = choose(Job(8, 4, 100, 4, weight=True, hidden=True), 1024)
    assert all(str(value) in text_of(plan._repr_html_()) for line in plan._lines() for value in line)


def test_a_page_and_the_table():
    page = prefuse.objectives.show(hostile)
    text = text_of(page._repr_html_())
    assert (
        text.count(HOSTILE) >= 2 and "chosen_logps | one float per pair" in text and rf"$${hostile.latex()}$$" in text
    )
    table = prefuse.objectives.list()
    shown = table._repr_html_()
    assert all(name in text_of(shown) for name in prefuse.objectives.names())
    assert 'href="https://arxiv.org/abs/2305.18290"' in shown and "overflow:auto" in shown
    assert len(shown) < 500 * len(table)


def test_reports():
    report = Report(HOSTILE, (Finding("value", True, "fine"), Finding(HOSTILE, False, HOSTILE)))
    text = text_of(report._repr_html_())
    assert text.count(HOSTILE) == 3 and "does not pass" in text and "FAIL" in text
    several = text_of(Reports((report, Report("good", ())))._repr_html_())
    assert "1 of 2 objectives pass" in several and f"{HOSTILE}: {HOSTILE}" in several


def test_the_doctors_report():
    found = doctor.Report((doctor.Finding("CPU", HOSTILE), doctor.Finding("GPU", "none", "buy one")))
    assert text_of(found._repr_html_()).endswith(f"CPU | {HOSTILE} | GPU | none | buy one")
    assert str(found).splitlines()[-1] == "GPU: buy one"
    assert any(finding.part == "PyTorch" for finding in doctor.report().findings)
    assert prefuse.__getattr__("doctor") is doctor  # as `import prefuse` alone finds it


@pytest.mark.parametrize("prompt", [True, False])
def test_a_prompt_shows_what_a_script_prints(prompt, monkeypatch, capsys):
    if prompt:
        monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    else:
        monkeypatch.delattr(sys, "ps1", raising=False)
    html.announce("a result")
    assert capsys.readouterr().out == ("" if prompt else "a result\n")


def test_lists_stand_for_columns():
    columns = {"chosen_logps": [-1, -3.0], "rejected_logps": (-2.0, -2.5)}
    beside = hostile(chosen_logps=torch.tensor([-1.0, -3.0], requires_grad=True), rejected_logps=[-2.0, -2.5])
    assert hostile(**columns).losses.tolist() == pytest.approx(beside.losses.tolist()) == [-0.1, 0.05]
    assert beside.loss.dtype == torch.float32 and beside.loss.requires_grad


def test_progress_without_tqdm_and_without_a_terminal(monkeypatch, capsys):
    assert list(progress.track([1, 2], "counting")) == [1, 2]
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)  # as if not installed
    assert list(progress.track([1, 2], "counting")) == [1, 2]
    assert capsys.readouterr() == ("", "")
