"""A batch spread over several calls: with the totals of all of them means over tokens are those of one call."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import prefuse
from prefuse import objectives
from prefuse.language import LanguageError, Objective

ROWS, TOKENS, CLASSES = 8, 7, 11
TOKEN_MEANS = {"nll": "token_mean", "average": "tokens", "value_weight": 0.1}
"""Options that bring a mean over the batch's tokens into some objectives."""


def with_totals() -> list[Objective]:
    """Every objective of the catalogue, and every variant of one, that has a mean over the batch's tokens."""
    found = []
    for name in objectives.__all__:
        made = getattr(objectives, name)
        if not isinstance(made, Objective):
            continue
        options = [made, *(made(variant=variant) for variant in made.variants)]
        for name, value in TOKEN_MEANS.items():
            if name in made.parameters and not isinstance(made.parameters[name], bool):
                options.append(made(**{name: value}))
        found += [option for option in options if _has_totals(option)]
    return found


def _has_totals(made: Objective) -> bool:
    try:
        traced = made._traced(None)
    except ValueError:  # an option that it does not know, or that asks for another
        return False
    values = tuple(name for name in traced.columns if not name.endswith(("lengths", "prompt_tokens", "roll_in")))
    compares = made.kind != "token" and traced.couples_groups(values)  # such as a mean reward to compare with
    return bool(traced.trace.totals) and not compares


class Spread:
    """Columns and logits of a batch, and any part of it."""

    def __init__(self, objective: Objective) -> None:
        generator = torch.Generator().manual_seed(7)
        self.objective = objective
        self.roles = ("chosen", "rejected", *(r for r in objective.roles if r not in ("chosen", "rejected")))
        self.roles = self.roles if objective.kind == "pair" else ("",)
        count = ROWS * len(self.roles)
        self.labels = torch.randint(CLASSES, (count, TOKENS), generator=generator)
        for row in range(count):
            self.labels[row, 2 + (row * 5) % (TOKENS - 1) :] = -100
        self.logits = torch.randn(count, TOKENS, CLASSES, generator=generator, requires_grad=True)
        self.reference = torch.randn(count, TOKENS, CLASSES, generator=generator)
        made = {"logps", "lengths", "mask", "groups", "kl", "entropy"}
        self.columns = {}
        for name, info in objective.columns.items():
            if any(name == f"{role}_{stem}".lstrip("_") for role in self.roles for stem in made):
                continue
            shape = (ROWS, TOKENS) if info.level.startswith("token") else (ROWS,)
            values = torch.rand(shape, generator=generator)
            values = -values if "logps" in name else values
            self.columns[name] = values.round() if name in ("label", "pretrain") else values
        if "roll_in" in self.columns:
            self.columns["roll_in"] = torch.arange(ROWS) % 3

    def part(self, first: int, count: int) -> dict[str, object]:
        """What `batch_totals` takes, for some of the rows."""
        picked = torch.cat([torch.arange(first, first + count) + ROWS * role for role in range(len(self.roles))])
        arguments: dict[str, object] = {"labels": self.labels[picked]}
        arguments |= {name: values[first : first + count] for name, values in self.columns.items()}
        if "groups" in self.objective.columns:
            arguments["groups"] = picked // 2
        return arguments

    def loss(self, first: int, count: int, totals: dict[str, float]) -> Tensor:
        """The loss of some of the rows."""
        picked = torch.cat([torch.arange(first, first + count) + ROWS * role for role in range(len(self.roles))])
        arguments = self.part(first, count) | totals
        if "kl" in self.objective.columns:
            arguments["reference"] = self.reference[picked]
        return prefuse.preference_loss(self.objective, logits=self.logits[picked], **arguments).loss

    def spread(self, size: int) -> Tensor:
        """The mean loss of calls of `size` rows, given the totals of all."""
        firsts = range(0, ROWS, size)
        totals = [prefuse.batch_totals(self.objective, **self.part(first, size)) for first in firsts]
        mean = {name: sum(each[name] for each in totals) / len(totals) for name in totals[0]}
        return sum(self.loss(first, size, mean) for first in firsts) / len(firsts)


