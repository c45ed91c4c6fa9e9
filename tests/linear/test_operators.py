"""The fused head as PyTorch sees it: schemas, fake kernels, compile, autocast, second derivatives, threads."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import prefuse
from prefuse.linear import functions, operators
from prefuse.linear import operands as operands_of
from prefuse.linear.call import SMOOTHED, set_of
from tests.devices import normal

from .oracle import problem, statistics

pytestmark = pytest.mark.usefixtures("device")


def arguments(
    plan, *, stats="logp", wants, live=True, lora=False, reference=False, mask=False, temperatures=False, eps=0.0
):
    given = problem(tokens=6, dtype=torch.float32)
    inputs, weights = [given["hidden"].reshape(2, 3, 8)], [given["weight"]]
    if lora:
        inputs.append(normal(2, 3, 2, seed=7))
        weights.append(normal(53, 2, seed=8))
    wanted = [wants[0]] * len(inputs) + [wants[1]] * len(weights) + [wants[2]]
    for tensor, want in zip((*inputs, *weights, given["bias"]), wanted, strict=True):
        tensor.requires_grad_(want)
    labels = given["labels"].reshape(2, 3)
    names = stats.split(",")
    differentiated = [name for name in names if name != "top1"] if any(wanted) else []
    return (
        inputs,
        weights,
        given["bias"],
        [normal(2, 3, 8, seed=9)] if reference else [],
        labels,
        torch.tensor([[True, True, False]] * 2) if mask else None,
        torch.full((2, 3), 0.7) if temperatures else None,
        1.0,
        1.0,
        0.0,
        -100,
        set_of(names),
        set_of(differentiated),
        5,
        0.1 if SMOOTHED in names else 0.0,
        plan,
        4,
        4,
        20,
        wanted,
        False,
        "",
        0,
        53,
        False,
        eps,
        3,
        0,
        0,
        False,
        False,
        ((labels.reshape(-1) != -100).nonzero().reshape(-1) if live and not mask else None),
    )


@pytest.mark.parametrize(
    "options",
    [
        {"plan": "forward", "wants": (False, False, False), "stats": "logp,top1,entropy"},
        {"plan": "single-pass", "wants": (True, False, False)},
        {"plan": "single-pass", "wants": (True, False, False), "stats": "logp,lse", "lora": True},
        {"plan": "keep", "wants": (True, True, True), "stats": SMOOTHED},
        {"plan": "keep", "wants": (False, True, False), "live": False},
        {"plan": "recompute", "wants": (True, True, True), "stats": "logp,kl", "reference": True},
        {"plan": "recompute", "wants": (True, False, False), "mask": True, "temperatures": True},
    ],
    ids=lambda options: options["plan"],
)
def test_opcheck(options):
    torch.library.opcheck(operators.linear_token_stats, arguments(**options))


COMPILED = {
    "single-pass": {"frozen": True},
    "keep": {"frozen": False},
    "recompute": {"frozen": False, "workspace_bytes": 5000},
}


@pytest.mark.parametrize("plan", COMPILED)
def test_compiles_whole(plan):
    options = dict(COMPILED[plan])
    frozen = options.pop("frozen")

    def loss(hidden, weight, labels):
        stats = prefuse.linear_token_stats(hidden * 2, weight, labels, ("logp", "top1"), **options)
        return (stats.logp * stats.top1).sum() - stats.logp.mean()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True)):
        given = problem(dtype=torch.float32)
        hidden, weight = given["hidden"].requires_grad_(), given["weight"].requires_grad_(not frozen)
        value = function(hidden, weight, given["labels"])
        value.backward()
        results.append((value.detach(), hidden.grad, weight.grad))
    for eager, compiled in zip(*results, strict=True):
        assert eager is compiled is None or torch.allclose(eager, compiled, rtol=1e-5, atol=1e-6)


def test_autocast_takes_hidden_states_and_weight_in_its_dtype(device):
    given = problem(dtype=torch.float32)
    given["hidden"].requires_grad_()
    given["weight"].requires_grad_()
    with torch.autocast(device.type, torch.bfloat16):
        stats = prefuse.linear_token_stats(**given, lora=(normal(2, 8, seed=1), normal(53, 2, seed=2), 0.1))
    stats.logp.sum().backward()
    assert given["hidden"].grad.dtype == given["weight"].grad.dtype == torch.float32
    narrow = {name: value.detach().bfloat16() if value.is_floating_point() else value for name, value in given.items()}
    lora = (normal(2, 8, seed=1).bfloat16(), normal(53, 2, seed=2).bfloat16(), 0.1)
    assert torch.equal(stats.logp, prefuse.linear_token_stats(**narrow, lora=lora).logp)


def test_autocast_leaves_float64_alone(device):
    given = problem()
    with torch.autocast(device.type, torch.bfloat16):
        logp = prefuse.linear_token_logps(**given)
    assert torch.equal(logp, prefuse.linear_token_logps(**given))


@pytest.mark.parametrize("plan", ["single-pass", "keep", "recompute"])
def test_second_derivatives_are_a_clear_error(plan):
    given = problem()
    given["hidden"].requires_grad_()
    given["weight"].requires_grad_(plan != "single-pass")
    logp = prefuse.linear_token_logps(**given, plan=plan)
    (gradient,) = torch.autograd.grad(logp.sum(), given["hidden"], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        gradient.sum().backward()


def test_transforms_are_a_clear_error():
    given = problem()
    with pytest.raises(NotImplementedError, match=r"torch\.func"):
        torch.vmap(lambda hidden: prefuse.linear_token_logps(hidden, given["weight"], given["labels"][:1]))(
            given["hidden"][:, None]
        )


@pytest.mark.parametrize("name", ["hidden", "weight"])
def test_forward_mode_is_a_clear_error(name):
    given = problem()
    with torch.autograd.forward_ad.dual_level():
        given[name] = torch.autograd.forward_ad.make_dual(given[name], given[name])
        with pytest.raises(NotImplementedError, match="forward-mode"):
            prefuse.linear_token_logps(**given)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        other = problem()
        torch.func.jvp(
            lambda hidden: prefuse.linear_token_logps(hidden, other["weight"], other["labels"]),
            (other["hidden"],),
            (other["hidden"],),
        )


def test_threads_of_ones_own():
    given = problem()
    wanted = prefuse.linear_token_logps(**given)
    results = []
    threads = [threading.Thread(target=lambda: results.append(prefuse.linear_token_logps(**given))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(torch.equal(result, wanted) for result in results)


def test_a_checkpointed_head_gives_the_same():
    given = problem()
    given["hidden"].requires_grad_()
    function = lambda hidden: prefuse.linear_token_logps(hidden, given["weight"], given["labels"])  # noqa: E731
    (plain,) = torch.autograd.grad(function(given["hidden"]).sum(), given["hidden"])
    checkpointed = torch.utils.checkpoint.checkpoint(function, given["hidden"], use_reentrant=False)
    assert torch.equal(torch.autograd.grad(checkpointed.sum(), given["hidden"])[0], plain)


def test_backward_of_part_of_the_statistics():
    """A statistic that no gradient comes to counts as 0, whatever comes to the others."""
    given = problem()
    for name in ("hidden", "weight"):
        given[name].requires_grad_()
    stats = prefuse.linear_token_stats(**given, stats=("logp", "entropy", "lse"))
    for name in ("logp", "entropy", "lse"):
        ours = torch.autograd.grad(stats[name].sum(), given["weight"], retain_graph=True)[0]
        theirs = torch.autograd.grad(statistics(**given)[name].sum(), given["weight"])[0]
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("stats", "plan", "frozen", "reference"),
    [
        ("logp", "single-pass", True, False),
        ("logp,lse", "single-pass", True, False),
        ("logp,entropy", "single-pass", True, False),
        ("logp,ref_logp", "single-pass", True, True),
        ("logp", "keep", False, False),
        ("logp", "recompute", False, False),
        ("logp,entropy,lse", "recompute", True, False),
    ],
)
@pytest.mark.parametrize("workspace_bytes", [5000, 1 << 20], ids=["many tiles", "one tile"])
def test_as_many_products_as_the_plan_says(stats, plan, frozen, reference, workspace_bytes, monkeypatch):
    """Counted where PyTorch multiplies: the operators' own functions are run, which the counter looks into."""
    asked = []
    monkeypatch.setattr(
        functions, "run", lambda *call: (asked.append(call) or torch.zeros(len(call[1].names), 37), call[3])
    )
    given = problem(dtype=torch.float32)
    given["hidden"].requires_grad_()
    given["weight"].requires_grad_(not frozen)
    options = {"reference_hidden": given["hidden"].detach()} if reference else {}
    fits = workspace_bytes if plan != "keep" else 1 << 20
    prefuse.linear_token_stats(**given, stats=stats.split(","), plan=plan, workspace_bytes=fits, **options)
    ((operands, statistics, index, chosen),) = asked
    request = operands_of.request(operands, statistics, index, chosen)
    counted = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _flops_of_addmm_})
    with counted as counter, torch.no_grad():
        values, table, *kept = operators.linear_token_stats._init_fn(*request)
        operators.linear_token_stats_backward._init_fn(torch.ones_like(values), table, kept, *request)
    extra = 1 if reference else 0  # the rows of the reference
    assert counter.get_total_flops() == (chosen.gemms + extra) * 2 * index.shape[0] * 8 * 53


def _flops_of_addmm_(total, a, b, *_, **__):
    return 2 * a[0] * a[1] * b[1]
