"""Information gain, sampling by certainty, and what is worth asking."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefuse import curate
from tests.curate.kinds import as_dicts


def test_information_gain_worked():
    assert curate.information_gain(np.array([0.9, 0.7, 0.8, 0.95])) == pytest.approx(0.035076, abs=5e-7)


@pytest.mark.parametrize(
    ("passes", "gain"),
    [([0.3] * 5, 0.0), ([0.0, 1.0], math.log(2.0)), ([1.0], 0.0), ([0.0, 0.0, 1.0], math.log(3) - 2 / 3 * math.log(2))],
)
def test_information_gain_at_the_ends(passes, gain):
    assert float(curate.information_gain(torch.tensor(passes, dtype=torch.float64))) == pytest.approx(gain, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=10), st.randoms())
def test_information_gain_is_bounded_and_knows_no_order(passes, random):
    gain = float(curate.information_gain(np.array(passes)))
    assert 0.0 <= gain <= math.log(2.0)
    assert float(curate.information_gain(1.0 - np.array(passes))) == pytest.approx(gain, abs=1e-9)
    shuffled = random.sample(passes, len(passes))
    assert float(curate.information_gain(np.array(shuffled))) == pytest.approx(gain, abs=1e-9)


def test_certainty_weights_worked():
    weights = curate.certainty_weights(np.array([0.035076, 0.1, 0.3, 0.02]))
    np.testing.assert_allclose(weights, [0.272199, 0.253884, 0.197465, 0.276452], atol=5e-7)
    np.testing.assert_allclose(curate.certainty_weights(np.array([0.0, 0.6]), exponent=0.0), [0.5, 0.5])
    assert curate.certainty_weights(np.zeros(0)).shape == (0,)


def test_certain_pairs_keep_order_and_tell_the_gain(make):
    rows = make([{"id": i, "passes": [0.9, 0.7, 0.8, 0.95]} for i in range(6)])
    kept = as_dicts(curate.certain_pairs(rows, 4, seed=3))
    assert len(kept) == 4
    assert [row["id"] for row in kept] == sorted({row["id"] for row in kept})
    assert kept[0]["uncertainty"] == pytest.approx(0.035076, abs=5e-7)
    assert kept == as_dicts(curate.certain_pairs(rows, 4, seed=3))
    assert [row["id"] for row in as_dicts(curate.certain_pairs(rows, 99))] == list(range(6))
    assert len(curate.certain_pairs(rows, 0)) == 0


def test_certain_pairs_are_drawn_by_weight():
    rows = [{"id": i, "passes": [0.0, 1.0] if i else [0.9, 0.9]} for i in range(2)]
    random = np.random.default_rng(0)
    drawn = [curate.certain_pairs(rows, 1, exponent=2.0, seed=random)[0]["id"] for _ in range(4000)]
    doubtful = (1.0 - math.log(2.0)) ** 2
    assert np.mean(drawn) == pytest.approx(doubtful / (1.0 + doubtful), abs=0.02)


def test_posterior_disagreement_worked():
    found = curate.posterior_disagreement(np.array([1.0, -0.5]), [[0.5, 0.1], [0.1, 0.2]])
    assert found == pytest.approx(0.756940, abs=5e-7)


def test_posterior_disagreement_is_what_draws_of_it_do():
    rng = np.random.default_rng(0)
    root, delta = rng.normal(size=(3, 3)), rng.normal(size=(4, 3))
    draws = 0.7 * rng.normal(size=(200_000, 2, 3)) @ root.T
    expected = np.abs((draws[:, 0] - draws[:, 1]) @ delta.T).mean(0)
    found = curate.posterior_disagreement(delta, root @ root.T, scale=0.7)
    np.testing.assert_allclose(found, expected, rtol=0.02)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=7))
def test_ensemble_disagreement_is_the_mean_over_pairs(margins):
    expected = np.mean([abs(a - b) for i, a in enumerate(margins) for j, b in enumerate(margins) if i != j])
    assert float(curate.ensemble_disagreement(np.array(margins))) == pytest.approx(expected, abs=1e-9)


def test_to_query_only_where_the_posterior_disagrees():
    margins = torch.tensor([[1.0, 1.0], [0.0, 3.0], [2.0, 2.5]])
    assert curate.to_query(curate.ensemble_disagreement(margins), threshold=0.5).tolist() == [1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: curate.information_gain([0.5, 1.5]),
            r"^passes: 1.5 at \[1\], expected probabilities in \[0, 1\]",
        ),
        (lambda: curate.information_gain(np.zeros((2, 0))), r"^passes: expected shape \(..., T\) with T >= 1"),
        (lambda: curate.certainty_weights([-0.1]), r"^gain: -0.1 at 0, expected nats in \[0, log 2\]"),
        (lambda: curate.certainty_weights([0.1], exponent=-1.0), "^exponent: expected a number >= 0"),
        (
            lambda: curate.certain_pairs([{"passes": [0.5]}, {"passes": [0.5, 0.5]}], 1),
            "^passes: expected equally many",
        ),
        (lambda: curate.posterior_disagreement([1.0, 2.0], [[1.0]]), r"^covariance: expected shape \(D, D\)"),
        (lambda: curate.posterior_disagreement([1.0], [[-1.0]]), "^covariance: expected a positive semi-definite"),
        (lambda: curate.posterior_disagreement([1.0], [[1.0]], scale=0.0), "^scale: expected a finite number above 0"),
        (lambda: curate.ensemble_disagreement([1.0]), r"^margins: expected shape \(..., k\) with k >= 2, got \(1,\)"),
        (lambda: curate.to_query([1.0], threshold=-1.0), "^threshold: expected a number >= 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
