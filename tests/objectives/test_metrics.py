"""Metrics and what is made of rewards: worked numbers, identities, and the same by loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from prefuse import metrics, objectives, squared_errors
from prefuse.objectives import advantages


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


# --- general.md, ranking-accuracy ---------------------------------------------------------------------------------


def test_ranking_accuracy():
    chosen, rejected = tensor(-12.0, -3.0, -5.0), tensor(-15.0, -2.0, -5.0)
    assert metrics.ranking_accuracy(chosen, rejected) == pytest.approx(2 / 3)  # a tie is right
    lengths = {"chosen_lengths": tensor(10, 3, 5), "rejected_lengths": tensor(10, 1, 5)}
    assert metrics.ranking_accuracy(chosen, rejected, **lengths) == 1.0
    lengths["rejected_lengths"] = tensor(20, 2, 6)
    assert metrics.ranking_accuracy(chosen, rejected, **lengths) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="chosen_lengths alone"):
        metrics.ranking_accuracy(chosen, rejected, chosen_lengths=tensor(1, 1, 1))


def test_list_ranking_accuracy():
    logps = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -3.0, -2.0]])
    assert metrics.list_ranking_accuracy(logps, torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])) == 0.5


def test_idealised_ranking_accuracy():
    odds = metrics.idealised_log_odds(tensor(-13.0), tensor(-14.5), 0.75, beta=0.1)
    assert odds.item() == pytest.approx(12.486123, abs=1e-6)
    ref_w, ref_l = tensor(-13.0, -30.0), tensor(-14.5, -10.0)
    assert metrics.idealised_ranking_accuracy(ref_w, ref_l, 0.75, beta=0.1) == 0.5
    assert metrics.idealised_ranking_accuracy(ref_w, ref_l, 0.999, beta=0.1) == 1.0
    per_token = {"chosen_lengths": tensor(13, 30), "rejected_lengths": tensor(10, 10)}
    assert metrics.idealised_ranking_accuracy(ref_w, ref_l, 0.5, **per_token) == 0.5


def test_ranking_threshold_decides_the_ranking():
    assert metrics.ranking_threshold(tensor(-5.0), tensor(0.0)).item() == pytest.approx(0.474077, abs=1e-6)
    assert metrics.ranking_threshold(tensor(-30.0), tensor(0.0)).item() == pytest.approx(0.048587, abs=1e-6)
    assert metrics.ranking_threshold(tensor(-13.0), tensor(-14.5)).item() == pytest.approx(0.770957, abs=1e-6)
    rng = np.random.default_rng(5)
    names = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    columns = {name: torch.tensor(rng.normal(-20, 5, 4000)) for name in names}
    losses = objectives.dpo(beta=0.1)(**columns).losses
    threshold = metrics.ranking_threshold(columns["ref_chosen_logps"], columns["ref_rejected_logps"], beta=0.1)
    assert torch.equal(losses <= threshold, columns["chosen_logps"] >= columns["rejected_logps"])
    accuracy = metrics.implicit_reward_accuracy(*columns.values())
    assert accuracy == pytest.approx(objectives.dpo(**columns).metrics["rewards/accuracies"])


# --- KL, credit, length, over-optimisation --------------------------------------------------------------------------


def test_kl_estimates():
    logps, ref = tensor(-1.0, -2.0), tensor(-1.5, -1.7)
    h = logps - ref
    assert torch.equal(metrics.kl_estimate(logps, ref, estimator="k1"), h)
    assert_allclose(metrics.kl_estimate(logps, ref, estimator="k2"), h**2 / 2)
    assert_allclose(metrics.kl_estimate(logps, ref), torch.exp(-h) + h - 1)
    with pytest.raises(ValueError, match="k4"):
        metrics.kl_estimate(logps, ref, estimator="k4")


def test_kl_estimates_average_to_the_divergence():
    p, q = tensor(0.5, 0.3, 0.2), tensor(0.2, 0.3, 0.5)
    exact = float((p * (p / q).log()).sum())
    for estimator in ("k1", "k3"):  # unbiased
        assert float((p * metrics.kl_estimate(p.log(), q.log(), estimator=estimator)).sum()) == pytest.approx(exact)


def test_token_advantages_of_the_exact_tree():
    """token_rl_data.md, r2Q: β h of the optimal policy is reward plus the change of value."""
    reward, beta = {"0": 0.2, "1": 0.0, "00": 0.1, "01": 1.0, "10": 0.5, "11": -0.3}, 0.5
    ref = {"0": 0.6, "1": 0.4, "00": 0.5, "01": 0.5, "10": 0.7, "11": 0.3}
    value = {s: beta * math.log(sum(ref[s + a] * math.exp(reward[s + a] / beta) for a in "01")) for s in "01"}
    root = beta * math.log(sum(ref[s] * math.exp((reward[s] + value[s]) / beta) for s in "01"))
    policy = {s: ref[s] * math.exp((reward[s] + value[s] - root) / beta) for s in "01"}
    policy |= {s + a: ref[s + a] * math.exp((reward[s + a] - value[s]) / beta) for s in "01" for a in "01"}
    expected = {"00": [0.158206, -0.629915], "01": [0.158206, 0.270085]}
    expected |= {"10": [-0.408554, 0.136844], "11": [-0.408554, -0.663156]}
    for path, numbers in expected.items():
        logps, refs = tensor(policy[path[0]], policy[path]).log(), tensor(ref[path[0]], ref[path]).log()
        found = metrics.token_advantages(logps, refs, beta=beta)
        assert_allclose(found, numbers, atol=1e-6)
        assert float(found.sum()) == pytest.approx(reward[path[0]] + reward[path] - root)


def test_length_extrapolation():
    lengths = torch.tensor([1, 2, 5, 9])
    line = metrics.length_extrapolation(0.3 * lengths - 2.0, lengths)
    assert line == pytest.approx((0.3, -2.0, 1.0))
    noisy = metrics.length_extrapolation(tensor(1.0, -1.0, 1.0, -1.0), lengths)
    assert noisy.r_squared == pytest.approx(np.corrcoef([1, -1, 1, -1], lengths.numpy())[0, 1] ** 2)
    with pytest.raises(ValueError, match="two different"):
        metrics.length_extrapolation(tensor(1.0, 2.0), tensor(3.0, 3.0))


def test_overoptimisation_fit():  # general.md, daa-scaling
    fit = metrics.OveroptimisationFit(0.2, 0.08)
    kl = tensor(1.0, 4.0, 9.0, 25.0)
    assert_allclose(fit(kl), [0.2, 0.289096, 0.336333, 0.356225], atol=1e-6)
    assert fit.optimum == pytest.approx(4.481689, abs=1e-6)
    assert metrics.fit_overoptimisation(kl, fit(kl)) == pytest.approx((0.2, 0.08))
    with pytest.raises(ValueError, match="above 0"):
        metrics.fit_overoptimisation(tensor(0.0, 1.0), tensor(0.0, 1.0))


# --- rewards and advantages -----------------------------------------------------------------------------------------


def test_generalized_advantages():
    """token_rl_data.md, RTO: rewards 0.019, -0.048, 1.502; the second response has tokens left out and padding."""
    rewards = torch.tensor([[0.019, -0.048, 1.502, 9.0], [0.019, float("nan"), -0.048, 1.502]], dtype=torch.float64)
    values = torch.tensor([[0.5, 0.6, 0.7, 9.0], [0.5, 7.0, 0.6, 0.7]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False], [True, False, True, True]])
    found, returns = advantages.generalized_advantages(rewards, values, mask)
    numbers = [0.892205, 0.813900, 0.802000]
    assert_allclose(found, [[*numbers, 0.0], [numbers[0], 0.0, *numbers[1:]]], atol=1e-6)
    assert_allclose(returns[0], [1.392205, 1.413900, 1.502000, 0.0], atol=1e-6)
    monte_carlo, _ = advantages.generalized_advantages(rewards, 0 * values, mask, smoothing=1.0)
    assert float(monte_carlo[0, 0]) == pytest.approx(0.019 - 0.048 + 1.502)
    with pytest.raises(ValueError, match="values: expected shape"):
        advantages.generalized_advantages(rewards, values[:, :2], mask)


def test_token_rewards():
    logps, ref = torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[-1.5, -2.5, 0.0]])
    found = advantages.token_rewards(
        torch.tensor([1.5]), logps, ref, torch.tensor([[True, True, False]]), kl_weight=0.1
    )
    assert_allclose(found, [[-0.05, 1.45, 0.0]], atol=1e-6)
    with pytest.raises(ValueError, match="scores"):
        advantages.token_rewards(torch.zeros(2), logps, ref, torch.ones(1, 3))


def test_whiten():
    x, mask = torch.tensor([[1.0, 2.0, 99.0], [3.0, 6.0, 99.0]]), torch.tensor([[1, 1, 0], [1, 1, 0]]).bool()
    found = advantages.whiten(x, mask)
    kept = found[mask]
    assert_allclose([kept.mean(), kept.var(correction=0), found[0, 2]], [0.0, 1.0, 0.0], atol=1e-6)
    assert_allclose(advantages.whiten(x, mask, unbiased=True)[mask].var(), 1.0, atol=1e-6)


def test_running_moments():  # token_rl_data.md, PPO-max
    moments = advantages.RunningMoments()
    assert moments.std == 1.0
    moments.update(tensor(1.0, 2.0, 3.0, 4.0))
    assert (moments.mean, moments.std) == pytest.approx((2.5, 1.290994), abs=1e-6)
    moments.update(tensor())
    moments.update(tensor(0.0, 10.0))
    assert (moments.mean, moments.std) == pytest.approx((3.333333, 3.559026), abs=1e-6)
    assert_allclose(moments.scaled(tensor(0.0, 10.0)), [0.0, 2.809757], atol=1e-6)
    assert_allclose(moments.scaled(tensor(0.0, 10.0), center=True), [-0.936586, 1.873172], atol=1e-6)
    assert_allclose(moments.scaled(tensor(0.0, 10.0), center=True, clip=1.0), [-0.936586, 1.0], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 0.9),
        ({"combine": "worst"}, -0.5),
        ({"combine": "uncertainty"}, 0.53),
        ({"combine": "uncertainty", "weight": 0.1}, 0.826),
        ({"combine": "uncertainty", "weight": 0.1, "unbiased": True}, 0.8075),
        ({"combine": "uncertainty", "weight": 0.0}, 0.9),
    ],
)
def test_ensemble_reward(options, expected):  # token_rl_data.md, RM-ensembles
    scores = tensor(1.0, 0.5, 2.0, 1.5, -0.5)
    assert float(advantages.ensemble_reward(scores, **options)) == pytest.approx(expected)
    same = float(advantages.ensemble_reward(tensor(0.7), **options))
    assert same == pytest.approx(0.7)  # one model


def test_ensemble_reward_of_an_unknown_kind():
    with pytest.raises(ValueError, match="median"):
        advantages.ensemble_reward(tensor(1.0), combine="median")


def test_overlong_penalty():
    found = advantages.overlong_penalty(torch.tensor([50, 80, 90, 100, 200]), max_length=100, buffer=20)
    assert_allclose(found, [0.0, 0.0, -0.5, -1.0, -1.0])


# --- what diffusion models give instead of log-probabilities ----------------------------------------------------------


def test_diffusion_dpo_pulls_back_to_predictions():
    generator = torch.Generator().manual_seed(1)
    noise, predicted, reference = (torch.randn(2, 3, 5, generator=generator) for _ in range(3))
    predicted.requires_grad_()
    error, ref_error = squared_errors(predicted, noise), squared_errors(reference, noise)
    columns = {"chosen_error": error[:1], "rejected_error": error[1:]}
    columns |= {"chosen_ref_error": ref_error[:1], "rejected_ref_error": ref_error[1:]}
    objectives.diffusion_dpo(beta=2.0)(**columns).loss.backward()
    d = (predicted - noise).square().mean((1, 2)) - ref_error
    (expected,) = torch.autograd.grad(-torch.nn.functional.logsigmoid(-2.0 * (d[0] - d[1])), predicted)
    assert_allclose(predicted.grad, expected, rtol=1e-5, atol=1e-7)
