"""`data_group`: every process has the loss of the whole batch, and averaged gradients are the gradient of that loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import prefuse
from prefuse.language import group_objective, pair_objective, point_objective
from tests.devices import normal, uniform

ITEMS, TOKENS, FEATURES, CLASSES = 10, 7, 5, 53
SHARES = {2: {"even": (5, 5), "uneven": (7, 3)}, 4: {"even": (3, 3, 2, 2), "uneven": (1, 6, 2, 1)}}
F64 = torch.float64
Batch = dict[str, Any]


@group_objective
def listwise(group):
    """Couples what is in a group, and nothing else."""
    return -(group.response.logratio.softmax() * group.response["score"]).sum()


@pair_objective
def weighted(pair):
    """Reads a column that takes a gradient, and one number for all."""
    return pair["slope"] * (pair.rejected.avg_logp - pair.chosen.avg_logp) / pair.batch["delta"]


@point_objective
def reads_tokens(response):
    return -response.token["logp"].mean()


def as_logits(columns: Batch) -> Batch:
    """The labels, and some logits for them."""
    return {"labels": columns["labels"], "logits": torch.zeros(*columns["labels"].shape, CLASSES)}


def whole_batch(responses: int) -> Batch:
    """Hidden states and what belongs to them; role after role where there are more responses than items."""
    labels = (uniform(responses, TOKENS, seed=3) * CLASSES).long()
    labels[uniform(responses, TOKENS, seed=4) < 0.3] = -100
    labels[:, 2] = 7
    return {
        "hidden": normal(responses, TOKENS, FEATURES, seed=1, dtype=F64),
        "labels": labels,
        "reference": 3 * normal(responses, seed=5, dtype=F64) - 20,
    }


PAIRS = {
    "dpo": {},
    "simpo": {},
    "orpo": {},
    "aot": {},
    "aot_unpaired": {},
    "weighted": {"slope": 1 + uniform(ITEMS, seed=6, dtype=F64)},
}
POINTS = {
    "kto": {
        "label": uniform(ITEMS, seed=7) > 0.4,
        "kl_logps": normal(ITEMS, seed=8, dtype=F64) + 1,
        "ref_kl_logps": normal(ITEMS, seed=9, dtype=F64),
    },
    "bco": {"label": uniform(ITEMS, seed=7) > 0.4},
    "listwise": {"score": normal(ITEMS, seed=10, dtype=F64), "groups": torch.tensor([0, 0, 0, 1, 1, 5, 5, 5, 7, 7])},
}
OWN = {"listwise": listwise, "weighted": weighted}
NO_REFERENCE = ("simpo", "orpo", "weighted")


def share(columns: Mapping[str, Tensor], how: str) -> dict[str, Tensor]:
    """This process's part of columns that have one value per item, or one per response."""
    shares, rank = SHARES[dist.get_world_size()][how], dist.get_rank()
    own = slice(sum(shares[:rank]), sum(shares[: rank + 1]))
    return {
        name: torch.cat([part[own] for part in column.chunk(column.shape[0] // ITEMS)])
        for name, column in columns.items()
    }


def scored(name: str, source: str, columns: dict[str, Tensor], **options: Any) -> tuple[Any, list[Tensor]]:
    """The score of a batch, and its gradients by weight, hidden states and the column "slope"."""
    columns = dict(columns)
    weight = normal(CLASSES, FEATURES, seed=2, dtype=F64).requires_grad_()
    hidden = columns.pop("hidden").clone().requires_grad_()
    leaves = [weight, hidden]
    if name in NO_REFERENCE:
        del columns["reference"]
    if name == "weighted":
        options["delta"] = torch.tensor(1.7, dtype=F64)
        columns["slope"] = columns["slope"].clone().requires_grad_()
        leaves.append(columns["slope"])
    if source == "logits":
        options["logits"] = hidden @ weight.T
    else:
        options |= {"hidden": hidden, "weight": weight}
    score = prefuse.preference_loss(OWN.get(name, name), **columns, **options)
    return score, list(torch.autograd.grad(score.loss, leaves))


def averaged(gradient: Tensor) -> Tensor:
    """As DDP does with the gradient of a parameter."""
    dist.all_reduce(gradient)
    return gradient / dist.get_world_size()


def agrees(name: str, source: str, how: str, **options: Any) -> None:
    roles, own = (2, PAIRS[name]) if name in PAIRS else (1, POINTS[name])
    columns = whole_batch(ITEMS * roles) | own
    expected, whole = scored(name, source, columns, **options)
    got, parts = scored(name, source, share(columns, how), data_group=dist.group.WORLD, **options)
    torch.testing.assert_close(got.loss, expected.loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(got.losses, expected.losses, rtol=0, atol=1e-12)
    torch.testing.assert_close(got.rewards, expected.rewards, rtol=0, atol=1e-12)
    torch.testing.assert_close(dict(got.metrics), dict(expected.metrics), rtol=0, atol=1e-12)
    torch.testing.assert_close(averaged(parts[0]), whole[0], rtol=0, atol=1e-12)
    size = dist.get_world_size()
    for part, gradient in zip(parts[1:], whole[1:], strict=True):  # of what belongs to one process there is no average
        torch.testing.assert_close(part / size, share({"": gradient}, how)[""], rtol=0, atol=1e-12)
    assert whole[0].abs().max() > 1e-5


@pytest.mark.parametrize("how", ["even", "uneven"])
@pytest.mark.parametrize("source", ["logits", "hidden"])
@pytest.mark.parametrize("name", [*PAIRS, *POINTS])
def test_the_batch_of_all_is_scored(processes, name, source, how):
    processes.run(agrees, name, source, how)


@pytest.mark.parametrize("plan", ["grouped", "keep", "recompute"])
@pytest.mark.parametrize("name", ["dpo", "weighted"])
def test_plans(processes, name, plan):
    """Uneven shares, one pair to a tile: some processes score more often than others."""
    tight = {"workspace_bytes": 8000} if plan == "grouped" else {}
    processes.run(agrees, name, "hidden", "uneven", plan=plan, **tight)


def mixed_plans() -> None:
    """Each process plans for itself: what one scores in many steps another may score in one."""
    columns = whole_batch(2 * ITEMS)
    expected, whole = scored("dpo", "hidden", columns)
    plan = "grouped" if dist.get_rank() == 0 else "recompute"
    options = {"plan": plan, "workspace_bytes": 8000, "data_group": dist.group.WORLD}
    got, parts = scored("dpo", "hidden", share(columns, "uneven"), **options)
    torch.testing.assert_close(got.loss, expected.loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(averaged(parts[0]), whole[0], rtol=0, atol=1e-12)


def test_processes_with_different_plans(processes):
    processes.run(mixed_plans)


def nothing_here() -> None:
    """The last process has no responses at all."""
    for name in ("dpo", "bco"):
        columns = whole_batch(2 * ITEMS) if name == "dpo" else whole_batch(ITEMS) | POINTS["bco"]
        expected, whole = scored(name, "hidden", columns)
        part = columns
        if dist.get_rank():
            part = {key: column[:0] for key, column in columns.items()}
        got, parts = scored(name, "hidden", part, data_group=dist.group.WORLD)
        torch.testing.assert_close(got.loss, expected.loss, rtol=0, atol=1e-12)
        torch.testing.assert_close(averaged(parts[0]), whole[0], rtol=0, atol=1e-12)


def test_a_process_without_responses(processes):
    processes.run(nothing_here)


def grouped_only_where_groups_stay_together() -> None:
    """Equal ids on two processes are one group; a tile of one process does not hold all of it then."""
    columns = whole_batch(ITEMS) | POINTS["listwise"]
    options = {"data_group": dist.group.WORLD, "plan": "grouped"}
    with pytest.raises(ValueError, match=r"plan: 'grouped' is not possible here: .*parts of one on several processes"):
        scored("listwise", "hidden", share(columns, "uneven"), **options)
    own = columns | {"groups": torch.tensor([0, 0, 0, 0, 1, 2, 2, 2, 2, 2])}
    apart = {2: slice(0, 5), 4: slice(0, 4)}[dist.get_world_size()]
    ids = own["groups"][apart] + 10 * dist.get_rank()
    part = {name: column[apart] for name, column in own.items()} | {"groups": ids}
    got, _ = scored("listwise", "hidden", part, **options)
    assert got.plan.name == "grouped"
    assert got.losses.shape[0] == dist.get_world_size() * len(ids.unique())


def test_groups_that_span_processes(processes):
    processes.run(grouped_only_where_groups_stay_together)


def both_groups() -> None:
    """Two processes to a head, two such heads to a batch: rank r has part r % 2 of the classes."""
    rank = dist.get_rank()
    if dist.get_world_size() != 4:
        return
    heads = [dist.new_group(ranks) for ranks in ([0, 1], [2, 3])]
    batches = [dist.new_group(ranks) for ranks in ([0, 2], [1, 3])]
    columns = whole_batch(2 * ITEMS)
    del columns["reference"]
    half, classes = slice(0, 6) if rank < 2 else slice(6, ITEMS), slice(0, 20) if rank % 2 == 0 else slice(20, CLASSES)
    part = {name: torch.cat([role[half] for role in column.chunk(2)]) for name, column in columns.items()}
    weight = normal(CLASSES, FEATURES, seed=2, dtype=F64)
    results = []
    for batch, own, groups in (
        (columns, slice(None), {}),
        (part, classes, {"group": heads[rank // 2], "data_group": batches[rank % 2]}),
    ):
        leaf = weight[own].clone().requires_grad_()
        score = prefuse.preference_loss("orpo", weight=leaf, **batch, **groups)
        score.loss.backward()
        results.append((score.loss.detach(), leaf.grad))
    (expected, whole), (loss, gradient) = results
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    dist.all_reduce(gradient, group=batches[rank % 2])
    torch.testing.assert_close(gradient / 2, whole[classes], rtol=0, atol=1e-12)


def test_a_head_in_parts_and_the_batch_of_all(processes):
    processes.run(both_groups)


def refused() -> None:
    world = dist.group.WORLD
    pairs = share(whole_batch(2 * ITEMS) | PAIRS["weighted"], "uneven")
    points = share(whole_batch(ITEMS) | POINTS["kto"], "uneven")
    with pytest.raises(ValueError, match=r"slope: expected shape \(\d+,\) with data_group, got \(3, 1\)"):
        scored("weighted", "logits", pairs | {"slope": torch.ones(3, 1, dtype=F64)}, data_group=world)
    with pytest.raises(TypeError, match=r"label: expected a torch\.Tensor, got list"):
        scored("kto", "hidden", points | {"label": [True]}, data_group=world)
    with pytest.raises(ValueError, match="data_group: reads_tokens reads token_logps, and only columns with one value"):
        prefuse.preference_loss(reads_tokens, data_group=world, **as_logits(points))
    items = torch.full((points["labels"].shape[0],), 0.1, dtype=F64)
    with pytest.raises(ValueError, match="data_group: bco has one value of beta per item"):
        scored("bco", "hidden", {**points, "beta": items}, data_group=world)
    with pytest.raises(ValueError, match="data_group: expected other processes than those of group"):
        scored("bco", "hidden", points, data_group=world, group=world)
    with pytest.raises(TypeError, match=r"data_group: expected a torch\.distributed\.ProcessGroup"):
        scored("bco", "hidden", points, data_group=3)


def test_what_is_refused(processes):
    processes.run(refused)
