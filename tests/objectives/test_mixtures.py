"""Weights of groups, of types of annotators and of steps, against numbers from the formulas and plain loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from prefuse import objectives
from prefuse.objectives.mixtures import group_weights, responsibilities
from prefuse.objectives.steps import cosine_step_weights


def test_group_weights():
    """Mean losses .8 and .2 at a step of ½, by mpmath; a group without pairs keeps its odds against one of loss 0."""
    losses, groups = torch.tensor([1.0, 0.6, 0.2]), torch.tensor([0, 0, 1])
    found = group_weights(torch.tensor([0.5, 0.5], dtype=torch.float64), losses, groups, step_size=0.5)
    assert_allclose(found.numpy(), [0.574442516812, 0.425557483188], rtol=1e-6)
    absent = group_weights(torch.tensor([0.2, 0.3, 0.5]), torch.zeros(1), torch.tensor([0]))
    assert_allclose(absent.numpy(), [0.2, 0.3, 0.5], rtol=1e-6)
    with pytest.raises(ValueError, match=r"groups: expected shape \(3,\), got \(2,\)"):
        group_weights(torch.ones(2), losses, groups[:2])


def test_the_worst_group_gets_all_the_weight():
    weights = torch.tensor([0.5, 0.5])
    for _ in range(200):
        weights = group_weights(weights, torch.tensor([1.0, 0.5]), torch.tensor([0, 1]), step_size=0.1)
    assert weights[0] > 0.99


def test_responsibilities():
    """Two annotators, two types, by mpmath."""
    margins = torch.tensor([[0.5, -0.3], [1.0, -1.0], [-0.2, 0.4]], dtype=torch.float64)
    prior = torch.tensor([0.6, 0.4], dtype=torch.float64)
    found, following = responsibilities(margins, torch.tensor([0, 1, 0]), prior)
    assert_allclose(found.numpy(), [[0.622604964028, 0.377395035972], [0.803049686686, 0.196950313314]], rtol=1e-11)
    assert_allclose(following.numpy(), [0.712827325357, 0.287172674643], rtol=1e-11)
    alone, _ = responsibilities(torch.tensor([[1e4]]), torch.tensor([0]), torch.ones(1))
    assert alone.item() == 1.0
    with pytest.raises(ValueError, match="annotators and prior: expected shapes"):
        responsibilities(margins, torch.tensor([0]), prior)


STARTS = torch.tensor([[True, False, True, True], [True, True, False, False], [True, False, False, True]])
MASK = torch.tensor([[True] * 4, [True] * 3 + [False], [True] * 4])


def test_cosine_step_weights():
    """Step by step in plain loops, NaN where there is padding; the best response weighs 2 against itself."""
    hidden = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hidden[1, 3] = torch.nan
    best = torch.tensor([0, 0, 2])
    found = cosine_step_weights(hidden, STARTS, MASK, best)

    def means(r):
        kept = [t for t in range(4) if MASK[r, t]]
        bounds = [t for t in kept if STARTS[r, t]] + [kept[-1] + 1]
        spans = itertools.pairwise(bounds)
        return [(span, hidden[r, span[0] : span[1]].mean(0)) for span in spans]

    expected = np.zeros((3, 4))
    for r in range(3):
        for k, ((start, end), mean) in enumerate(means(r)):
            peers = means(int(best[r]))
            other = peers[k][1] if k < len(peers) else torch.zeros(5, dtype=torch.float64)
            cosine = float(torch.dot(mean, other) / max(float(mean.norm() * other.norm()), 1e-8))
            expected[r, start:end] = 1 + cosine
    assert_allclose(found.numpy(), expected, rtol=1e-12)
    assert_allclose(found[0].numpy(), 2.0)
    with pytest.raises(ValueError, match="step_start, mask, best"):
        cosine_step_weights(hidden, STARTS[:2], MASK, best)


def test_weights_reach_the_tree_objective():
    hidden = torch.randn(2, 4, 5, requires_grad=True)
    weight = cosine_step_weights(hidden, STARTS[:2], MASK[:2], torch.tensor([0, 0]))
    score = objectives.tpo_tree(
        token_logps=torch.randn(2, 4),
        ref_token_logps=torch.randn(2, 4),
        token_step_start=STARTS[:2],
        token_weight=weight,
        label=torch.tensor([1.0, 0.0]),
        mask=MASK[:2],
        groups=torch.tensor([0, 0]),
    )
    score.loss.backward()
    assert torch.isfinite(hidden.grad).all() and hidden.grad.abs().sum() > 0
