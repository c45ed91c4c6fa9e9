"""Rounds, extragradient steps, fast and slow learners, HyPO, self-improvement."""

import math

import pytest
import torch
from torch import nn

from prefuse import objectives
from prefuse.outer import (
    FastSlow,
    Learner,
    all_pairs,
    best_and_worst,
    extragradient_step,
    growing_rounds,
    hypo_loss,
    hypo_steps,
    knockout,
    preference_rounds,
    run_rounds,
    self_improve,
    win_matrix,
)

CYCLE = torch.tensor([[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]], dtype=torch.float64)


class Tabular(nn.Module):
    """A policy over a few responses whose weights are its logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.as_tensor(logits, dtype=torch.float64).clone())

    @property
    def logps(self):
        return self.logits.log_softmax(-1)


# Rounds


def test_each_round_refers_to_the_policy_it_began_with():
    policy = Tabular([0.0, 0.0])
    seen = []

    def step(current):
        seen.append((current.number, current.previous.logits.tolist()))
        assert current.policy is policy
        assert current.previous.logits.tolist() == policy.logits.tolist()
        assert not current.previous.logits.requires_grad
        with torch.no_grad():
            policy.logits[0] += 1.0
        return policy.logits[0].item()

    assert run_rounds(policy, step, rounds=3) == [1.0, 2.0, 3.0]
    assert seen == [(0, [0.0, 0.0]), (1, [1.0, 0.0]), (2, [2.0, 0.0])]


def test_accelerated_rounds_reach_the_theorem_s_policy():
    reward = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0], dtype=torch.float64)
    policy = Tabular(torch.zeros(5))

    def solve(current):  # the exact minimiser of DPO against the round's reference, β = 1
        with torch.no_grad():
            policy.logits.copy_(current.previous.logits + reward)
        return policy.logps.exp().detach()

    final = run_rounds(policy, solve, rounds=4, acceleration=0.3)[-1]
    expected = torch.tensor([0.684572, 0.246508, 0.053266, 0.011510, 0.004145], dtype=torch.float64)
    torch.testing.assert_close(final, expected, rtol=0, atol=1e-6)
    coefficient = sum((1 - 0.3 ** (4 - i)) / 0.7 for i in range(4))  # of the reward, after 4 rounds
    torch.testing.assert_close(final, (coefficient * reward).softmax(0))


def test_rounds_are_checked():
    with pytest.raises(ValueError, match="rounds: expected at least 1, got 0"):
        run_rounds(Tabular([0.0]), lambda current: None, rounds=0)
    with pytest.raises(ValueError, match="acceleration"):
        run_rounds(Tabular([0.0]), lambda current: None, acceleration=-0.1)
    with pytest.raises(ValueError, match="rounds"):
        growing_rounds(lambda number: [], len, rounds=0)


def test_preference_rounds_of_sppo_take_its_exact_step():
    """The pair's two squares are zero together: each log-ratio is (P - ½)/β, and the third arm takes the rest."""
    wins, beta = torch.tensor([[0.5, 0.9, 0.7], [0.1, 0.5, 0.4], [0.3, 0.6, 0.5]], dtype=torch.float64), 0.5
    policy = Tabular(torch.zeros(3))

    def train(current, responses, selection):
        columns = {
            "ref_chosen_logps": current.previous.logps[responses[selection.prompts, selection.chosen]],
            "ref_rejected_logps": current.previous.logps[responses[selection.prompts, selection.rejected]],
            "chosen_win_prob": selection.chosen_win_prob,
            "rejected_win_prob": selection.rejected_win_prob,
        }
        optimizer = torch.optim.LBFGS(policy.parameters(), max_iter=200, tolerance_grad=1e-12, tolerance_change=0.0)

        def loss():
            optimizer.zero_grad()
            logps = policy.logps
            value = objectives.sppo(
                chosen_logps=logps[responses[selection.prompts, selection.chosen]],
                rejected_logps=logps[responses[selection.prompts, selection.rejected]],
                **columns,
                beta=beta,
            ).loss
            value.backward()
            return value

        optimizer.step(loss)
        return policy.logps.detach()

    (logps,) = preference_rounds(
        policy,
        sample=lambda current: torch.arange(3)[None],
        judge=lambda responses: wins[responses[:, :, None], responses[:, None, :]],
        select=best_and_worst,
        train=train,
        rounds=1,
    )
    ratio = logps - math.log(1 / 3)
    rates = wins.mean(1)
    assert ratio[0].item() == pytest.approx((rates[0].item() - 0.5) / beta, abs=1e-6)
    assert ratio[1].item() == pytest.approx((rates[1].item() - 0.5) / beta, abs=1e-6)


