"""`preference_loss` from hidden states is `preference_loss` from their logits, by every plan and for every layout."""

from __future__ import annotations

import pytest
import torch

import prefuse
from prefuse import objectives
from prefuse.language import (
    exp,
    group_objective,
    log_sigmoid,
    minimum,
    pair_objective,
    point_objective,
    token_objective,
)
from prefuse.losses.columns import reading
from tests.devices import integers, normal, uniform
from tests.objectives.pairs_and_points import VARIANTS, random_columns, variant_id

from .oracle import room

pytestmark = pytest.mark.usefixtures("device")

B, T, H, V = 3, 6, 8, 29
ONE_TILE, TWO_TILES = room(1000), room(16, H, V, logits=2)


@pair_objective
def with_token_columns(pair, *, beta=0.5):
    """Token columns of both roles, and one of the caller's."""
    drift = (pair.chosen.token["kl"] * pair.chosen.token["weight"]).sum() - pair.rejected.token["kl"].sum()
    entropy = pair.rejected.token["entropy"].mean()
    return -log_sigmoid(beta * (pair.chosen.logratio - pair.rejected.logratio) - 0.1 * drift) + 0.01 * entropy


@pair_objective
def weighted(pair, *, beta=0.5):
    return -pair["trust"] * log_sigmoid(beta * (pair.chosen.logratio - pair.rejected.logratio))


@group_objective
def listwise(group):
    return -(group.response.logp.softmax() * group.response["score"]).sum()


@point_objective
def coupled(response):
    return (response.logp - response.logp.mean("batch")) ** 2


@token_objective
def clipped(token):
    ratio = exp(token.logp - token.ref_logp)
    return -minimum(ratio, 1.2).mean()


def batch(rows=2 * B, dtype=torch.float64, ignored=0.3):
    hidden = normal(rows, T, H, seed=1, dtype=torch.float64).to(dtype)
    reference = normal(rows, T, H, seed=2, dtype=torch.float64).to(dtype)
    weight = normal(V, H, seed=3, dtype=torch.float64).to(dtype)
    bias = normal(V, seed=4, dtype=torch.float64).to(dtype)
    labels = integers(V, rows, T, seed=5)
    labels[uniform(rows, T, seed=6) < ignored] = -100
    labels[0, 1] = 4  # no response is empty
    return hidden, reference, weight, bias, labels


def logits_of(hidden, weight, bias):
    return hidden @ weight.T + bias


def agree(
    objective,
    *,
    plan=None,
    expected=None,
    rows=2 * B,
    frozen=False,
    workspace_bytes=ONE_TILE,
    reads_reference=True,
    ignored=0.3,
    **options,
):
    """Loss, losses, rewards, metrics and all gradients from hidden states are those from logits."""
    hidden, reference, weight, bias, labels = batch(rows, ignored=ignored)
    leaves = [hidden.requires_grad_(), *([] if frozen else [weight.requires_grad_(), bias.requires_grad_()])]
    tensors = [value for value in options.values() if isinstance(value, torch.Tensor) and value.requires_grad]
    ours = prefuse.preference_loss(
        objective,
        hidden=hidden,
        weight=weight,
        bias=bias,
        labels=labels,
        reference=reference if reads_reference else None,
        plan=plan,
        workspace_bytes=workspace_bytes,
        **options,
    )
    theirs = prefuse.preference_loss(
        objective,
        logits=logits_of(hidden, weight, bias),
        labels=labels,
        reference=logits_of(reference, weight, bias).detach() if reads_reference else None,
        **options,
    )
    assert expected is None or ours.plan.name == expected
    torch.testing.assert_close(ours.loss, theirs.loss)
    torch.testing.assert_close(ours.losses.detach(), theirs.losses.detach())
    assert ours.metrics == pytest.approx(theirs.metrics, nan_ok=True)
    upstream = torch.full_like(ours.loss, 1.7)
    got = torch.autograd.grad(ours.loss, leaves + tensors, upstream, retain_graph=True)
    again = torch.autograd.grad(ours.loss, leaves + tensors, upstream)
    wanted = torch.autograd.grad(theirs.loss, leaves + tensors, upstream)
    for own, second, other in zip(got, again, wanted, strict=True):
        torch.testing.assert_close(own, other)
        assert torch.equal(own, second)
    return ours


