"""Directions, filters, win rates and ensembles: worked numbers and laws."""

import itertools
import math

import numpy as np
import pytest
import torch

from prefuse import curate
from tests.curate.kinds import as_dicts, responses

REWARDS = [[80.0, 60.0], [75.0, 30.0], [85.0, 90.0]]


def test_a_direction_worked():
    """θ = -15°: the second response wins, 64.68 against 61.74 and 58.81."""
    angle = math.radians(-15.0)
    direction = np.array([math.cos(angle), math.sin(angle)])
    assert curate.best_in_direction(np.array(REWARDS), direction) == 1
    assert curate.best_in_direction(np.array(REWARDS), 7.0 * direction) == 1
    assert curate.best_in_direction(np.array(REWARDS) + np.array([3.0, -8.0]), direction) == 1
    assert curate.best_in_direction(torch.tensor(REWARDS), torch.tensor([1.0, 0.0])).item() == 2
    batch = curate.best_in_direction(np.array([REWARDS, REWARDS]), np.array([[1.0, 0.0], direction]))
    assert batch.tolist() == [2, 1]


def test_directional_selection(make):
    rows = make([{"prompt": p, "response": f"{p}{k}", "rewards": r} for k, r in enumerate(REWARDS) for p in "xy"])
    kept = as_dicts(
        curate.directional_selection(rows, [[1.0, 0.0], [math.cos(-math.pi / 12), math.sin(-math.pi / 12)]])
    )
    assert [(row["prompt"], row["response"], row["weights"]) for row in kept] == [
        ("x", "x2", [100, 0]),
        ("y", "y1", [97, -26]),
    ]
    assert kept[0]["direction"] == [1.0, 0.0]
    assert [row["response"] for row in as_dicts(curate.directional_selection(rows, [0.0, -1.0]))] == ["x1", "y1"]


def test_directions_are_unit_and_within_range():
    drawn = curate.directions(1000, most=45.0, seed=0)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1.0)
    angles = np.degrees(np.arctan2(drawn[:, 1], drawn[:, 0]))
    assert -45.0 <= angles.min() < -44.0
    assert 44.0 < angles.max() <= 45.0
    np.testing.assert_array_equal(drawn, curate.directions(1000, seed=0))


def test_filter_weights_worked():
    scores, groups = np.array([0.2, 1.5, -0.3, 0.9, 1.1]), np.zeros(5, int)
    np.testing.assert_allclose(curate.filter_weights(scores, groups), [0.125, 0.5, 0.125, 0.125, 0.125])
    assert curate.filter_weights(scores, groups, rule="best_worst").tolist() == [0.0, 0.5, 0.5, 0.0, 0.0]
    assert curate.filter_weights(torch.tensor(scores), groups, rule="best").tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("rule", ["best", "best_random", "best_worst"])
def test_filter_weights_sum_to_one_over_each_group(rule):
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 6, 40)
    weights = curate.filter_weights(rng.integers(0, 3, 40).astype(float), groups, rule=rule)
    np.testing.assert_allclose(np.bincount(groups, weights), 1.0)
    assert (weights >= 0.0).all()


def test_filtered_rows(make):
    rows = make(responses({"a": [0.2, 1.5, -0.3, 0.9, 1.1], "b": [3.0]}))

    def kept(**options):
        return [row["response"] for row in as_dicts(curate.filtered(rows, **options))]

    assert kept(rule="best") == ["b0", "a1"]
    assert kept(rule="best_worst") == ["b0", "a1", "a2"]
    assert len(kept(rule="best_random", others=3)) == 5
    random = {response for seed in range(30) for response in kept(seed=seed)}
    assert random == {"a0", "a1", "a2", "a3", "a4", "b0"}
    assert all("a1" in kept(seed=seed) for seed in range(10))
    assert kept(seed=1) == kept(seed=1)
    assert kept(others=0) == kept(rule="best")


