"""Reports on lengths and on the distance from the reference."""

import math

import numpy as np
import pytest

from prefuse import curate


def test_lengths_of_pairs(make):
    rows = make(
        [
            {"chosen_length": c, "rejected_length": r, "chosen_score": s, "rejected_score": 0.0}
            for c, r, s in [(10, 5, 5.0), (8, 8, 0.0), (3, 6, -3.0), (9, 5, 4.0)]
        ]
    )
    report = curate.length_report(rows, chosen_score="chosen_score", rejected_score="rejected_score")
    assert report == (4, 0.5, 0.25, 7.5, 6.0, pytest.approx(1.0))
    assert math.isnan(curate.length_report(rows).correlation)


def test_a_correlation_needs_something_that_varies():
    rows = [{"chosen_length": 3, "rejected_length": 2, "a": float(i), "b": 0.0} for i in range(3)]
    assert math.isnan(curate.length_report(rows, chosen_score="a", rejected_score="b").correlation)


def test_drift_of_samples_from_a_known_policy(make):
    """Tokens drawn from π = (.8, .2) with reference (.5, .5): KL per token is Σ π log(π / π_ref)."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 60, 4000)
    ones = rng.binomial(lengths, 0.8)
    policy = ones * math.log(0.8) + (lengths - ones) * math.log(0.2)
    rows = make(
        [
            {"logps": p, "ref_logps": n * math.log(0.5), "length": n}
            for p, n in zip(policy.tolist(), lengths.tolist(), strict=True)
        ]
    )
    report = curate.drift_report(rows)
    per_token = 0.8 * math.log(1.6) + 0.2 * math.log(0.4)
    assert report.samples == 4000
    assert report.kl_per_token == pytest.approx(per_token, rel=0.02)
    assert report.kl == pytest.approx(per_token * report.length_mean, abs=4 * report.kl_error)
    assert report.length_line.slope == pytest.approx(per_token, rel=0.05)
    assert 0.2 < report.length_line.r_squared < 1.0


def test_drift_of_one_sample():
    report = curate.drift_report([{"logps": -3.0, "ref_logps": -5.0, "length": 4}])
    assert (report.kl, report.kl_per_token, report.length_line) == (2.0, 0.5, None)
    assert math.isnan(report.kl_error)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: curate.length_report([]), "^rows: expected at least one pair"),
        (lambda: curate.drift_report([]), "^rows: expected at least one response"),
        (
            lambda: curate.length_report([{"chosen_length": 1, "rejected_length": 1}], chosen_score="s"),
            "^chosen_score, rejected_score: expected both or neither",
        ),
        (
            lambda: curate.drift_report([{"logps": 0.0, "ref_logps": 0.0, "length": 0}]),
            "^length: expected numbers above 0, got 0.0 in row 0",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
