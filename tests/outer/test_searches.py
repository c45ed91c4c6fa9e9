"""Rank descent, OPPO's losses, beam search."""

import itertools
import math

import pytest
import torch

from prefuse.outer import (
    beam_search,
    hindsight_matching_loss,
    hindsight_preference_loss,
    oppo_loss,
    rank_descent_step,
    rank_gradient,
    unit_norm_penalty,
)

# ZO-RankSGD

COMPASS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])


def test_a_known_rank_gradient():
    estimate = rank_gradient(COMPASS, torch.tensor([2, 1]))
    assert estimate.tolist() == pytest.approx([1.0, -0.6])


@pytest.mark.parametrize("ranked", [1, 3, 6])
def test_the_estimate_is_the_mean_over_known_comparisons(ranked):
    torch.manual_seed(ranked)
    directions, order = torch.randn(6, 2, 3, dtype=torch.float64), torch.randperm(6)
    place = {index: place for place, index in enumerate(order[:ranked].tolist())}
    edges = [(i, j) for i, j in itertools.permutations(range(6), 2) if i in place and place.get(j, 99) > place[i]]
    expected = torch.stack([directions[j] - directions[i] for i, j in edges]).mean(0)
    torch.testing.assert_close(rank_gradient(directions, order[:ranked]), expected)


@pytest.mark.parametrize("ranking", [[0, 0], [4], [-1], []])
def test_rankings_that_are_none(ranking):
    with pytest.raises(ValueError, match="ranking"):
        rank_gradient(COMPASS, torch.tensor(ranking, dtype=torch.int64))


@pytest.mark.parametrize("known", [1, 3, 10])
def test_rankings_alone_descend_a_quadratic(known):
    generator = torch.Generator().manual_seed(0)
    x = torch.ones(20, dtype=torch.float64)

    def rank(candidates):
        return candidates.square().sum(1).argsort()[:known]

    for t in range(300):
        x = rank_descent_step(x, rank, step=0.3 / math.sqrt(1 + t), generator=generator)
    assert x.square().sum() < 0.1  # from 20


def test_the_line_search_takes_the_oracle_s_best_step():
    x = torch.ones(3)
    taken = rank_descent_step(
        x,
        lambda candidates: candidates.square().sum(1).argsort(),
        step=64.0,
        line_search=8,
        generator=torch.Generator(),
    )
    assert taken.square().sum() < x.square().sum()


# OPPO


def test_hindsight_losses_by_hand():
    predicted, actions = torch.tensor([[[1.0, 0.0], [5.0, 5.0]]]), torch.tensor([[[0.0, 0.0], [0.0, 0.0]]])
    assert hindsight_matching_loss(predicted, actions, torch.tensor([[True, False]])) == 0.5
    assert hindsight_matching_loss(predicted, actions) == pytest.approx(51 / 4)
    optimum = torch.tensor([0.0, 0.0])
    preferred, other = torch.tensor([[0.0, 3.0], [1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 4.0]])
    # max(0, 3 - 2 + 1) = 2 and max(0, 1 - 4 + 1) = 0
    assert hindsight_preference_loss(optimum, preferred, other) == pytest.approx(1.0, abs=1e-5)
    assert unit_norm_penalty(preferred, other) == pytest.approx((4 + 0) / 2 + (1 + 9) / 2)


def test_oppo_holds_the_optimum_and_the_second_step_moves_it():
    torch.manual_seed(0)
    optimum = torch.randn(4, requires_grad=True)
    preferred, other = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    total = oppo_loss(torch.tensor(2.0), optimum, preferred, other)
    parts = hindsight_preference_loss(optimum, preferred, other) + unit_norm_penalty(optimum, preferred, other)
    assert total.item() == pytest.approx(2.0 + 0.1 * parts.item())
    total.backward()
    assert optimum.grad is None
    assert preferred.grad.abs().sum() > 0
    hindsight_preference_loss(optimum, preferred.detach(), other.detach(), margin=10.0).backward()
    assert optimum.grad.abs().sum() > 0


