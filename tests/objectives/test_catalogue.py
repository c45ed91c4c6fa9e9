"""The catalogue as a whole: names, docstrings, ranges, formulas."""

from __future__ import annotations

import numpy as np
import pytest

from prefuse import objectives

from . import lists_and_tokens
from .pairs_and_points import VARIANTS, column_names, random_columns

TRL_LOSS_TYPES = {
    "sigmoid": "dpo",
    "sigmoid_norm": "dpo_norm",
    "hinge": "hinge",
    "ipo": "ipo",
    "exo_pair": "exo",
    "nca_pair": "nca",
    "robust": "robust",
    "bco_pair": "bco_pair",
    "sppo_hard": "sppo_hard",
    "aot": "aot",
    "aot_unpaired": "aot_unpaired",
    "aot_pair": "aot_unpaired",
    "apo_zero": "apo_zero",
    "apo_down": "apo_down",
    "discopop": "discopop",
    "sft": "sft",
    "kto": "kto",
    "apo_zero_unpaired": "apo_zero_unpaired",
    "simpo": "simpo",
}
WRITTEN = sorted(set(objectives.__all__) - {"ALIASES", "get", "list", "names", "show"})
PAIRS_AND_POINTS = sorted({name for name, _ in VARIANTS})


def test_every_objective_is_registered_and_tested():
    assert set(WRITTEN) <= set(objectives.names())
    tried = {name for name, _ in [*VARIANTS, *lists_and_tokens.VARIANTS]}
    untried = ", ".join(sorted(set(WRITTEN) - tried))
    assert not untried, f"not in VARIANTS of pairs_and_points.py or lists_and_tokens.py: {untried}"
    assert tried == set(WRITTEN)


@pytest.mark.parametrize("loss_type", TRL_LOSS_TYPES)
def test_trl_names(loss_type):
    assert objectives.get(loss_type) is getattr(objectives, TRL_LOSS_TYPES[loss_type])


def test_aliases_lead_to_objectives_and_hide_none():
    assert set(objectives.ALIASES.values()) <= set(objectives.names())
    assert not set(objectives.ALIASES) & set(objectives.names())


def test_an_unknown_name_is_refused_with_a_proposal():
    with pytest.raises(ValueError, match=r"simppo.*simpo"):
        objectives.get("simppo")


@pytest.mark.parametrize("name", WRITTEN)
def test_docstrings(name):
    objective = objectives.get(name)
    assert objective.name == name
    assert (objective.paper is None) == (name in ("sft", "cdpo"))
    for parameter in objective.parameters:
        assert parameter in objective.__doc__, parameter


@pytest.mark.parametrize(("name", "parameters"), VARIANTS)
def test_formulas_can_be_written(name, parameters):
    objective = objectives.get(name)(**parameters)
    policy = next(column for column in objective.columns if column.endswith("logps"))
    assert r"\log\pi_" in objective.latex()
    assert objective.latex(policy)
    assert objective.name in repr(objective)


@pytest.mark.parametrize(
    ("name", "parameter", "value"),
    [
        (name, "beta", 0.0)
        for name in PAIRS_AND_POINTS
        if "beta" in objectives.get(name).parameters and not name.endswith("orpo")
    ]
    + [("orpo", "beta", -0.1), ("dpo", "label_smoothing", -0.01), ("dpo", "label_smoothing", 1.5)]
    + [("robust", "label_smoothing", 0.5), ("exo", "label_smoothing", 0.0), ("discopop", "tau", 0.0)]
    + [("f_dpo", "alpha", 0.0), ("cpo", "alpha", -1.0), ("kto", "desirable_weight", -1.0)]
    + [("dpop", "penalty", -1.0), ("ld_dpo", "alpha", 1.1), ("ns_dpo", "gamma", 0.0), ("dpo_rk", "nu", 1.0)]
    + [
        ("dpo_d", "nu", 0.0),
        ("srpo", "alpha", -0.1),
        ("inpo", "eta", 0.0),
        ("dro", "tau", 0.0),
        ("chi_po", "limit", 0.0),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(name, parameter, value):
    with pytest.raises(ValueError, match=parameter):
        objectives.get(name)(**{parameter: value})


def test_hyper_parameters_per_pair():
    """A margin of its own for every pair of SimPO, a soft label for every pair of DPO."""
    columns = {column: random_columns(3, seed=5)[column] for column in column_names("simpo", {})}
    margins = np.array([0.0, 0.5, 2.0])
    together = objectives.simpo(beta=2.0, gamma=margins)(**columns).losses
    alone = [objectives.simpo(beta=2.0, gamma=float(g))(**columns).losses[k] for k, g in enumerate(margins)]
    np.testing.assert_allclose(together, alone, rtol=1e-14)