def test_growing_rounds_refit_on_everything_so_far():
    sizes = growing_rounds(lambda number: [number] * (number + 1), lambda pairs: list(pairs), rounds=3)
    assert sizes == [[0], [0, 1, 1], [0, 1, 1, 2, 2, 2]]


# Selection


def test_win_matrices_of_scores():
    wins = win_matrix(torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(wins, torch.tensor([[0.5, 0.731059], [0.268941, 0.5]]), rtol=0, atol=1e-6)
    torch.testing.assert_close(wins + wins.mT, torch.ones(2, 2))
    with pytest.raises(ValueError, match="temperature"):
        win_matrix(torch.zeros(2), temperature=0.0)


def test_best_and_worst_leaves_ties_out():
    wins = torch.stack([win_matrix(torch.tensor([0.0, 2.0, -1.0])), torch.full((3, 3), 0.5)])
    pairs = best_and_worst(wins)
    assert [pairs.prompts.tolist(), pairs.chosen.tolist(), pairs.rejected.tolist()] == [[0], [1], [2]]
    assert pairs.chosen_win_prob.item() == pytest.approx(wins[0, 1].mean().item())


def test_all_pairs_with_a_gap():
    wins = win_matrix(torch.tensor([[3.0, 0.0, -3.0]]))
    assert set(zip(all_pairs(wins).chosen.tolist(), all_pairs(wins).rejected.tolist(), strict=True)) == {
        (0, 1),
        (0, 2),
        (1, 2),
    }
    far = all_pairs(wins, gap=0.4)
    assert (far.chosen.tolist(), far.rejected.tolist()) == ([0], [2])
    assert len(all_pairs(torch.full((2, 4, 4), 0.5)).prompts) == 0


def test_knockout_finds_best_and_worst_of_a_transitive_preference():
    torch.manual_seed(0)
    scores = torch.randn(200, 8)
    pairs = knockout(win_matrix(scores))
    assert torch.equal(pairs.chosen, scores.argmax(1))
    assert torch.equal(pairs.rejected, scores.argmin(1))


def test_knockout_keeps_a_pair_only_if_its_best_beats_its_worst():
    wins = torch.full((1, 4, 4), 0.5)
    for winner, loser in ((0, 1), (2, 3), (0, 2), (1, 3), (3, 0)):  # 0 wins the cup, 3 comes last, and 3 beats 0
        wins[0, winner, loser], wins[0, loser, winner] = 0.9, 0.1
    assert len(knockout(wins).prompts) == 0
    wins[0, 0, 3], wins[0, 3, 0] = 0.9, 0.1
    assert (knockout(wins).chosen.item(), knockout(wins).rejected.item()) == (0, 3)


@pytest.mark.parametrize("select", [best_and_worst, all_pairs, knockout])
def test_selection_refuses_what_is_no_win_matrix(select):
    with pytest.raises(ValueError, match=r"expected shape \[prompts, K, K\], got \(2, 4\)"):
        select(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="probabilities"):
        select(torch.full((1, 4, 4), torch.nan))


def test_knockout_wants_a_power_of_two():
    with pytest.raises(ValueError, match="got 6"):
        knockout(torch.full((1, 6, 6), 0.5))


# EGPO


def game_step(theta, rate, beta, optimiser=torch.optim.SGD):
    policy, reference = Tabular(theta), Tabular(theta)
    optimizer = optimiser(policy.parameters(), lr=rate)
    first, second = torch.cartesian_prod(torch.arange(3), torch.arange(3)).T

    def loss(rates):
        logps, ref_logps = policy.logps, reference.logps.detach()
        return objectives.egpo(
            chosen_logps=logps[first],
            rejected_logps=logps[second],
            ref_chosen_logps=ref_logps[first],
            ref_rejected_logps=ref_logps[second],
            chosen_win_prob=rates[first],
            rejected_win_prob=rates[second],
            beta=beta,
        ).loss

    def targets():
        assert not torch.is_grad_enabled()
        return CYCLE @ policy.logps.exp()

    return policy, optimizer, targets, loss


def test_an_extragradient_step_on_rock_paper_scissors():
    policy, optimizer, targets, loss = game_step([1.0, 0.0, -1.0], 0.05, 0.1)
    losses = extragradient_step(policy, optimizer, targets, loss)
    assert losses == pytest.approx((8.860486, 10.116541), abs=1e-6)
    assert policy.logits.tolist() == pytest.approx([1.032620, -0.197759, -0.834861], abs=1e-6)


def test_the_step_to_the_midpoint_leaves_no_trace_in_the_optimiser():
    policy, optimizer, targets, loss = game_step([1.0, 0.0, -1.0], 0.05, 0.1, torch.optim.Adam)
    extragradient_step(policy, optimizer, targets, loss)
    assert optimizer.state[policy.logits]["step"] == 1


# Fast and slow


def learner(logits, rate):
    policy = Tabular(logits)
    return Learner(policy, torch.optim.SGD(policy.parameters(), lr=rate))


REFERENCE = torch.tensor([-0.7, -0.7], dtype=torch.float64)


def both(module):
    return module.logps[:1], module.logps[1:2]


def test_fast_and_slow_take_the_paper_s_gradients():
    beta, alpha = 0.5, 0.3
    fast, slow = learner([0.4, 0.0], 1.0), learner([0.1, 0.0], 1.0)
    pair = FastSlow(fast, slow, beta=beta, alpha=alpha, interval=100)
    losses = pair.step(both, REFERENCE[:1], REFERENCE[1:])
    margin = {"fast": 0.4, "slow": 0.1}  # of logits, and so of log-probabilities
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    chase = alpha * beta * sigmoid(-beta * (margin["fast"] - margin["slow"]))
    assert losses == pytest.approx([-math.log(sigmoid(beta * m)) for m in margin.values()])
    for module, m in ((fast.module, margin["fast"]), (slow.module, margin["slow"])):
        rise = beta * sigmoid(-beta * m) + chase  # of the chosen response's logit, by gradient descent of rate 1
        assert module.logits.tolist() == pytest.approx([m + rise, -rise])


def test_without_chase_they_are_two_dpo_runs():
    pair = FastSlow(learner([0.0, 0.0], 0.5), learner([0.0, 0.0], 0.1), beta=1.0, alpha=0.0)
    alone = learner([0.0, 0.0], 0.5)
    for _ in range(4):
        pair.step(both, REFERENCE[:1], REFERENCE[1:])
        alone.optimizer.zero_grad()
        chosen, rejected = both(alone.module)
        objectives.dpo(
            chosen_logps=chosen,
            rejected_logps=rejected,
            ref_chosen_logps=REFERENCE[:1],
            ref_rejected_logps=REFERENCE[1:],
            beta=1.0,
        ).loss.backward()
        alone.optimizer.step()
    assert pair.fast.module.logits.tolist() == pytest.approx(alone.module.logits.tolist(), rel=1e-14)
    assert pair.swaps == 0


def test_the_one_with_the_lower_loss_becomes_the_fast_one():
    behind, ahead = learner([-1.0, 0.0], 1e-3), learner([1.0, 0.0], 1e-3)
    pair = FastSlow(behind, ahead, interval=2)
    pair.step(both, REFERENCE[:1], REFERENCE[1:])
    assert pair.fast is behind
    pair.step(both, REFERENCE[:1], REFERENCE[1:])
    assert pair.fast is ahead
    assert pair.swaps == 1


def test_fast_and_slow_must_differ():
    one = learner([0.0, 0.0], 0.1)
    with pytest.raises(ValueError, match="same module"):
        FastSlow(one, one)


# HyPO


def test_hypo_without_samples_weight_is_dpo_and_its_kl_gradient_is_exact_in_expectation():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log().requires_grad_()
    logps, reference = logits.log_softmax(0), torch.full((4,), 0.25, dtype=torch.float64).log()
    pairs = {
        "chosen_logps": logps[:1],
        "rejected_logps": logps[1:2],
        "ref_chosen_logps": reference[:1],
        "ref_rejected_logps": reference[1:2],
    }
    # 100 prompts with two samples each: every pair of responses as often as the policy draws it
    counts = [round(100 * p * q) for p in (0.4, 0.3, 0.2, 0.1) for q in (0.4, 0.3, 0.2, 0.1)]
    drawn = torch.cartesian_prod(torch.arange(4), torch.arange(4)).repeat_interleave(torch.tensor(counts), 0)
    samples = {
        "logps": logps[drawn].flatten(),
        "ref_logps": reference[drawn].flatten(),
        "groups": torch.arange(100).repeat_interleave(2),
    }
    loss, offline = hypo_loss(pairs, samples, beta=0.1, weight=1.0)
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (dpo_gradient,) = torch.autograd.grad(offline.loss, logits, retain_graph=True)
    expected = torch.tensor([0.145425, 0.022764, -0.065917, -0.102273], dtype=torch.float64)
    torch.testing.assert_close(gradient - dpo_gradient, expected, rtol=0, atol=1e-6)
    alone, _ = hypo_loss(pairs, samples, beta=0.1, weight=0.0)
    torch.testing.assert_close(torch.autograd.grad(alone, logits)[0], dpo_gradient)


def test_hypo_steps_keep_mass_off_the_rejected_arm_only():
    """DPO alone empties every arm but the chosen one; with the KL the arms nobody compared keep theirs."""
    torch.manual_seed(0)
    reference = torch.full((4,), 0.25, dtype=torch.float64).log()

    def trained(weight):
        policy = Tabular(torch.zeros(4))
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.5)

        def pairs(batch):
            logps = policy.logps
            return {
                "chosen_logps": logps[:1],
                "rejected_logps": logps[1:2],
                "ref_chosen_logps": reference[:1],
                "ref_rejected_logps": reference[1:2],
            }

        def samples(batch):
            drawn = torch.multinomial(policy.logps.detach().exp(), 64, replacement=True)
            return {
                "logps": policy.logps[drawn],
                "ref_logps": reference[drawn],
                "groups": torch.zeros(64, dtype=torch.int64),
            }

        steps = hypo_steps(optimizer, range(300), pairs, samples, beta=1.0, weight=weight)
        losses = [score.loss.item() for score in steps]
        assert losses[0] == pytest.approx(math.log(2))
        assert losses[-1] < losses[0]
        return policy.logps.exp().detach()

    expected = torch.tensor([0.362277, 0.022922, 0.307401, 0.307401], dtype=torch.float64)
    torch.testing.assert_close(trained(1.0), expected, rtol=0, atol=0.04)
    assert trained(0.0)[0] > 0.6


def test_self_improvement_revises_the_latest_answer():
    answers = self_improve(["x"], lambda prompts: ["0"], lambda prompts, last: [last[0] + prompts[0]], revisions=3)
    assert answers == [["0"], ["0x"], ["0xx"], ["0xxx"]]
    assert len(self_improve([], lambda p: 0, lambda p, a: 1, revisions=0)) == 1
    with pytest.raises(ValueError, match="revisions"):
        self_improve([], lambda p: 0, lambda p, a: 1, revisions=-1)
