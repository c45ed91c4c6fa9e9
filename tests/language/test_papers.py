"""What the decorators take of an objective's origin: paper, equation, equal losses."""

from __future__ import annotations

import pytest
from sample_objectives import dpo, plain_dpo, simpo

from prefuse import objectives
from prefuse.language import Paper, group_objective, pair_objective, point_objective, token_objective

DECORATORS = (pair_objective, point_objective, group_objective, token_objective)


def of(view):
    """A loss.

    Paper: a word in a docstring declares nothing (arXiv:2305.18290, eq. 7).
    """
    return view["x"].mean("batch")


@pytest.mark.parametrize("decorator", DECORATORS)
def test_a_page_shows_what_is_declared(decorator):
    paper = Paper("2305.18290", "A title", "Somebody et al. 2023")
    page = objectives.show(decorator(paper=paper, equation="eq. 7", identities=("of = 2 * of", "of = of"))(of))
    assert (page.paper, page.title, page.equation) == ("2305.18290", "A title", "eq. 7")
    assert page.citation == "Somebody et al. 2023, arXiv:2305.18290, eq. 7"
    assert page.identities == ("of = 2 * of", "of = of")
    assert page.matches("somebody") and page.matches("a title") and page.matches("2 * of")


@pytest.mark.parametrize("decorator", DECORATORS)
def test_a_docstring_alone_declares_nothing(decorator):
    page = objectives.show(decorator(of))
    assert (page.paper, page.title, page.equation, page.identities, page.citation) == (None, None, None, (), "")
    assert page.objective.__doc__ == of.__doc__.replace("\n    ", "\n").rstrip()


def test_help_names_the_paper():
    assert dpo.__doc__ == (
        "DPO.\n\nPaper: Direct Preference Optimization. Rafailov et al. 2023, arXiv:2305.18290, eq. 7."
        "\n\nEqual losses: dpo(label_smoothing=0.0) = plain_dpo."
    )
    assert simpo.__doc__ == "SimPO.\n\nPaper: arXiv:2405.14734, eq. 6."
    assert plain_dpo.__doc__ is None


def test_settings_keep_the_origin():
    assert dpo(beta=0.3).paper == "2305.18290" and objectives.show(dpo(beta=0.3)).equation == "eq. 7"
    assert (dpo + simpo).paper is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"paper": "arXiv:2305.18290"},
            ValueError,
            "arxiv: expected an id such as '2305.18290', got 'arXiv:2305.18290'",
        ),
        ({"paper": 2305.18290}, TypeError, "of: paper: expected a Paper or an arXiv id, got float"),
        ({"equation": "eq. 7"}, ValueError, r"of: equation: 'eq. 7' of which paper\? expected paper= as well"),
        ({"paper": "2305.18290", "equation": 7}, TypeError, "of: equation: expected a string such as 'eq. 7', got int"),
        ({"identities": "of = of"}, TypeError, "of: identities: expected a tuple of strings, got 'of = of'"),
        ({"identities": ("of",)}, ValueError, "of: identities: expected 'left = right', got 'of'"),
        ({"papers": "2305.18290"}, TypeError, "unexpected keyword argument 'papers'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_origin_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        pair_objective(**options)(of)


@pytest.mark.parametrize("arxiv", ["2305.18290", "1707.06347", "cs/0112017", "math.ST/0112017"])
def test_arxiv_ids(arxiv):
    assert Paper(arxiv).arxiv == arxiv
    with pytest.raises(TypeError, match="title: expected a string, got int"):
        Paper(arxiv, 3)
    with pytest.raises(ValueError, match="arxiv: expected an id"):
        Paper(f"{arxiv}v2")