def columns_for(objective):
    """How many responses an objective wants, and what it reads that the rows do not give."""
    pairs = objective.kind == "pair"
    rows = B * len({"chosen", "rejected", *objective.roles}) if pairs else 2 * B
    made = random_columns(B if pairs else rows, seed=7)
    gathered = {need.argument for need in reading(objective, ()).needs}
    names = [name for name in objective.columns if name not in gathered and not name.endswith("mask")]
    return rows, {name: torch.from_numpy(made[name]) for name in names}


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
@pytest.mark.parametrize("workspace_bytes", [ONE_TILE, TWO_TILES], ids=["one tile", "two tiles"])
def test_the_catalogue(variant, workspace_bytes):
    name, parameters = variant
    objective = objectives.get(name)(**parameters)
    rows, columns = columns_for(objective)
    reads_reference = any(column.startswith("ref_") and column not in columns for column in objective.columns)
    agree(objective, rows=rows, workspace_bytes=workspace_bytes, reads_reference=reads_reference, **columns)


@pytest.mark.parametrize("name", ["dpo", "simpo", "orpo", "cpo", "sft", "bpo", "ipo"])
def test_objectives_whose_groups_stand_alone_are_grouped(name):
    rows, columns = columns_for(objectives.get(name))
    reads_reference = any(column.startswith("ref_") for column in objectives.get(name).columns)
    score = agree(
        name, rows=rows, workspace_bytes=TWO_TILES, expected="grouped", reads_reference=reads_reference, **columns
    )
    assert score.plan.gemms == 3 and score.plan.tiles > 1


@pytest.mark.parametrize("name", ["dpo", "simpo", "sft", "aot"])
@pytest.mark.parametrize("workspace_bytes", [ONE_TILE, TWO_TILES], ids=["one tile", "two tiles"])
def test_a_batch_of_which_all_tokens_are_scored(name, workspace_bytes):
    """Tiles have whole groups all the same, whose rows do not stand next to each other."""
    rows, columns = columns_for(objectives.get(name))
    reads_reference = any(column.startswith("ref_") for column in objectives.get(name).columns)
    options = {"workspace_bytes": workspace_bytes, "reads_reference": reads_reference, **columns}
    grouped = {"dpo", "simpo", "sft"} & {name}
    score = agree(name, rows=rows, ignored=0.0, expected="grouped" if grouped else None, **options)
    assert score.plan.job.rows == rows * T and (score.plan.tiles > 1) == (workspace_bytes == TWO_TILES)


def test_groups_that_lie_in_one_another_when_all_tokens_are_scored():
    score, groups = uniform(2 * B, seed=8, dtype=torch.float64), torch.tensor([2, 0, 1, 0, 2, 1])
    options = {"reads_reference": False, "score": score, "groups": groups, "ignored": 0.0}
    made = agree(listwise, expected="grouped", workspace_bytes=TWO_TILES, **options)
    assert made.plan.tiles > 1


@pytest.mark.parametrize("name", ["aot", "bco"])
def test_objectives_that_couple_the_batch_are_not(name):
    _, columns = columns_for(objectives.get(name))
    agree(name, expected="keep", **columns)
    agree(name, expected="recompute", workspace_bytes=TWO_TILES, **columns)
    with pytest.raises(ValueError, match=r"plan: 'grouped'.*couples all groups"):
        agree(name, plan="grouped", **columns)


@pytest.mark.parametrize("plan", ["grouped", "keep", "recompute", "single-pass"])
@pytest.mark.parametrize("workspace_bytes", [ONE_TILE], ids=["one tile"])
def test_every_plan(plan, workspace_bytes):
    agree("dpo", plan=plan, expected=plan, frozen=plan == "single-pass", workspace_bytes=workspace_bytes)