@pytest.mark.parametrize("objective", with_totals(), ids=repr)
def test_calls_of_parts_are_the_call_of_the_whole(objective):
    batch = Spread(objective)
    whole = batch.loss(0, ROWS, {})
    (right,) = torch.autograd.grad(whole, batch.logits)
    assert right.abs().max() > 0
    for size in (4, 2):
        spread = batch.spread(size)
        (got,) = torch.autograd.grad(spread, batch.logits)
        torch.testing.assert_close(spread, whole, rtol=2e-6, atol=1e-6)
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-7)


def test_the_totals_are_tokens_and_packing_changes_nothing():
    labels = torch.tensor([[-100, 1, 2, 3], [-100, 1, -100, -100], [-100, 4, 5, -100], [-100, 1, 1, 1]])
    padded = prefuse.batch_totals("orpo", labels=labels, shift=True)
    assert padded == {"chosen_batch_length": 4.0}
    offsets = torch.tensor([0, 4, 6, 9, 13])
    packed = torch.cat([labels[0], labels[1][:2], labels[2][:3], labels[3]])
    assert prefuse.batch_totals("orpo", labels=packed, cu_seqlens=offsets, shift=True) == padded
    masked = prefuse.batch_totals("orpo", labels=labels, mask=torch.ones_like(labels).triu(1), shift=True)
    assert masked == {"chosen_batch_length": 3.0 + 1.0}
    assert prefuse.batch_totals("dpo", labels=labels) == {}


def test_from_hidden_states_with_a_frozen_head():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 5, 6, generator=generator, requires_grad=True)
    weight = torch.randn(9, 6, generator=generator)
    labels = torch.randint(9, (4, 5), generator=generator)
    given = {"labels": labels, "hidden": hidden, "weight": weight}
    whole = prefuse.preference_loss("orpo", **given).loss
    halves = [prefuse.preference_loss("orpo", **given, chosen_batch_length=n).loss for n in (10, torch.tensor(20.0))]
    right = prefuse.preference_loss("orpo", logits=hidden @ weight.T, labels=labels, chosen_batch_length=20.0).loss
    torch.testing.assert_close(halves[0], whole)
    torch.testing.assert_close(halves[1], right)


def test_of_own_objectives():
    @prefuse.pair_objective
    def own(pair):
        return -pair.chosen.logp.sum("batch") / pair.chosen.batch_length

    labels = torch.zeros(4, 3, dtype=torch.long)
    assert prefuse.batch_totals(own, labels=labels) == {"chosen_batch_length": 6.0}
    both = own + 0.5 * objectives.sft
    assert prefuse.batch_totals(both, labels=labels) == {"chosen_batch_length": 6.0}

    @prefuse.pair_objective
    def modelled(pair):
        return pair.chosen.logp / pair.chosen.total("weight", pair.chosen.logp.sum("batch"))

    with pytest.raises(LanguageError, match="'chosen_weight': expected what no model has a say in"):
        prefuse.batch_totals(modelled, labels=labels)

    @prefuse.pair_objective
    def twice(pair):
        return pair.chosen.logp / pair.chosen.total("batch_length", pair.rejected.length.sum("batch")) + (
            pair.chosen.logp / pair.chosen.batch_length
        )

    with pytest.raises(LanguageError, match="'chosen_batch_length' would be two different numbers"):
        prefuse.batch_totals(twice, labels=labels)

    @prefuse.pair_objective
    def by_pair(pair):
        return pair.chosen.logp / pair.chosen.total("batch_length", pair.chosen.length)

    with pytest.raises(LanguageError, match="expected one number for the batch, got a pair value"):
        prefuse.batch_totals(by_pair, labels=labels)


def test_names_of_the_catalogue_are_whole():
    assert {made.name for made in with_totals()} >= {"sft", "orpo", "tpo", "dapo", "ppo", "dr_po", "ppo_max", "grpo"}
