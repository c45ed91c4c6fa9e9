"""`preference_loss(statistics=…)`: what is looked at beside the loss, from the same sweep."""

from __future__ import annotations

import pytest
import torch

import prefuse
from tests.devices import integers, normal

PAIRS, TOKENS, FEATURES, CLASSES = 3, 6, 8, 19
NAMES = ("logp", "entropy", "mean_logit", "top1", "topk_mass")
PLANS = ("grouped", "keep", "recompute", "single-pass")


def batch() -> dict[str, torch.Tensor]:
    labels = integers(CLASSES, 2 * PAIRS, TOKENS, seed=1)
    labels[:, :2] = -100
    labels[1, 4:] = -100
    return {"labels": labels, "reference": normal(2 * PAIRS, seed=2, dtype=torch.float64)}


def head(plan: str) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = normal(2 * PAIRS, TOKENS, FEATURES, seed=3, dtype=torch.float64).requires_grad_()
    weight = normal(CLASSES, FEATURES, seed=4, dtype=torch.float64).requires_grad_(plan != "single-pass")
    return hidden, weight


def expected(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """In the labels' alignment: what is said of token t comes from the logits of t − 1."""
    stats = prefuse.token_stats((hidden @ weight.T)[:, :-1].detach(), labels[:, 1:], NAMES)
    return {name: torch.nn.functional.pad(value, (1, 0)) for name, value in stats.items()}


@pytest.mark.parametrize("plan", PLANS)
def test_statistics_are_those_of_token_stats_and_change_nothing(plan):
    hidden, weight = head(plan)
    given = batch()
    alone = prefuse.preference_loss("dpo", hidden=hidden, weight=weight, shift=True, plan=plan, **given)
    plain = torch.autograd.grad(alone.loss, hidden)[0]
    score = prefuse.preference_loss(
        "dpo", hidden=hidden, weight=weight, shift=True, plan=plan, statistics=NAMES, **given
    )
    assert torch.equal(torch.autograd.grad(score.loss, hidden)[0], plain)
    assert score.loss.item() == alone.loss.item() and alone.statistics == {}
    for name, value in expected(hidden, weight, given["labels"]).items():
        torch.testing.assert_close(score.statistics[name], value, rtol=1e-12, atol=1e-12, msg=name)
        assert not score.statistics[name].requires_grad


@pytest.mark.parametrize("plan", [*PLANS, "logits"])
def test_gradient_is_that_of_the_loss_by_each_log_probability(plan):
    hidden, weight = head(plan)
    given = batch()
    logits = hidden @ weight.T
    source = {"logits": logits} if plan == "logits" else {"hidden": hidden, "weight": weight, "plan": plan}
    score = prefuse.preference_loss("dpo", shift=True, beta=0.3, statistics=("gradient",), **source, **given)
    sums = prefuse.sequence_logps(logits, given["labels"], shift=True)
    margin = (sums - given["reference"]).unflatten(0, (2, PAIRS)).diff(dim=0)[0].neg()
    weight_of_pair = 0.3 * torch.sigmoid(-0.3 * margin).detach() / PAIRS
    scored = given["labels"] != -100
    wanted = torch.cat([-weight_of_pair, weight_of_pair])[:, None] * scored
    torch.testing.assert_close(score.statistics["gradient"], wanted, rtol=1e-6, atol=1e-9)


def test_gradient_without_autograd_and_of_what_reads_no_log_probability():
    hidden, weight = head("forward")
    given = batch()
    with torch.no_grad():
        score = prefuse.preference_loss(
            "dpo", hidden=hidden, weight=weight, shift=True, statistics=("gradient",), **given
        )
    assert score.statistics["gradient"].abs().sum() > 0
    rewards = {f"{role}_reward": torch.rand(PAIRS, dtype=torch.float64) for role in ("chosen", "rejected")}
    score = prefuse.preference_loss(
        "bradley_terry", logits=hidden @ weight.T, labels=given["labels"], statistics=("gradient",), **rewards
    )
    assert score.statistics["gradient"].eq(0).all() and score.statistics["gradient"].shape == given["labels"].shape


def test_packed():
    labels = integers(CLASSES, 12, seed=5)
    hidden = normal(12, FEATURES, seed=6, dtype=torch.float64)
    weight = normal(CLASSES, FEATURES, seed=7, dtype=torch.float64)
    offsets = torch.tensor([0, 5, 12])
    score = prefuse.preference_loss(
        "simpo", hidden=hidden, weight=weight, labels=labels, cu_seqlens=offsets, shift=True, statistics=("entropy",)
    )
    wanted = prefuse.token_stats(hidden @ weight.T, labels.roll(-1), "entropy").entropy.roll(1)
    wanted[[0, 5]] = 0.0
    torch.testing.assert_close(score.statistics["entropy"], wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("statistics", "error", "message"),
    [
        ("entropy", TypeError, "statistics: expected a sequence of names, got 'entropy'"),
        (("perplexity",), ValueError, "statistics: expected names out of logp, .* got 'perplexity'"),
        (("kl",), ValueError, "statistics: kl needs a reference in the form"),
    ],
)
def test_errors(statistics, error, message):
    hidden, weight = head("grouped")
    with pytest.raises(error, match=message):
        prefuse.preference_loss("dpo", hidden=hidden, weight=weight, shift=True, statistics=statistics, **batch())
