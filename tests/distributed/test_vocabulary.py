"""A head whose classes lie on several processes gives what the whole head gives on one."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import prefuse
from prefuse.linear import columns, operands, operators
from prefuse.linear.functions import linear_token_stats
from tests.devices import integers, normal, uniform
from tests.linear.gathering import gathering_columns

TOKENS, FEATURES, CLASSES, RANK = 23, 6, 53, 3
CUTS = {2: (52, 1), 4: (20, 1, 29, 3)}
F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
WITH_REFERENCE = ("ref_logp", "ref_lse", "kl", "rkl")
LEAVES = ("hidden", "weight", "bias", "first", "second")
TIGHT = 6000
"""Bytes for tiles of few rows and blocks of few classes."""


def problem(dtype: torch.dtype = F64) -> dict[str, Tensor]:
    """A head with an adapter and a batch, the numbers those of `dtype` exactly."""
    numbers = {
        "hidden": normal(TOKENS, FEATURES, seed=1),
        "weight": normal(CLASSES, FEATURES, seed=2),
        "bias": normal(CLASSES, seed=3),
        "first": normal(RANK, FEATURES, seed=4),
        "second": normal(CLASSES, RANK, seed=5),
        "reference_hidden": normal(TOKENS, FEATURES, seed=6),
        "reference_weight": normal(CLASSES, FEATURES, seed=7),
    }
    labels = integers(CLASSES, TOKENS, seed=8)
    numbers["hidden"][::5] = 2 * numbers["weight"][labels[::5]]  # their label has nearly all of the mass
    labels[[2, 9]] = -100
    rounded = {name: value.to(BF16).to(dtype) for name, value in numbers.items()}
    return rounded | {"labels": labels, "mask": uniform(TOKENS, seed=9) > 0.2}


def own_classes() -> slice:
    """The classes of this process."""
    widths, rank = CUTS[dist.get_world_size()], dist.get_rank()
    return slice(sum(widths[:rank]), sum(widths[: rank + 1]))


def computed(
    dtype: torch.dtype,
    stats: tuple[str, ...],
    *,
    trained: tuple[str, ...],
    own: slice | None,
    adapter: bool = False,
    own_reference: bool = False,
    temperatures: bool = False,
    **options: Any,
) -> dict[str, Tensor]:
    """The statistics, and gradients of what is `trained`; with the classes `own` of them, as one process of a group."""
    given = problem(dtype)
    for name in ("weight", "bias", "second", "reference_weight"):
        given[name] = given[name][own or slice(None)].clone()
    leaves = {name: given[name].requires_grad_() for name in LEAVES if name in trained}
    if adapter:
        options["lora"] = (given["first"], given["second"], 0.5)
    if not set(WITH_REFERENCE).isdisjoint(stats):
        options["reference_hidden"] = given["reference_hidden"]
        if own_reference:
            options["reference_weight"] = given["reference_weight"]
    if dtype == F64:
        options.pop("logits_dtype", None)
    if temperatures:
        options["temperature"] = 0.5 + uniform(TOKENS, seed=10, dtype=F64)
    if own is not None:
        options["group"] = dist.group.WORLD
    found = linear_token_stats(
        given["hidden"], given["weight"], given["labels"], stats, bias=given["bias"], mask=given["mask"], **options
    )
    results = {name: value.detach() for name, value in found.items()}
    total = sum(
        (value * normal(TOKENS, seed=20 + i, dtype=F64).to(value.dtype)).sum()
        for i, value in enumerate(found.values())
        if value.requires_grad
    )
    if leaves:
        gradients = torch.autograd.grad(total, list(leaves.values()))
        results |= {f"d {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return results


def with_whole_classes(results: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of this process's classes put where they are among all."""
    own = own_classes()
    whole = {}
    for name, value in results.items():
        if name in ("d weight", "d bias", "d second"):
            assert value.shape[0] == own.stop - own.start
            whole[name] = value.new_zeros(CLASSES, *value.shape[1:])
            whole[name][own] = value
            dist.all_reduce(whole[name])
        else:
            whole[name] = value
    return whole


def equal_on_all(results: dict[str, Tensor]) -> None:
    """Every process has the same bits."""
    for name, value in results.items():
        first = value.clone()
        dist.broadcast(first, 0)
        assert torch.equal(first, value), name


