"""Relations that objectives of `prefuse.objectives.robustness` hold exactly, whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.objectives.identities.shared import COLUMNS, MARGIN, SIZE, SWAPPED, losses, same
from tests.objectives.pairs_and_points import evaluate

pytestmark = pytest.mark.evidence("identities")


def test_soft_labels():
    visits = lambda w, l: COLUMNS | {"chosen_visits": np.full(SIZE, w), "rejected_visits": np.full(SIZE, l)}  # noqa: E731, E741
    same(losses("mcts_dpo", visits(10.0, 0.0), beta=0.2), losses("dpo", beta=0.2))
    same(losses("mcts_dpo", visits(9.0, 1.0), beta=0.2), losses("dpo", beta=0.2, label_smoothing=0.1))
    same(losses("mcts_dpo", visits(1.0, 9.0), beta=0.2), losses("dpo", beta=0.2, label_smoothing=0.5))
    sure = COLUMNS | {"uncertainty": np.zeros(SIZE)}
    same(losses("upo", sure, beta=0.2, alpha=0.3), losses("rpo", beta=0.2, alpha=0.3))
    doubtful = COLUMNS | {"uncertainty": np.full(SIZE, 0.69)}
    same(losses("upo", doubtful, beta=0.2, alpha=0.0), losses("dpo", beta=0.2, label_smoothing=0.5))
    same(losses("gdpo", COLUMNS | {"win_prob": np.ones(SIZE)}, beta=0.2), losses("dpo", beta=0.2))
    same(losses("gdpo", COLUMNS | {"win_prob": np.full(SIZE, 0.5)}, beta=0.2), np.log(2))


def test_ropo_is_dpo_and_a_bounded_term():
    expected = losses("dpo", beta=0.2) + 1 / (1 + np.exp(0.2 * MARGIN))
    same(losses("ropo", beta=0.2, alpha=1.0), expected)


def test_dr_dpo_between_the_mean_and_the_least():
    """A batch of one pair is DPO; a large β' is its mean; a small one looks at the lowest loss alone."""
    dpo = losses("dpo", beta=0.2)
    single = {name: value[:1] for name, value in COLUMNS.items()}
    assert_allclose(evaluate("dr_dpo", {"beta": 0.2}, single).loss, dpo[0], rtol=1e-12)
    assert_allclose(evaluate("dr_dpo", {"beta": 0.2, "beta_prime": 1e7}, COLUMNS).loss, dpo.mean(), rtol=1e-6)
    small = evaluate("dr_dpo", {"beta": 0.2, "beta_prime": 1e-3}, COLUMNS)
    assert_allclose(small.loss, dpo.min() + 1e-3 * np.log(SIZE), rtol=1e-9)
    assert np.all(evaluate("dr_dpo", {"beta": 0.2}, COLUMNS).loss <= dpo.mean())


@pytest.mark.parametrize(("name", "nu"), [("dpo_rk", 1.7), ("dpo_d", 0.6)])
def test_probabilities_of_win_loss_and_tie_sum_to_one(name, nu):
    decided, tied = {"tie": np.zeros(SIZE, bool)}, {"tie": np.ones(SIZE, bool)}
    outcomes = [COLUMNS | decided, COLUMNS | SWAPPED | decided, COLUMNS | tied]
    same(sum(np.exp(-losses(name, outcome, beta=0.2, nu=nu)) for outcome in outcomes), 1.0)
    same(losses(name, COLUMNS | SWAPPED | tied, beta=0.2, nu=nu), losses(name, COLUMNS | tied, beta=0.2, nu=nu))


def test_no_ties_is_dpo():
    decided = COLUMNS | {"tie": np.zeros(SIZE, bool)}
    same(losses("dpo_rk", decided, beta=0.2, nu=1 + 1e-12), losses("dpo", beta=0.2), rtol=1e-9)
    same(losses("dpo_d", decided, beta=0.2, nu=1e-13), losses("dpo", beta=0.2), rtol=1e-9)