@pytest.mark.parametrize("transform", [{"temperature": 0.7}, {"softcap": 4.0, "scale": 1.2}], ids=str)
@pytest.mark.parametrize("workspace_bytes", [ONE_TILE, TWO_TILES], ids=["one tile", "two tiles"])
def test_transforms_and_shifted_labels(transform, workspace_bytes):
    agree("dpo", expected="grouped", shift=True, workspace_bytes=workspace_bytes, **transform)


@pytest.mark.parametrize("workspace_bytes", [ONE_TILE, TWO_TILES], ids=["one tile", "two tiles"])
def test_token_columns(workspace_bytes):
    weight = uniform(B, T, seed=8, dtype=torch.float64)
    agree(with_token_columns, expected="grouped", chosen_token_weight=weight, workspace_bytes=workspace_bytes)
    agree(clipped, expected="grouped", workspace_bytes=workspace_bytes)


@pytest.mark.parametrize("workspace_bytes", [ONE_TILE, TWO_TILES], ids=["one tile", "two tiles"])
def test_the_callers_columns_get_their_gradients(workspace_bytes):
    weight = uniform(B, seed=8, dtype=torch.float64).requires_grad_()
    agree(weighted, expected="grouped", trust=weight, workspace_bytes=workspace_bytes)
    beta = torch.tensor(0.4, dtype=torch.float64).requires_grad_()
    agree(weighted, expected="grouped", trust=weight, beta=beta, workspace_bytes=workspace_bytes)


@pytest.mark.parametrize("workspace_bytes", [ONE_TILE, TWO_TILES], ids=["one tile", "two tiles"])
def test_lists_whose_members_lie_apart(workspace_bytes):
    groups = torch.tensor([7, 3, 7, 5, 3, 7])
    score = normal(6, seed=9, dtype=torch.float64)
    found = agree(
        listwise, expected="grouped", groups=groups, score=score, reads_reference=False, workspace_bytes=workspace_bytes
    )
    assert found.plan.tiles == (1 if workspace_bytes == ONE_TILE else 2)


def test_a_batch_that_is_coupled_by_its_author():
    agree(coupled, expected="keep", reads_reference=False)


@pytest.mark.parametrize("workspace_bytes", [ONE_TILE, TWO_TILES], ids=["one tile", "two tiles"])
@pytest.mark.parametrize("shift", [False, True])
def test_packed(workspace_bytes, shift):
    hidden, reference, weight, bias, labels = batch()
    keep = torch.arange(T) < torch.tensor([6, 4, 5, 3, 6, 2])[:, None]
    offsets = torch.nn.functional.pad(keep.sum(1).cumsum(0), (1, 0))
    results = []
    for own in (True, False):
        x, w = hidden[keep].clone().requires_grad_(), weight.clone().requires_grad_()
        source = {"hidden": x, "weight": w, "bias": bias, "workspace_bytes": workspace_bytes}
        score = prefuse.preference_loss(
            "dpo",
            labels=labels[keep],
            reference=reference[keep] if own else logits_of(reference[keep], weight, bias),
            cu_seqlens=offsets,
            shift=shift,
            **(source if own else {"logits": logits_of(x, w, bias)}),
        )
        results.append((score.loss, *torch.autograd.grad(score.loss, (x, w))))
        assert not own or score.plan.name == "grouped"
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("form", ["tokens", "responses", "own weight"])
def test_forms_of_the_reference(form):
    hidden, reference, weight, bias, labels = batch()
    scored = labels != -100
    own_weight = normal(V, 5, seed=11, dtype=torch.float64)
    states, options = reference, {}
    logits = logits_of(reference, weight, bias)
    if form == "own weight":
        states, options = reference[..., :5], {"reference_weight": own_weight}
        logits = states @ own_weight.T
    per_token = torch.where(scored, logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0], 0)
    given = {"tokens": per_token, "responses": per_token.sum(-1), "own weight": states}[form]
    weight.requires_grad_()
    ours = prefuse.preference_loss(
        "dpo", hidden=hidden, weight=weight, bias=bias, labels=labels, reference=given, **options
    )
    theirs = prefuse.preference_loss("dpo", logits=logits_of(hidden, weight, bias), labels=labels, reference=logits)
    torch.testing.assert_close(ours.loss, theirs.loss)
    for own, other in zip(
        torch.autograd.grad(ours.loss, weight), torch.autograd.grad(theirs.loss, weight), strict=True
    ):
        torch.testing.assert_close(own, other)


