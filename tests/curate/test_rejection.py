"""Statistical rejection sampling: its law, its limits, and the pairs made of its samples."""

import numpy as np
import pytest
import torch

from prefuse import curate
from tests.curate.kinds import as_dicts, responses, texts


def drawn(scores, **options):
    return curate.rejection_sampling_indices(np.array(scores), np.zeros(len(scores), np.int64), **options).tolist()


def one_by_one(scores, keep, beta, uniform):
    """The paper's algorithm 1, sweep by sweep, with a list for what is left."""
    left, accepted = list(range(len(scores))), []
    while left and len(accepted) < keep:
        highest = max(scores[index] for index in left)
        draws = uniform(len(left))
        for index, draw in zip(list(left), draws, strict=True):
            if len(accepted) < keep and draw < np.exp((scores[index] - highest) / beta):
                accepted.append(index)
                left.remove(index)
    return accepted


@pytest.mark.parametrize("seed", range(20))
def test_one_group_as_the_algorithm_says(seed):
    scores = np.random.default_rng(seed).normal(size=30)
    expected = one_by_one(scores, 8, 0.5, np.random.default_rng(seed + 100).random)
    assert drawn(scores, keep=8, beta=0.5, seed=seed + 100) == expected


def test_acceptance_is_exponential_in_the_score():
    """r = (1, 0.5, 0), β = 0.5: the first sweep accepts with (1, 0.367879, 0.135335)."""
    groups = np.repeat(np.arange(20_000), 3)
    scores = np.tile([1.0, 0.5, 0.0], 20_000)
    # Of a first sweep that accepts 2 or more, the second is the 0.5 if it was accepted at all.
    kept = curate.rejection_sampling_indices(scores, groups, keep=1, beta=0.5, seed=0)
    assert (scores[kept] == 1.0).all()
    order = np.tile([0.5, 0.0, 1.0], 20_000)
    first = order[curate.rejection_sampling_indices(order, groups, keep=1, beta=0.5, seed=0)]
    share = [(first == score).mean() for score in (0.5, 0.0, 1.0)]
    expected = [0.367879, (1 - 0.367879) * 0.135335, (1 - 0.367879) * (1 - 0.135335)]
    np.testing.assert_allclose(share, expected, atol=0.015)


def test_samples_of_the_optimal_policy():
    """Four responses with SFT probabilities (.5, .3, .15, .05) and r = (0, .5, 1, 1.2): accepted ∝ π e^{r/β}."""
    rng = np.random.default_rng(5)
    sft, reward = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.0, 0.5, 1.0, 1.2])
    draws = rng.choice(4, size=(4000, 64), p=sft)
    kept = curate.rejection_sampling_indices(
        reward[draws].ravel(), np.repeat(np.arange(4000), 64), keep=2, beta=0.5, seed=1
    )
    share = np.bincount(draws.ravel()[kept], minlength=4) / len(kept)
    np.testing.assert_allclose(share, [0.16807, 0.27411, 0.37256, 0.18526], atol=0.02)


def test_temperature_zero_takes_the_best():
    assert drawn([1.0, 3.0, 2.0, 3.0], keep=3, beta=0.0) == [1, 3, 2]
    # The next to lowest temperatures come to the same, without a warning about dividing.
    assert sorted(drawn([1.0, 3.0, 2.0, 3.0], keep=3, beta=1e-300)) == [1, 2, 3]


def test_duplicates_and_small_groups_are_kept_whole():
    assert sorted(drawn([1.0, 1.0], keep=8)) == [0, 1]
    assert drawn([1.0] * 5, keep=2) == [0, 1]
    assert drawn([], keep=2) == []


def test_same_seed_same_samples(make):
    rng = np.random.default_rng(0)
    rows = make(responses({str(prompt): rng.normal(size=9).tolist() for prompt in range(5)}))
    once, again, other = (as_dicts(curate.rejection_sampling(rows, keep=3, seed=seed)) for seed in (4, 4, 5))
    assert once == again
    assert once != other
    assert len(once) == 15
    assert as_dicts(curate.rejection_sampling(rows, keep=3, seed=np.random.default_rng(4))) == once


def test_tensors_in_tensors_out():
    kept = curate.rejection_sampling_indices(torch.tensor([1.0, 5.0]), torch.tensor([3, 9]), keep=1)
    assert torch.equal(kept, torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keep": 0}, ValueError, "^keep: expected an int >= 1, got 0"),
        ({"beta": -1.0}, ValueError, "^beta: expected a number >= 0"),
        ({"seed": 1.5}, TypeError, "^seed: expected an int or a numpy.random.Generator, got float"),
        ({"seed": None}, TypeError, "^seed: expected an int"),
        ({"seed": -1}, ValueError, "^seed: expected an int >= 0"),
    ],
)
def test_bad_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        drawn([1.0, 2.0], **options)


def test_first_round_uses_each_response_once(make):
    rows = make(responses({"a": [float(score) for score in range(8)], "b": [1.0, 2.0, 3.0]}))
    pairs = texts(curate.first_round_pairs(rows, seed=2))
    assert len(pairs) == 5
    assert len({response for pair in pairs for response in pair}) == 10
    assert all(int(chosen[1]) > int(rejected[1]) for chosen, rejected in pairs)
    assert pairs != texts(curate.first_round_pairs(rows, seed=3))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13])
def test_a_tournament_has_one_winner(size):
    rows = responses({"a": [float(score) for score in range(size)]})
    pairs = texts(curate.tournament_pairs(rows, seed=size))
    losers = [rejected for _, rejected in pairs]
    assert len(pairs) == size - 1
    assert sorted(losers) == sorted({row["response"] for row in rows} - {f"a{size - 1}"})


def test_equals_make_no_pair_and_the_first_goes_on():
    rows = responses({"a": [2.0, 2.0, 2.0, 2.0, 1.0]})
    assert [pair[1] for pair in texts(curate.tournament_pairs(rows, seed=0))] == ["a4"]


def test_a_judge_decides_round_by_round(make):
    """A judge who prefers the shorter; the scores say otherwise and are not read."""
    rows = make([{"prompt": "x", "response": "y" * length, "score": float("nan")} for length in range(1, 9)])
    rounds = []

    def shorter(first, second):
        assert type(first) is type(rows)
        rounds.append(len(first))
        return [len(a["response"]) < len(b["response"]) for a, b in zip(as_dicts(first), as_dicts(second), strict=True)]

    pairs = texts(curate.tournament_pairs(rows, judge=shorter))
    assert rounds == [4, 2, 1]
    assert all(len(chosen) < len(rejected) for chosen, rejected in pairs)
    assert pairs[-1][0] == "y"


@pytest.mark.parametrize(
    ("answers", "error", "message"),
    [
        ([], ValueError, "^judge: expected it to return 1 items, one for each, got 0"),
        ([1.5], ValueError, r"^judge: 1.5 at \[0\], expected probabilities"),
        ([float("nan")], ValueError, "^judge: nan"),
        (["first"], TypeError, "^judge: expected numbers, got 'first'"),
    ],
)
def test_a_judge_answers_in_probabilities(answers, error, message):
    with pytest.raises(error, match=message):
        curate.first_round_pairs(responses({"a": [1.0, 2.0]}), judge=lambda first, second: answers)
