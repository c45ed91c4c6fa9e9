"""What an objective shows of itself."""

import inspect
import pydoc

import pytest
from sample_objectives import dpo, listwise, plain_dpo, policy_gradient, regression, simpo

from prefuse.language import ColumnInfo, find, pair_objective, register
from prefuse.scoring import registry

PI = r"\log\pi_\theta(y_{})"
REF = r"\log\pi_{{\mathrm{{ref}}}}(y_{})"
MARGIN = " - ".join([f"{PI.format('w')} - {REF.format('w')}", rf"\left({PI.format('l')} - {REF.format('l')}\right)"])
AVERAGES = rf"\frac{{{PI.format('w')}}}{{|y_w|}} - \frac{{{PI.format('l')}}}{{|y_l|}}"


def test_latex_of_dpo():
    assert plain_dpo.latex() == rf"-\log\sigma\left(\beta \, \left({MARGIN}\right)\right)"
    derivative = plain_dpo.latex("chosen_logps")
    assert derivative._repr_latex_() == f"$${derivative}$$"
    assert derivative == rf"-\beta \, \sigma\left(-\beta \, \left({MARGIN}\right)\right)"


def test_a_notebook_shows_the_formula_and_its_numbers():
    numbers = r"\mathrm{simpo}\left(\beta = 3,\ \gamma = 0.5\right)"
    shown = simpo(beta=3, gamma=0.5)._repr_latex_()
    assert shown == rf"$$\begin{{gathered}} {simpo.latex()} \\ {numbers} \end{{gathered}}$$"
    mixed = 0.5 * plain_dpo + simpo
    assert r"w_{\mathrm{plain\_dpo}} = 0.5" in mixed._repr_latex_()

    @pair_objective
    def without_numbers(pair, *, which="a"):
        seen.append(pair.chosen.logp._repr_latex_())
        return -pair.chosen.logp

    seen = []
    assert without_numbers._repr_latex_() == rf"$$-{PI.format('w')}$$"
    assert seen[0] == f"$${PI.format('w')}$$"


def test_latex_of_simpo():
    assert simpo.latex() == rf"-\log\sigma\left(\beta \, \left({AVERAGES}\right) - \gamma\right)"


def test_label_smoothing_is_epsilon():
    assert dpo.latex().startswith(r"-\left(1 - \varepsilon\right) \, \log\sigma")


def test_text():
    @pair_objective
    def flex(pair, *, beta_chosen=0.1):
        seen.append(repr(beta_chosen * pair.chosen["score"] - pair["margin"]))
        return pair["margin"]

    seen = []
    _ = flex.columns
    assert seen == ["<pair: beta_chosen * chosen_score - margin>"]


def test_attributes():
    assert repr(dpo) == "dpo(beta=0.1, label_smoothing=0.0)"
    assert repr(dpo(beta=0.5)) == "dpo(beta=0.5, label_smoothing=0.0)"
    assert (dpo.name, dpo.kind, dpo.paper) == ("dpo", "pair", "2305.18290")
    assert dpo.parameters == {"beta": 0.1, "label_smoothing": 0.0}
    assert dpo.roles == ("chosen", "rejected")
    assert (plain_dpo.paper, simpo.paper) == (None, "2405.14734")
    assert regression.roles == ()


def test_columns_tell_level_and_dtype():
    assert simpo.columns == {
        "chosen_logps": ColumnInfo("pair", "float"),
        "chosen_lengths": ColumnInfo("pair", "int"),
        "rejected_logps": ColumnInfo("pair", "float"),
        "rejected_lengths": ColumnInfo("pair", "int"),
    }
    assert listwise.columns["groups"] == ColumnInfo("response", "int")
    assert policy_gradient.columns["logps"] == ColumnInfo("token", "float")
    assert policy_gradient.columns["mask"] == ColumnInfo("token", "bool")


def test_help_shows_the_authors_docstring():
    assert "Rafailov et al. 2023, arXiv:2305.18290, eq. 7" in pydoc.render_doc(dpo)
    assert inspect.getdoc(dpo(beta=0.2)) == inspect.getdoc(dpo)
    assert "beta=0.1" in str(inspect.signature(dpo))


def test_further_roles():
    @pair_objective
    def triple(pair):
        return pair.chosen.logp - pair.response("gold").token.logp.sum()

    assert triple.roles == ("chosen", "gold")
    assert set(triple.columns) == {"chosen_logps", "gold_token_logps", "gold_mask"}


def test_roles_of_several_words():
    """Where one role's name begins another's, each column belongs to the longest that fits."""

    @pair_objective
    def revisions(pair):
        revised, twice = pair.response("revised"), pair.response("revised_again")
        return twice.logratio.sum("batch") - revised.token.logp.sum() - pair.chosen.logp + pair["chosen_by_hand"]

    assert revisions.roles == ("revised_again", "revised", "chosen")


def test_registry(monkeypatch):
    monkeypatch.setattr(registry, "_known", {})  # what this registers is not to be found by other tests

    @pair_objective(name="test only")
    def first(pair):
        return pair["x"]

    @pair_objective(name="test only")
    def second(pair):
        return pair["y"]

    register(first)
    register(first)
    assert find("test only") is first
    with pytest.raises(ValueError, match="registered already"):
        register(second)
    with pytest.raises(ValueError, match="did you mean 'test only'"):
        find("test onl")