def agrees(dtype: torch.dtype, stats: tuple[str, ...], trained: tuple[str, ...], **options: Any) -> None:
    parts = computed(dtype, stats, trained=trained, own=own_classes(), **options)
    got = with_whole_classes(parts)
    equal_on_all(got)
    whole = computed(dtype, stats, trained=trained, own=None, **options)
    assert got.keys() == whole.keys()
    for name, expected in whole.items():
        if dtype == F64:
            scale = max(1.0, float(expected.abs().max()))
            torch.testing.assert_close(
                got[name], expected, rtol=0, atol=1e-12 * scale, msg=lambda m, n=name: f"{n}: {m}"
            )
    if dtype != F64:
        no_further_from_the_truth(got, whole, computed(F64, stats, trained=trained, own=None, **options))


def no_further_from_the_truth(got: dict[str, Tensor], whole: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    """Errors of the size of the single process's own, where each part, and their sum, is rounded once more."""
    factor = 2 * (1 + dist.get_world_size() ** 0.5)
    for name, truth in exact.items():
        size = truth.abs().max()
        roundings = torch.finfo(whole[name].dtype).eps * size / 8
        error, own = ((values[name].double() - truth).square().mean().sqrt() for values in (got, whole))
        assert error <= factor * (own + roundings), (name, float(error), float(own), float(size))


EVERYTHING = ("hidden", "weight", "bias")
TRANSFORMS = [{}, {"softcap": 5.0, "scale": 1.3}, {"temperatures": True, "softcap": 4.0}]


@pytest.mark.parametrize("workspace_bytes", [TIGHT, 1 << 20], ids=["many tiles", "one tile"])
@pytest.mark.parametrize(
    "stats",
    [
        ("logp", "lse", "entropy", "log_sum_sq", "mean_logit", *WITH_REFERENCE),
        *((name,) for name in ("logp", "lse", "entropy", "log_sum_sq", "mean_logit", *WITH_REFERENCE)),
    ],
    ids="+".join,
)
def test_statistics(processes, stats, workspace_bytes):
    processes.run(agrees, F64, stats, (), workspace_bytes=workspace_bytes)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize(
    "stats", [("logp",), ("logp", "lse"), ("lse",), ("entropy",), ("mean_logit", "logp")], ids="+".join
)
def test_single_pass(processes, stats, transform):
    processes.run(agrees, F64, stats, ("hidden",), plan="single-pass", workspace_bytes=TIGHT, **transform)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("name", ["logp", "lse", "entropy", "mean_logit"])
def test_keep(processes, name, transform):
    processes.run(agrees, F64, (name,), EVERYTHING, plan="keep", **transform)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("workspace_bytes", [TIGHT, 1 << 20], ids=["many tiles", "one tile"])
def test_recompute(processes, workspace_bytes, transform):
    stats = ("logp", "lse", "entropy", "mean_logit", "log_sum_sq")
    processes.run(agrees, F64, stats, EVERYTHING, plan="recompute", workspace_bytes=workspace_bytes, **transform)


@pytest.mark.parametrize("own_reference", [False, True])
@pytest.mark.parametrize("plan", ["single-pass", "recompute"])
@pytest.mark.parametrize("name", ["kl", "rkl"])
def test_divergences(processes, name, plan, own_reference):
    trained = ("hidden",) if plan == "single-pass" else EVERYTHING
    options = {"plan": plan, "own_reference": own_reference, "workspace_bytes": TIGHT, "softcap": 6.0}
    processes.run(agrees, F64, ("logp", name), trained, **options)


@pytest.mark.parametrize("plan", ["single-pass", "keep", "recompute"])
def test_label_smoothing(processes, plan):
    trained = ("hidden",) if plan == "single-pass" else EVERYTHING
    processes.run(agrees, F64, ("logp",), trained, plan=plan, label_smoothing=0.1, softcap=5.0)


@pytest.mark.parametrize("transform", [*TRANSFORMS, {"adapter": True}, {"label_smoothing": 0.1}], ids=str)
@pytest.mark.parametrize("workspace_bytes", [TIGHT, 1 << 20], ids=["many tiles", "one tile"])
def test_sparse_gradients_are_rounded_as_those_of_one_process(processes, workspace_bytes, transform):
    sparse = prefuse.Sparse(0.05, seed=3)
    trained = ("hidden", "first", "second") if transform.get("adapter") else EVERYTHING
    options = {"sparse": sparse, "workspace_bytes": workspace_bytes, **transform}
    processes.run(agrees, F64, ("logp", "lse"), trained, **options)


@pytest.mark.parametrize("transform", [{"temperatures": True}, {"adapter": True}], ids=str)
def test_sparse_gradients_of_all_statistics(processes, transform):
    trained = ("hidden", "first", "second") if transform.get("adapter") else EVERYTHING
    options = {"sparse": prefuse.Sparse(0.05, seed=3), "workspace_bytes": TIGHT, **transform}
    names = ("logp", "lse", "entropy", "mean_logit", "kl", "rkl")
    processes.run(agrees, F64, names, trained, own_reference=not transform.get("adapter"), **options)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_sparse_gradients_of_narrow_dtypes(processes, dtype, label_smoothing):
    options = {"sparse": prefuse.Sparse(2.0**-40, seed=3), "label_smoothing": label_smoothing}
    processes.run(agrees, dtype, ("logp",), EVERYTHING, **options)


def agrees_by_columns(*arguments: Any, **options: Any) -> None:
    with gathering_columns():
        agrees(*arguments, **options)


@pytest.mark.needs("compiler")
@pytest.mark.parametrize(
    "transform", [{}, {"temperatures": True}, {"adapter": True}, {"label_smoothing": 0.1}], ids=str
)
@pytest.mark.parametrize("workspace_bytes", [TIGHT, 1 << 20], ids=["many tiles", "one tile"])
def test_sparse_gradients_of_a_gpu(processes, workspace_bytes, transform):
    """With every column gathered; what each process leaves to a mean is of its own classes."""
    trained = ("hidden", "first", "second") if transform.get("adapter") else EVERYTHING
    options = {"sparse": 2.0**-40, "workspace_bytes": workspace_bytes, **transform}
    processes.run(agrees_by_columns, F64, ("logp", "lse"), trained, **options)


def shares_of_sparse_gradients(by_columns: bool) -> None:
    """A process's share is of the tokens, of which some are not scored, whatever lists or columns are made of."""
    given, own, size = problem(), own_classes(), dist.get_world_size()
    states, labels = given["hidden"][:20], given["labels"][:20].clone()
    labels[:5] = -100
    share = slice(20 // size * dist.get_rank(), 20 // size * (dist.get_rank() + 1))

    def gradient(sparse: prefuse.Sparse | None) -> Tensor:
        hidden = states.clone().requires_grad_()
        options = {"group": dist.group.WORLD, "scatter_gradient": True, "sparse": sparse}
        logps = linear_token_stats(hidden, given["weight"][own], labels, "logp", **options)["logp"]
        return torch.autograd.grad(logps.sum(), hidden)[0][share]

    dense = gradient(None)
    with gathering_columns() if by_columns else contextlib.nullcontext():
        torch.testing.assert_close(gradient(prefuse.Sparse(2.0**-40, seed=0)), dense, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("by_columns", [False, pytest.param(True, marks=pytest.mark.needs("compiler"))])
def test_shares_of_sparse_gradients(processes, by_columns):
    processes.run(shares_of_sparse_gradients, by_columns)


def sums_by_columns() -> None:
    """Rows that weigh alike have the exact sum, whatever processes leave to the means of their classes."""
    given, own = problem(), own_classes()
    hidden = (0.3 * given["hidden"]).requires_grad_()
    whole = linear_token_stats(hidden, given["weight"], given["labels"], "logp")["logp"].sum()
    (exact,) = torch.autograd.grad(whole, hidden)
    with gathering_columns(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "ALIGNED", 1)  # else so few classes are all gathered
        patch.setattr(columns, "MOST", 1.0)
        part = given["weight"][own]
        options = {"group": dist.group.WORLD, "sparse": 2.0**-3}
        found = linear_token_stats(hidden, part, given["labels"], "logp", **options)["logp"].sum()
        (gradient,) = torch.autograd.grad(found, hidden)
    assert (gradient - exact).abs().max() > 1e-4
    torch.testing.assert_close(gradient.sum(0), exact.sum(0), rtol=1e-10, atol=1e-10)


@pytest.mark.needs("compiler")
def test_no_bias_adds_up_over_processes(processes):
    processes.run(sums_by_columns)


@pytest.mark.parametrize("plan", ["keep", "recompute"])
def test_an_adapter(processes, plan):
    processes.run(
        agrees, F64, ("logp",), ("hidden", "first", "second"), plan=plan, adapter=True, workspace_bytes=1 << 16
    )


@pytest.mark.parametrize("plan", ["single-pass", "keep", "recompute"])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_narrow_dtypes(processes, dtype, plan):
    trained = ("hidden",) if plan == "single-pass" else EVERYTHING
    processes.run(agrees, dtype, ("logp",), trained, plan=plan, workspace_bytes=1 << 14)


def agrees_by_wide_tiles(*arguments: Any, **options: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operands, "makes_wide_tiles", lambda device: True)
        agrees(*arguments, logits_dtype=F32, **options)


@pytest.mark.parametrize("plan", ["single-pass", "keep", "recompute"])
def test_float32_logits_of_narrow_matrices(processes, plan):
    trained = ("hidden",) if plan == "single-pass" else EVERYTHING
    processes.run(agrees_by_wide_tiles, BF16, ("logp", "lse")[: 1 + (plan == "recompute")], trained, plan=plan)


def rounded_once(plan: str) -> None:
    """The gradient of 16-bit hidden states is added up in float32: no further from the truth than one process's own."""
    tokens, features, classes = 256, 64, 512
    hidden, weight = normal(tokens, features, seed=1).to(BF16), (normal(classes, features, seed=2) / 8).to(BF16)
    labels = integers(classes, tokens, seed=3).reshape(2, 128)
    size, rank = dist.get_world_size(), dist.get_rank()
    own = slice(classes * rank // size, classes * (rank + 1) // size)

    def gradient(dtype: torch.dtype, classes: slice, **options: Any) -> Tensor:
        leaf = hidden.to(dtype).reshape(2, 128, features).requires_grad_()
        part = weight[classes].to(dtype).requires_grad_(plan in ("keep", "recompute"))
        given = {"hidden": leaf, "weight": part, "labels": labels} | options
        prefuse.preference_loss("cpo", beta=0.01, **given).loss.backward()
        return leaf.grad.double()

    exact = gradient(F64, slice(None))
    alone = (gradient(BF16, slice(None), plan=plan) - exact).square().mean().sqrt()
    error = (gradient(BF16, own, plan=plan, group=dist.group.WORLD) - exact).square().mean().sqrt()
    assert error < 1.02 * alone, (float(error), float(alone))


@pytest.mark.parametrize("plan", ["single-pass", "keep", "recompute", "grouped"])
def test_shares_of_a_gradient_are_rounded_once(processes, plan):
    processes.run(rounded_once, plan)


def chosen_plans() -> None:
    """Where one process's part would fit into the workspace and another's would not, all take the same plan."""
    given, own = problem(), own_classes()
    weight = given["weight"][own].clone().requires_grad_()
    for workspace_bytes in range(1000, 14000, 1000):
        found = linear_token_stats(
            given["hidden"], weight, given["labels"], workspace_bytes=workspace_bytes, group=dist.group.WORLD
        )
        plans = [None] * dist.get_world_size()
        dist.all_gather_object(plans, (found.plan.name, found.plan.tile[0]))
        assert len(set(plans)) == 1, plans
        found.logp.sum().backward()


def test_all_choose_the_same_plan(processes):
    processes.run(chosen_plans)


def left_out_by_a_mask() -> None:
    """During the capture of a CUDA graph rows that are not scored go through with the others."""
    is_capturing = operators.is_capturing
    operators.is_capturing = lambda device: True
    try:
        agrees(F64, ("logp", "entropy", "lse"), ("hidden",), plan="recompute")
        agrees(F64, ("logp",), EVERYTHING, plan="keep")
    finally:
        operators.is_capturing = is_capturing


def test_rows_that_are_left_out_by_a_mask(processes):
    processes.run(left_out_by_a_mask)


def refused() -> None:
    given = problem()
    for name in ("top1", "topk_mass", "topk_entropy"):
        with pytest.raises(ValueError, match=f"stats: {name} cannot be put together from the parts of a vocabulary"):
            linear_token_stats(given["hidden"], given["weight"], given["labels"], name, group=dist.group.WORLD)
    with pytest.raises(ValueError, match=r"sparse: expected Sparse\(eps, seed=...\) with group, the same on all"):
        hidden = given["hidden"].clone().requires_grad_()
        linear_token_stats(hidden, given["weight"], given["labels"], sparse=0.1, group=dist.group.WORLD)
    with pytest.raises(TypeError, match=r"group: expected a torch.distributed.ProcessGroup .* got 'world'"):
        linear_token_stats(given["hidden"], given["weight"], given["labels"], group="world")
    with pytest.raises(ValueError, match=f"labels: {CLASSES} at .*expected 0 <= label < {CLASSES} "):
        linear_token_stats(
            given["hidden"],
            given["weight"][own_classes()],
            torch.where(given["labels"] == 7, CLASSES, given["labels"]).index_fill(0, torch.tensor([3]), CLASSES),
            group=dist.group.WORLD,
        )


def test_what_is_refused(processes):
    processes.run(refused)


def banned_classes() -> None:
    """Parts of nothing but −inf have no share; a label in one of them has log-probability −inf."""
    given, own = problem(), own_classes()
    bias = torch.zeros(CLASSES, dtype=F64)
    bias[CLASSES - 3 :] = -torch.inf  # the last process's, for both cuts
    labels = given["labels"].clone()
    labels[0] = CLASSES - 1
    results = []
    for part, group in ((own, dist.group.WORLD), (slice(None), None)):
        hidden = given["hidden"].clone().requires_grad_()
        found = linear_token_stats(
            hidden,
            given["weight"][part],
            labels,
            ("logp", "lse", "entropy", "log_sum_sq", "kl"),
            bias=bias[part],
            reference_hidden=given["reference_hidden"],
            group=group,
        )
        (found.logp[1:].sum() + found.entropy.sum() + found.kl.sum()).backward()
        results.append([*found.values(), hidden.grad])
    assert results[0][0][0] == -torch.inf
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_banned_classes(processes):
    processes.run(banned_classes)


def objective_loss(plan: str | None, trained: tuple[str, ...], reference: bool, own: slice | None) -> dict[str, Tensor]:
    """DPO of two pairs, from hidden states."""
    given = problem()
    for name in ("weight", "bias", "reference_weight"):
        given[name] = given[name][own or slice(None)].clone()
    leaves = [given[name].requires_grad_() for name in trained]
    shape = (4, 5)
    count = shape[0] * shape[1]
    options: dict[str, Any] = {}
    if reference:
        options["reference"] = given["reference_hidden"][:count].view(*shape, FEATURES)
        options["reference_weight"] = given["reference_weight"]
    score = prefuse.preference_loss(
        "dpo" if reference else "simpo",
        hidden=given["hidden"][:count].view(*shape, FEATURES),
        weight=given["weight"],
        bias=given["bias"],
        labels=given["labels"][:count].view(shape),
        plan=plan,
        workspace_bytes=9500 if reference else TIGHT,  # one pair to a tile
        group=None if own is None else dist.group.WORLD,
        **options,
    )
    assert plan in (None, score.plan.name)
    gradients = torch.autograd.grad(score.loss, leaves)
    named = {f"d {name}": gradient for name, gradient in zip(trained, gradients, strict=True)}
    return {"loss": score.loss.detach(), "losses": score.losses.detach()} | named


def scores_alike(*case: Any) -> None:
    got = with_whole_classes(objective_loss(*case, own_classes()))
    equal_on_all(got)
    for name, expected in objective_loss(*case, None).items():
        torch.testing.assert_close(got[name], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize(
    ("plan", "trained"),
    [("grouped", EVERYTHING), ("recompute", EVERYTHING), ("single-pass", ("hidden",)), (None, EVERYTHING)],
)
def test_preference_loss(processes, plan, trained, reference):
    processes.run(scores_alike, plan, trained, reference)


def exchanges() -> None:
    """One exchange of sizes, one per tile forward, and one sum of the hidden states' gradient."""
    counts = dict.fromkeys(("all_gather_into_tensor", "all_reduce"), 0)

    def counted(name: str) -> Any:
        function = getattr(dist, name)

        def call(*arguments: Any, **options: Any) -> Any:
            counts[name] += 1
            return function(*arguments, **options)

        return call

    given = problem()
    hidden, weight = given["hidden"].requires_grad_(), given["weight"][own_classes()].clone().requires_grad_()
    options = {"plan": "recompute", "workspace_bytes": TIGHT // 2, "group": dist.group.WORLD}
    with pytest.MonkeyPatch.context() as patched:
        for name in counts:
            patched.setattr(dist, name, counted(name))
        found = linear_token_stats(hidden, weight, given["labels"], ("logp", "entropy"), **options)
        assert found.plan.tiles > 2
        assert counts == {"all_gather_into_tensor": 1 + found.plan.tiles, "all_reduce": 0}
        (found.logp + found.entropy).sum().backward()
        assert counts == {"all_gather_into_tensor": 1 + found.plan.tiles, "all_reduce": 1}


def test_no_more_exchanges_than_needed(processes):
    processes.run(exchanges)