def test_a_filter_is_worth_its_fit():
    """Rewards that tell little in the middle of their range: the ends fit the truth better than all do."""
    rng = np.random.default_rng(0)
    rewards = np.round(rng.random(4000), 2)
    truth = np.where(np.abs(rewards - 0.5) < 0.3, rng.random(4000) < 0.5, rewards > 0.5)
    rows = [
        {"prompt": int(group), "score": reward, "truth": float(right)}
        for group, reward, right in zip(np.repeat(np.arange(500), 8), rewards, truth, strict=True)
    ]
    fit = {}
    for rule in ("all", "best_worst"):
        kept = rows if rule == "all" else curate.filtered(rows, rule=rule)
        fit[rule] = curate.reward_fit([row["score"] for row in kept], [row["truth"] for row in kept])
    assert fit["best_worst"] > fit["all"] + 0.02


def test_reward_fit_is_the_square_of_the_correlation():
    assert curate.reward_fit([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]) == pytest.approx(1.0)
    assert curate.reward_fit([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]) == 1.0
    x, y = [1.0, 2.0, 4.0], [3.0, 1.0, 2.0]
    assert curate.reward_fit(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)
    # Of repeated rewards the mean counts, as often as there are.
    repeated = np.corrcoef([*x, 4.0, 4.0], [*y, 2.0, 2.0])[0, 1] ** 2
    assert curate.reward_fit([*x, 4.0, 4.0], [*y, 0.0, 4.0]) == pytest.approx(repeated)


PREFERENCES = np.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]])


def test_win_rates_worked():
    np.testing.assert_allclose(curate.win_rates(PREFERENCES), [0.55, 0.45, 0.50])
    np.testing.assert_allclose(curate.win_rates(PREFERENCES, include_self=True), [0.533333, 0.466667, 0.5], atol=5e-7)
    batch = torch.tensor(np.stack([PREFERENCES, PREFERENCES.T]), dtype=torch.float32)
    torch.testing.assert_close(curate.win_rates(batch)[1], torch.tensor([0.45, 0.55, 0.5]))


def test_win_rates_under_bradley_terry_rank_as_the_reward_does():
    rng = np.random.default_rng(0)
    reward = rng.normal(size=(20, 7))
    rates = curate.win_rates(1.0 / (1.0 + np.exp(reward[:, None, :] - reward[:, :, None])))
    np.testing.assert_array_equal(rates.argsort(-1), reward.argsort(-1))
    np.testing.assert_allclose(rates.sum(-1), 3.5)


def test_added_win_rates_agree_with_the_matrix(make):
    order = [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2)]
    rows = make([{"prompt": prompt, "index": index} for prompt, index in order])
    asked = []

    def judge(first, second):
        pairs = list(zip(as_dicts(first), as_dicts(second), strict=True))
        asked.extend((a["prompt"], a["index"], b["index"]) for a, b in pairs)
        return torch.tensor([PREFERENCES[a["index"], b["index"]] for a, b in pairs])

    added = as_dicts(curate.add_win_rates(rows, judge))
    assert [row["win_prob"] for row in added] == pytest.approx([0.55, 0.9, 0.45, 0.1, 0.5])
    assert sorted(asked) == [("a", 0, 1), ("a", 0, 2), ("a", 1, 2), ("b", 0, 1)]
    with_self = as_dicts(curate.add_win_rates(rows, judge, include_self=True))
    assert [row["win_prob"] for row in with_self] == pytest.approx([1.6 / 3, 0.7, 1.4 / 3, 0.3, 0.5])


def test_ensemble_scores_worked(make):
    rows = make([{"r0": 1.0, "r1": 0.5, "r2": 2.0, "r3": 1.5, "r4": -0.5}])
    columns = [f"r{i}" for i in range(5)]

    def score(**options):
        return as_dicts(curate.ensemble_scores(rows, columns, **options))[0]["score"]

    assert score(combine="mean") == pytest.approx(0.9)
    assert score(combine="worst") == pytest.approx(-0.5)
    assert score() == pytest.approx(0.53)
    assert score(weight=0.1) == pytest.approx(0.826)
    assert score(weight=0.1, unbiased=True) == pytest.approx(0.8075)


