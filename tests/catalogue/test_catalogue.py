"""The catalogue as a reader meets it: table, pages, commands; and what `check` and `viz` say of objectives."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest

import prefuse
from prefuse import objectives, viz
from prefuse.__main__ import main
from prefuse.catalogue import catalogue, entry
from prefuse.language import log, log_sigmoid, pair_objective, point_objective, token_objective
from tools.objectives_page import meanings


@pair_objective
def without_a_paper(pair, *, beta=0.5):
    """A margin."""
    return -log_sigmoid(beta * (pair.chosen.logp - pair.rejected.logp))


@pair_objective
def broken_far_out(pair):
    """Its logarithm leaves its domain."""
    return log(pair.chosen.logp - pair.rejected.logp + 100.0)


@token_objective
def by_token(token):
    return -(token.logp * token["advantage"]).mean()


@pytest.mark.parametrize("name", objectives.names())
def test_every_objective_has_a_page(name):
    page = entry(name)
    text = str(page)
    assert text.startswith(f"{name}") and page.formula in text and page.summary
    assert all(column in text for column in page.objective.columns)
    assert all(parameter in text for parameter in page.objective.parameters)
    assert page.paper is None or page.paper in page.citation
    assert "arXiv" not in page.summary or name in ("daa", "reward_distillation")  # which name a second paper
    assert "$$" in page._repr_html_()
    assert page.derivatives() or name == "pf_ppo_weight"  # a weight, which takes no gradient


@pytest.mark.parametrize("name", objectives.names())
def test_every_objective_declares_its_paper(name):
    """Title, authors and year; maximum likelihood is nobody's, and the note on cDPO is not on arXiv."""
    page = entry(name)
    assert (page.paper is None) == (name in ("sft", "cdpo"))
    if name != "sft":
        assert page.title and page.title in str(page)
        assert re.match(r"[A-Z][\w'\-]+.*? (19|20)\d\d\b", page.citation), page.citation


def test_one_paper_has_one_title():
    titles = {page.paper: page.title for page in catalogue()}
    assert all(titles[page.paper] == page.title for page in catalogue() if page.paper)


def test_equal_losses_are_shown():
    page = entry("cpo")
    assert page.identities == ("cpo(alpha=0) = dpo where ref=0", 'cpo = cpo(alpha=0) + sft(nll="sum")')
    assert "cpo(alpha=0) = dpo where ref=0" in str(page) and "<li><code>cpo = cpo(alpha=0)" in page._repr_html_()
    assert "Identities" not in str(page) and "\n\n\n" not in page.notes


def test_what_a_page_says():
    page = objectives.show("sigmoid")
    assert (page.name, page.kind, page.paper, page.equation) == ("dpo", "pair", "2305.18290", "eq. 7")
    assert page.title == "Direct Preference Optimization: Your Language Model is Secretly a Reward Model"
    places = {"cpo": "eq. 3 and its likelihood term", "gspo": "eqs. 5 to 7", "xpo": "algorithm 1", "sft": None}
    assert {name: entry(name).equation for name in places} == places
    assert page.summary == "Direct preference optimization" and "sigmoid" in page.aliases
    assert page.inputs["chosen_logps"] == "one float per pair"
    assert page.parameters["beta"] == "0.1 in (0, inf)"
    with pytest.raises(ValueError, match="did you mean 'simpo'"):
        objectives.show("simppo")


def test_variants_are_shown():
    page = entry("ipo")
    assert page.variants["trl-1.16"] == "average=True" and entry("hinge").variants["liger"] == "as the paper"
    assert "\nvariants\n  trl-1.16      average=True\n" in str(page) and "<code>trl-1.16</code>" in page._repr_html_()
    assert "variants" not in str(entry("dpo_d"))


def test_the_table_says_who_means_what():
    table = meanings()
    row = next(line for line in table.splitlines() if line.startswith("| [bco_pair]"))
    assert row.split(" | ")[1:4] == ["`delta=None`", "", "`delta=0.0`"]
    assert all(f"| [{page.name}](objectives.md#{page.name}) |" in table for page in catalogue() if page.variants)


def test_a_docstring_without_a_citation():
    from prefuse.catalogue import Entry

    page = Entry(without_a_paper, ())
    assert (page.summary, page.citation, page.equation) == ("A margin", "", None)


def test_the_table_can_be_searched():
    assert [page.name for page in objectives.list()] == objectives.names()
    found = catalogue("transport", "paired")
    assert {page.name for page in found} == {"aot", "aot_unpaired"}
    assert len(found) == 2 and found[0].name == "aot"
    assert [page.name for page in found[1:]] == ["aot_unpaired"] and repr(found[1:]).startswith("1 objective\n")
    assert "aot_unpaired" in repr(found) and "<code>aot</code>" in found._repr_html_()
    assert len(catalogue("no objective says this")) == 0


def test_the_table_shows_whole_names_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["objectives"]) == 0
    shown = capsys.readouterr().out
    for page in catalogue():
        assert re.search(rf"\b{re.escape(page.name)} ", shown), page.name


def test_commands(capsys):
    assert main(["objectives", "simpo"]) == 0
    assert "simpo" in capsys.readouterr().out
    assert main(["objectives", "no objective says this"]) == 1
    assert "no objective mentions" in capsys.readouterr().err
    assert main(["show", "dpo", "--latex"]) == 0
    printed = capsys.readouterr().out
    assert "arXiv:2305.18290" in printed and r"\beta" in printed and "d/d chosen_logps" in printed
    assert main(["show", "dpi"]) == 1
    assert "did you mean 'dpo'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["dpo", "kto", "aot", "ipo"])
