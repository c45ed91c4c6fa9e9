"""Objectives of several modules that reduce to others."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.objectives.identities.shared import COLUMNS, gradients, losses, same
from tests.objectives.pairs_and_points import evaluate

pytestmark = pytest.mark.evidence("identities")

# Settings at which an objective is DPO with the same β.
IS_DPO = [
    ("dpop", {"penalty": 0.0}),
    ("rpo", {"alpha": 0.0}),
    ("codpo", {"weight": 0.0}),
    ("spo_degree", {"weight": 0.0}),
    ("rationale_dpo", {"gamma": 0.0}),
    ("r_dpo", {"alpha": 0.0}),
    ("beta_dpo", {"sensitivity": 0.0}),
    ("ns_dpo", {"gamma": 1.0}),
]


@pytest.mark.parametrize(("name", "parameters"), IS_DPO)
def test_reduces_to_dpo(name, parameters):
    same(losses(name, beta=0.2, **parameters), losses("dpo", beta=0.2))
    for column, expected in gradients("dpo", beta=0.2).items():
        same(gradients(name, beta=0.2, **parameters)[column], expected)


@pytest.mark.parametrize("name", ["robust", "dpo_norm", "aot", "aot_unpaired"])
def test_no_smoothing_and_equal_lengths_reduce_to_dpo(name):
    columns = {key: value[:1] for key, value in COLUMNS.items()}
    columns |= {"chosen_lengths": np.array([4]), "rejected_lengths": np.array([4])}
    beta = 0.8 if name == "dpo_norm" else 0.2
    actual = evaluate(name, {"beta": beta, "label_smoothing": 0.0}, columns)
    assert_allclose(actual.losses, evaluate("dpo", {"beta": 0.2}, columns).losses, rtol=1e-13)