def test_oppo_s_shapes():
    with pytest.raises(ValueError, match="expected"):
        hindsight_preference_loss(torch.zeros(3), torch.zeros(2, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="mask"):
        hindsight_matching_loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.ones(1, 3))
    with pytest.raises(ValueError, match="predicted"):
        hindsight_matching_loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, 1))


# Beam search


def table_model(seed, vocabulary, length):
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(vocabulary ** (length + 1), vocabulary, generator=generator).log_softmax(-1)

    def next_logps(tokens):
        rows = torch.zeros(len(tokens), dtype=torch.int64)
        for column in tokens.T:
            rows = rows * vocabulary + column + 1
        return table[rows % len(table)]

    return next_logps


def score_of(next_logps, prompt, tokens, end=None):
    total, prefix = 0.0, list(prompt)
    for token in tokens:
        total += next_logps(torch.tensor([prefix]))[0, token].item()
        prefix.append(token)
        if token == end:
            break
    return total


@pytest.mark.parametrize("seed", range(3))
def test_a_beam_as_wide_as_the_tree_is_exhaustive(seed):
    model, prompt = table_model(seed, 3, 4), torch.tensor([0, 1])
    found = beam_search(model, prompt, width=27, length=3)
    every = sorted((score_of(model, [0, 1], tokens), tokens) for tokens in itertools.product(range(3), repeat=3))[::-1]
    assert [tuple(tokens) for tokens in found.tokens.tolist()] == [tokens for _, tokens in every]
    assert found.logps.tolist() == pytest.approx([score for score, _ in every], abs=1e-5)
    assert found.lengths.tolist() == [3] * 27


def test_width_one_is_greedy_and_wider_is_never_worse():
    model, prompt = table_model(5, 4, 4), torch.tensor([2])
    greedy = beam_search(model, prompt, width=1, length=4)
    tokens = [2]
    for _ in range(4):
        tokens.append(int(model(torch.tensor([tokens]))[0].argmax()))
    assert greedy.tokens[0].tolist() == tokens[1:]
    best = [beam_search(model, prompt, width=width, length=4).logps[0].item() for width in (1, 4, 256)]
    assert best == sorted(best)


def test_complete_sequences_keep_their_score():
    model, prompt, end = table_model(1, 3, 4), torch.tensor([1]), 0
    found = beam_search(model, prompt, width=40, length=3, end=end)
    complete = {(0,), *itertools.product((1, 2), (0,)), *itertools.product((1, 2), (1, 2), (0, 1, 2))}
    assert len(found.tokens) == len(complete)
    for tokens, score, length in zip(found.tokens.tolist(), found.logps.tolist(), found.lengths.tolist(), strict=True):
        assert tuple(tokens[:length]) in complete
        assert set(tokens[length:]) <= {end}
        assert score == pytest.approx(score_of(model, [1], tokens[:length], end), abs=1e-5)


def test_likelihood_search_on_the_optimal_policy_finds_the_best_regularised_return():
    """From r to Q*, section 4: the tree's optimal policy ranks sequences by reward and reference together."""
    root, after = torch.tensor([0.823317, 0.176683]), torch.tensor([[0.141851, 0.858149], [0.920364, 0.079636]])

    def next_logps(tokens):
        return root.log().expand(len(tokens), 2) if tokens.shape[1] == 1 else after[tokens[:, 1]].log()

    found = beam_search(next_logps, torch.tensor([0]), width=4, length=2)
    assert found.tokens.tolist() == [[0, 1], [1, 0], [0, 0], [1, 1]]
    assert found.logps.exp().tolist() == pytest.approx([0.706529, 0.162613, 0.116788, 0.014070], abs=1e-6)


def test_banned_tokens_and_bad_sizes():
    found = beam_search(
        lambda tokens: torch.tensor([0.0, -math.inf]).expand(len(tokens), 2), torch.tensor([0]), length=2
    )
    assert found.tokens.tolist() == [[0, 0]]
    with pytest.raises(ValueError, match="width"):
        beam_search(lambda tokens: tokens, torch.tensor([0]), width=0, length=1)