def test_best_of_n_is_the_mean_over_all_choices():
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=7), rng.normal(size=7)
    for n in range(1, 8):
        picks = [max(choice, key=lambda i: proxy[i]) for choice in itertools.combinations(range(7), n)]
        assert curate.best_of_n(proxy, gold, n) == pytest.approx(gold[picks].mean())
    assert curate.best_of_n(np.stack([proxy, gold]), np.stack([gold, gold]), 7)[1] == pytest.approx(gold.max())


def test_uncertainty_outlasts_over_optimisation():
    """Gold N(0, 1), five proxies with heavy-tailed errors: one proxy's best of n falls again, UWO's does not."""
    rng = np.random.default_rng(0)
    gold = rng.normal(size=(200, 1000))
    proxies = gold[..., None] + rng.standard_t(3, size=(200, 1000, 5))
    cautious = proxies.mean(-1) - 0.5 * proxies.var(-1)
    curve = {
        name: [float(curate.best_of_n(proxy, gold, n).mean()) for n in (4, 16, 256)]
        for name, proxy in {"single": proxies[..., 0], "cautious": cautious}.items()
    }
    assert curve["single"][2] < curve["single"][1]
    assert curve["cautious"][0] < curve["cautious"][1] < curve["cautious"][2]


def test_best_of_n_kl():
    found = [curate.best_of_n_kl(n) for n in (1, 4, 16, 64, 256, 1000)]
    assert found == pytest.approx([0.0, 0.636, 1.835, 3.175, 4.549, 5.909], abs=5e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: curate.directions(2, most=200.0), r"^most: expected degrees in \[0, 180\]"),
        (lambda: curate.best_in_direction([[1.0, 2.0]], [1.0]), r"^direction: expected shape \(..., J\) or \(J,\)"),
        (lambda: curate.best_in_direction(np.zeros((0, 2)), [1.0, 0.0]), "^rewards: expected at least one response"),
        (
            lambda: curate.directional_selection([{"prompt": 1, "rewards": [1.0]}], [1.0, 0.0]),
            "^rewards: expected 2 numbers in each row, got 1",
        ),
        (
            lambda: curate.directional_selection([{"prompt": 1, "rewards": [1.0]}], [[1.0], [1.0]]),
            r"^direction: expected shape \(J,\) or \(1, J\)",
        ),
        (
            lambda: curate.directional_selection(
                [{"prompt": 1, "rewards": [1.0]}, {"prompt": 1, "rewards": [1.0, 2.0]}], [1.0]
            ),
            "^rewards: expected lists of equal lengths",
        ),
        (
            lambda: curate.filter_weights([1.0], [0], rule="worst"),
            '^rule: expected "best", "best_random" or "best_worst", got',
        ),
        (lambda: curate.filtered([], others=-1), "^others: expected an int >= 0"),
        (lambda: curate.reward_fit([1.0, 1.0], [0.0, 1.0]), "^rewards: expected at least two different ones, got 1"),
        (lambda: curate.reward_fit([1.0, 2.0], [0.0]), r"^truth: expected one per reward, shape \(2,\), got \(1,\)"),
        (
            lambda: curate.win_rates([[0.5, 0.9], [0.2, 0.5]]),
            r"^preferences: P\[i, j\] \+ P\[j, i\] is not 1 at \[0, 1\]",
        ),
        (lambda: curate.win_rates([[0.5]]), r"^preferences: expected shape \(..., K, K\) with K >= 2, got \(1, 1\)"),
        (
            lambda: curate.add_win_rates([{"prompt": 1}], lambda a, b: []),
            "^prompt: expected two responses or more .* in row 0",
        ),
        (lambda: curate.ensemble_scores([], []), "^columns: expected the names of one column or more, got none"),
        (lambda: curate.best_of_n([1.0, 2.0], [1.0, 2.0], 3), "^n: expected at most 2, the number of samples, got 3"),
        (lambda: curate.best_of_n([1.0, 2.0], [1.0], 1), r"^gold: expected the shape of proxy, \(2,\), got \(1,\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