def test_the_first_step_is_log_2_to_the_bit():
    for dtype in (torch.float32, torch.bfloat16):
        hidden, _, weight, bias, labels = batch(dtype=dtype)
        for workspace_bytes in (ONE_TILE, TWO_TILES // 2):
            hidden.requires_grad_()
            score = prefuse.preference_loss(
                "dpo",
                hidden=hidden,
                weight=weight,
                bias=bias,
                labels=labels,
                reference=hidden.detach().clone(),
                workspace_bytes=workspace_bytes,
            )
            assert torch.equal(score.losses, torch.full((B,), 2.0).log())


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_reductions(reduction):
    hidden, reference, weight, bias, labels = batch()
    weight.requires_grad_()
    ours = prefuse.preference_loss(
        "dpo", hidden=hidden, weight=weight, bias=bias, labels=labels, reference=reference, reduction=reduction
    )
    assert ours.plan.name == ("grouped" if reduction == "sum" else "keep")
    theirs = prefuse.preference_loss(
        "dpo",
        logits=logits_of(hidden, weight, bias),
        labels=labels,
        reference=logits_of(reference, weight, bias).detach(),
        reduction=reduction,
    )
    factors = torch.arange(1.0, 1 + B, dtype=torch.float64) if reduction == "none" else 1.0
    gradients = [torch.autograd.grad((score.loss * factors).sum(), weight)[0] for score in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_losses_of_a_grouped_score_say_that_they_have_no_gradient():
    hidden, reference, weight, bias, labels = batch()
    weight.requires_grad_()
    score = prefuse.preference_loss("dpo", hidden=hidden, weight=weight, labels=labels, reference=reference, bias=bias)
    assert score.loss.requires_grad and not score.losses.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("workspace_bytes", [ONE_TILE, TWO_TILES], ids=["one tile", "two tiles"])
def test_narrow_dtypes(dtype, workspace_bytes):
    hidden, reference, weight, bias, labels = batch(dtype=dtype)
    exact = [tensor.double() for tensor in (hidden, weight)]
    for tensor in (hidden, weight, *exact):
        tensor.requires_grad_()
    ours = prefuse.preference_loss(
        "dpo",
        hidden=hidden,
        weight=weight,
        bias=bias,
        labels=labels,
        reference=reference,
        workspace_bytes=workspace_bytes * dtype.itemsize // 8,
    )
    assert ours.plan.name == "grouped"
    theirs = prefuse.preference_loss(
        "dpo",
        logits=logits_of(*exact, bias.double()),
        labels=labels,
        reference=logits_of(reference.double(), weight.double(), bias.double()).detach(),
    )
    got = torch.autograd.grad(ours.loss, (hidden, weight))
    wanted = torch.autograd.grad(theirs.loss, exact)
    for own, other in zip(got, wanted, strict=True):
        assert own.dtype == dtype
        assert (own.double() - other).norm() / other.norm() < 8 * torch.finfo(dtype).eps


def test_small_gradients_survive_float16():
    """A mean over many pairs has gradients below float16's range; a gradient scaler's factor must still find them."""
    hidden, reference, weight, bias, labels = batch(dtype=torch.float16)
    exact = weight.double().requires_grad_()
    weight.requires_grad_()
    scale = 2.0**16
    loss = prefuse.preference_loss(
        "dpo", hidden=hidden, weight=weight, bias=bias, labels=labels, reference=reference, beta=1e-6
    ).loss
    (got,) = torch.autograd.grad(loss * scale, weight)
    wanted = prefuse.preference_loss(
        "dpo",
        logits=logits_of(hidden.double(), exact, bias.double()),
        labels=labels,
        reference=logits_of(reference.double(), exact.detach(), bias.double()),
        beta=1e-6,
    ).loss
    (other,) = torch.autograd.grad(wanted * scale, exact)
    assert (got.double() - other).norm() / other.norm() < 0.05


def test_gradients_accumulate():
    hidden, reference, weight, bias, labels = batch()
    weight.requires_grad_()
    options = {"hidden": hidden, "weight": weight, "bias": bias, "labels": labels, "reference": reference}
    prefuse.preference_loss("dpo", **options).loss.backward()
    once = weight.grad.clone()
    prefuse.preference_loss("dpo", **options).loss.backward()
    torch.testing.assert_close(weight.grad, 2 * once)
    kept = prefuse.preference_loss("dpo", **options).loss
    weight.grad = None
    kept.backward(retain_graph=True)
    weight.grad.mul_(5)  # what autograd has handed out is the caller's
    weight.grad = None
    kept.backward()
    torch.testing.assert_close(weight.grad, once)


def test_second_derivatives_are_a_clear_error():
    hidden, reference, weight, bias, labels = batch()
    weight.requires_grad_()
    loss = prefuse.preference_loss(
        "dpo", hidden=hidden, weight=weight, bias=bias, labels=labels, reference=reference
    ).loss
    (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable"):
        gradient.sum().backward()


def test_an_adapter_on_the_head():
    hidden, reference, weight, bias, labels = batch()
    first = normal(2, H, seed=12, dtype=torch.float64).requires_grad_()
    second = normal(V, 2, seed=13, dtype=torch.float64).requires_grad_()
    hidden.requires_grad_()
    ours = prefuse.preference_loss(
        "dpo", hidden=hidden, weight=weight, bias=bias, labels=labels, reference=reference, lora=(first, second, 0.5)
    )
    assert ours.plan.name == "grouped"
    theirs = prefuse.preference_loss(
        "dpo",
        logits=logits_of(hidden, weight + 0.5 * second @ first, bias),
        labels=labels,
        reference=logits_of(reference, weight, bias),
    )
    leaves = (hidden, first, second)
    for own, other in zip(
        torch.autograd.grad(ours.loss, leaves), torch.autograd.grad(theirs.loss, leaves), strict=True
    ):
        torch.testing.assert_close(own, other)


def test_nothing_scored():
    hidden, reference, weight, bias, labels = batch()
    weight.requires_grad_()
    labels[:] = -100
    score = prefuse.preference_loss("dpo", hidden=hidden, weight=weight, bias=bias, labels=labels, reference=reference)
    score.loss.backward()
    assert (weight.grad == 0).all() and torch.allclose(score.loss, torch.tensor(2.0, dtype=torch.float64).log())


@pair_objective
def with_a_weight(pair):
    return -pair["weight"] * log_sigmoid(pair.chosen.logp - pair.rejected.logp)


def test_a_column_called_weight():
    """From logits it is the column; beside hidden states it would be hidden by the head's weight, which is an error."""
    hidden, _, weight, bias, labels = batch()
    own = uniform(B, seed=8, dtype=torch.float64)
    score = prefuse.preference_loss(with_a_weight, logits=logits_of(hidden, weight, bias), labels=labels, weight=own)
    other = prefuse.preference_loss(
        with_a_weight, logits=logits_of(hidden, weight, bias), labels=labels, weight=2 * own
    )
    torch.testing.assert_close(2 * score.loss, other.loss)
    with pytest.raises(TypeError, match="weight: an argument that goes with hidden, and a column"):
        prefuse.preference_loss(with_a_weight, hidden=hidden, weight=weight, labels=labels)