def test_objectives_pass_the_check(name, capsys):
    report = prefuse.check(objectives.get(name))
    assert report and f"{name}: passes" in capsys.readouterr().out
    gradient = next(finding for finding in report.findings if finding.check == "gradient")
    assert gradient.passed is (None if name == "kto" else True)  # kto detaches its baseline


def test_a_check_finds_what_is_not_finite():
    report = prefuse.check(broken_far_out)
    assert not report
    failed = [finding.check for finding in report.findings if finding.passed is False]
    assert "log-ratios of -1e+04" in failed and "FAIL" in str(report)


def test_a_check_of_token_columns_and_own_columns():
    assert prefuse.check(by_token)

    @point_objective
    def of_a_root(response):
        return log(response["score"] - 5.0) * response.logp

    assert not prefuse.check(of_a_root)
    assert prefuse.check(of_a_root, columns={"score": np.linspace(6, 7, 12)})


def test_several_are_checked_together(capsys):
    reports = prefuse.check(["ipo", broken_far_out, entry("hinge")])
    assert [report.name for report in reports] == ["ipo", "broken_far_out", "hinge"]
    assert [bool(report) for report in reports] == [True, False, True] and not reports
    printed = capsys.readouterr().out
    assert printed == f"{reports}\n" and printed.startswith("2 of 3 objectives pass\nok   ipo\nFAIL broken_far_out")
    assert "log-ratios of -1e+04: not finite" in printed
    assert prefuse.check(catalogue("transport", "paired")[:1])
    with pytest.raises(ValueError, match="objective: expected at least one, got none"):
        prefuse.check(catalogue("no objective says this"))


def test_what_cannot_be_checked_or_shown_says_so():
    for call in (prefuse.check, objectives.show, viz.margin):
        with pytest.raises(TypeError, match=r"objective: expected an Objective, .* or the name of one, got int"):
            call(3)
        with pytest.raises(ValueError, match="did you mean 'dpo'"):
            call("dpi")


def test_a_page_of_ones_own():
    page = objectives.show(without_a_paper(beta=2.0))
    assert (page.name, page.aliases, page.parameters["beta"]) == ("without_a_paper", (), "2.0")
    assert objectives.show(objectives.dpo(beta=0.5)).aliases == ("sigmoid", "spin")


def test_a_wrong_gradient_would_be_found(monkeypatch):
    from prefuse.catalogue import checking

    right = checking._differences
    monkeypatch.setattr(checking, "_differences", lambda *call: right(*call) + 1e-3)
    assert not prefuse.check(without_a_paper)


class TestDrawing:
    def test_loss_and_weight_against_the_margin(self):
        figure = viz.margin(["dpo", objectives.simpo(beta=3.0)], points=21)
        left, right = figure.axes
        margins = left.lines[0].get_xdata()
        np.testing.assert_allclose(left.lines[0].get_ydata(), np.log1p(np.exp(-0.1 * margins)))
        np.testing.assert_allclose(right.lines[0].get_ydata(), 0.1 / (1 + np.exp(0.1 * margins)))
        assert figure.legends[0].get_texts()[1].get_text() == "simpo(beta=3.0)"

    def test_chosen_and_rejected_apart(self):
        left, right = viz.gradients("apo_down", points=11).axes
        assert not np.allclose(left.lines[0].get_ydata(), -right.lines[0].get_ydata())

    def test_the_plane_of_log_ratios(self):
        figure = viz.contour("dpo", points=13)
        assert figure.axes[0].get_title() == "dpo(beta=0.1)"

    def test_likelihoods_from_step_to_step(self):
        runs = {name: {"chosen": [-2.0, -1.0], "rejected": [-2.0, -4.0]} for name in ("dpo", "ipo", "sft")}
        figure = viz.likelihoods(runs, columns=2)
        assert [axes.get_title() for axes in figure.axes] == ["dpo", "ipo", "sft", ""]
        np.testing.assert_allclose(figure.axes[2].lines[1].get_ydata(), [-2.0, -4.0])
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["chosen", "rejected"]
        shown = viz.likelihoods(runs, probability=True)
        np.testing.assert_allclose(shown.axes[0].lines[0].get_ydata(), np.exp([-2.0, -1.0]))
        with pytest.raises(ValueError, match="histories: expected at least one run, got none"):
            viz.likelihoods({})

    def test_a_notebook_draws_figures_without_pyplot(self):
        assert viz.margin("dpo", points=3)._repr_png_().startswith(b"\x89PNG")

    def test_further_columns_and_what_cannot_be_drawn(self):
        soft = viz.margin("sppo", points=5, chosen_win_prob=0.9, rejected_win_prob=0.1)
        assert len(soft.axes[0].lines[0].get_ydata()) == 5
        with pytest.raises(ValueError, match="expected a pair objective, got kto"):
            viz.margin("kto")


def test_importing_prefuse_imports_no_pictures_and_no_compiler():
    """PyTorch's compiler alone takes longer to import than PyTorch."""
    heavy = ("matplotlib", "pandas", "sympy", "torch._dynamo", "torch._inductor", "transformers", "trl")
    program = f"import sys, prefuse; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"
