"""Values and gradients of `linear_token_stats` by every plan, against whole logits in float64."""

from __future__ import annotations

import pytest
import torch

import prefuse
from prefuse.functional import STATISTICS
from prefuse.linear.plans import PLANS
from tests.devices import normal, uniform

from .oracle import gradients, problem, room, statistics, upstream

pytestmark = pytest.mark.usefixtures("device")

TRANSFORMS = [
    {},
    {"temperature": 0.7},
    {"scale": 1.3},
    {"softcap": 5.0},
    {"scale": 1.3, "softcap": 5.0, "temperature": 0.7},
]
TIGHT, WIDE = room(5), room(1000)


def reference_of(given, own_weight):
    hidden = normal(*given["hidden"].shape, seed=20, dtype=torch.float64).to(given["hidden"].dtype)
    if not own_weight:
        return {"reference_hidden": hidden}, (hidden, given["weight"], given.get("bias"))
    weight = normal(given["weight"].shape[0], 6, seed=21, dtype=torch.float64).to(hidden.dtype)
    narrow = hidden[:, :6]
    return {"reference_hidden": narrow, "reference_weight": weight}, (narrow, weight, None)


def check(given, names, plan, *, frozen=False, tolerance=1e-11, reference=None, workspace_bytes=WIDE, **options):
    """Values and gradients by `plan` are those of the oracle; a second backward gives the same."""
    arguments, whole = reference or ({}, None)
    leaves = [given["hidden"].requires_grad_()]
    if not frozen:
        leaves += [given[name].requires_grad_() for name in ("weight", "bias") if name in given]
    stats = prefuse.linear_token_stats(
        **given, stats=names, plan=plan, workspace_bytes=workspace_bytes, **arguments, **options
    )
    assert stats.plan.name == plan
    detached = None if whole is None else tuple(None if x is None else x.detach() for x in whole)
    wanted = statistics(**given, reference=detached, **options)
    for name in names:
        torch.testing.assert_close(stats[name], wanted[name].to(stats[name]), rtol=tolerance, atol=tolerance)
    grads = upstream([name for name in names if stats[name].requires_grad], given["labels"].numel())
    grads = {name: grad.reshape(given["labels"].shape) for name, grad in grads.items()}
    got = gradients(stats, grads, leaves, retain_graph=True)
    for ours, theirs in zip(got, gradients(wanted, grads, leaves), strict=True):
        torch.testing.assert_close(ours, theirs.to(ours), rtol=tolerance, atol=tolerance)
    for first, second in zip(got, gradients(stats, grads, leaves), strict=True):
        assert torch.equal(first, second)
    return stats


@pytest.mark.parametrize("workspace_bytes", [TIGHT, WIDE], ids=["many tiles", "one tile"])
def test_every_statistic_without_a_gradient(workspace_bytes):
    given = problem()
    arguments, whole = reference_of(given, own_weight=False)
    stats = prefuse.linear_token_stats(**given, stats=STATISTICS, k=4, workspace_bytes=workspace_bytes, **arguments)
    assert stats.plan.name == "forward" and not stats.logp.requires_grad
    wanted = statistics(**given, reference=whole, k=4)
    for name in STATISTICS:
        torch.testing.assert_close(stats[name], wanted[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize(
    "names", [("logp",), ("logp", "lse"), ("lse",), ("entropy",), ("mean_logit", "logp")], ids="+".join
)
@pytest.mark.parametrize("workspace_bytes", [TIGHT, WIDE], ids=["many tiles", "one tile"])
def test_single_pass(names, transform, workspace_bytes):
    stats = check(problem(), names, "single-pass", frozen=True, workspace_bytes=workspace_bytes, **transform)
    assert stats.plan.gemms == 1 + len([name for name in names if name != "lse" or "logp" not in names])


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("name", ["logp", "lse", "entropy", "mean_logit"])
def test_keep(name, transform):
    assert check(problem(), (name,), "keep", **transform).plan.gemms == 3


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("names", [("logp",), ("logp", "lse", "entropy", "mean_logit")], ids="+".join)
@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize("workspace_bytes", [TIGHT, WIDE], ids=["many tiles", "one tile"])
def test_recompute(names, transform, frozen, workspace_bytes):
    stats = check(problem(), names, "recompute", frozen=frozen, workspace_bytes=workspace_bytes, **transform)
    assert stats.plan.gemms == (3 if frozen else 4)


@pytest.mark.parametrize("plan", ["single-pass", "keep", "recompute"])
@pytest.mark.parametrize("own_weight", [False, True], ids=["shared weight", "own weight"])
@pytest.mark.parametrize("names", [("kl",), ("rkl",)], ids="+".join)
def test_divergences_from_a_reference(names, own_weight, plan):
    given = problem()
    check(given, (*names, "ref_logp"), plan, frozen=plan == "single-pass", reference=reference_of(given, own_weight))


@pytest.mark.parametrize("plan", ["single-pass", "keep", "recompute"])
@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
def test_label_smoothing(plan, transform):
    check(problem(), ("logp",), plan, frozen=plan == "single-pass", label_smoothing=0.1, **transform)


@pytest.mark.parametrize("plan", ["single-pass", "keep", "recompute"])
def test_a_temperature_per_token(plan):
    temperature = 0.5 + uniform(37, seed=5, dtype=torch.float64)
    check(problem(), ("logp",), plan, frozen=plan == "single-pass", temperature=temperature, softcap=4.0)


def test_lse_beside_logp_with_a_temperature_per_token():
    temperature = 0.5 + uniform(37, seed=5, dtype=torch.float64)
    check(problem(), ("logp", "lse"), "single-pass", frozen=True, temperature=temperature, softcap=4.0)


@pytest.mark.parametrize("plan", ["single-pass", "keep", "recompute"])
@pytest.mark.parametrize("lead", [(37,), (1, 37), (37, 1), ()], ids=str)
def test_leading_shapes_and_no_bias(plan, lead):
    given = problem()
    del given["bias"]
    if lead == ():
        given["hidden"], given["labels"] = given["hidden"][5], given["labels"][5]
    given["hidden"] = given["hidden"].reshape(*lead, 8)
    given["labels"] = given["labels"].reshape(lead)
    check(given, ("logp",), plan, frozen=plan == "single-pass")


@pytest.mark.parametrize("plan", ["single-pass", "keep", "recompute"])
def test_hidden_states_that_are_not_contiguous(plan):
    given = problem()
    given["hidden"] = normal(8, 37, 2, seed=6, dtype=torch.float64)[..., 0].T
    given["labels"] = given["labels"].to(torch.int32)
    check(given, ("logp",), plan, frozen=plan == "single-pass")


@pytest.mark.parametrize("plan", ["single-pass", "keep", "recompute"])
def test_a_mask_beside_ignored_labels(plan):
    mask = torch.arange(37) % 3 != 0
    check(problem(), ("logp",), plan, frozen=plan == "single-pass", mask=mask)
    check(problem(), ("logp",), plan, frozen=plan == "single-pass", mask=mask.to(torch.int64))


@pytest.mark.parametrize("plan", ["single-pass", "keep", "recompute"])
@pytest.mark.parametrize("classes", [1, 2, 17])
def test_few_classes(plan, classes):
    check(problem(classes=classes), ("logp",), plan, frozen=plan == "single-pass")


@pytest.mark.parametrize("plan", ["single-pass", "keep", "recompute"])
def test_nothing_scored_is_nothing_everywhere(plan):
    given = problem()
    given["labels"][:] = -100
    given["hidden"][:] = torch.nan
    given["hidden"].requires_grad_()
    given["weight"].requires_grad_(plan != "single-pass")
    logp = prefuse.linear_token_logps(**given, plan=plan)
    logp.sum().backward()
    assert (logp == 0).all() and (given["hidden"].grad == 0).all()
    assert given["weight"].grad is None or (given["weight"].grad == 0).all()


@pytest.mark.parametrize("plan", ["single-pass", "keep", "recompute"])
def test_no_tokens_at_all(plan):
    given = problem()
    given["hidden"], given["labels"] = given["hidden"][:0].requires_grad_(), given["labels"][:0]
    given["weight"].requires_grad_(plan != "single-pass")
    logp = prefuse.linear_token_logps(**given, plan=plan)
    logp.sum().backward()
    assert logp.shape == (0,) and given["hidden"].grad.shape == (0, 8)


@pytest.mark.parametrize("plan", ["single-pass", "keep", "recompute"])
def test_ignored_rows_may_hold_anything(plan):
    clean, dirty = problem(), problem()
    dirty["hidden"][dirty["labels"] == -100] = torch.nan
    results = []
    for given in (clean, dirty):
        given["hidden"].requires_grad_()
        given["weight"].requires_grad_(plan != "single-pass")
        logp = prefuse.linear_token_logps(**given, plan=plan)
        (logp * torch.where(given["labels"] == -100, torch.inf, 1.0)).nan_to_num().sum().backward()
        results.append((logp.detach(), given["hidden"].grad, given["weight"].grad))
    for ours, theirs in zip(*results, strict=True):
        assert ours is theirs is None or torch.equal(ours, theirs)


@pytest.mark.parametrize("plan", ["single-pass", "keep", "recompute"])
def test_banned_classes(plan):
    """A bias of −inf bans a class: its p is 0, and nothing becomes NaN; a banned label has log-probability −inf."""
    given = problem()
    given["bias"][::3] = -torch.inf
    given["hidden"].requires_grad_()
    given["weight"].requires_grad_(plan != "single-pass")
    logp = prefuse.linear_token_logps(**given, plan=plan)
    banned = (given["labels"] % 3 == 0) & (given["labels"] >= 0)
    assert banned.any() and (logp[banned] == -torch.inf).all() and logp[~banned].isfinite().all()
    logp[~banned].sum().backward()
    keep = torch.arange(53) % 3 != 0
    fewer = torch.where(banned, -100, given["labels"])
    renumbered = torch.where(fewer < 0, fewer, keep.cumsum(0)[fewer.clamp(min=0)] - 1)
    hidden = given["hidden"].detach().requires_grad_()
    weight = given["weight"].detach()[keep].requires_grad_()
    wanted = statistics(hidden, weight, renumbered, bias=given["bias"][keep])["logp"]
    torch.testing.assert_close(logp[~banned], wanted[~banned])
    grads = torch.autograd.grad(wanted.sum(), (hidden, weight))
    torch.testing.assert_close(given["hidden"].grad, grads[0])
    if plan != "single-pass":
        torch.testing.assert_close(given["weight"].grad[keep], grads[1])
        assert (given["weight"].grad[~keep] == 0).all()


@pytest.mark.parametrize("plan", ["single-pass", "keep", "recompute"])
def test_finite_differences(plan):
    given = problem(tokens=5, features=3, classes=7)
    leaves = ["hidden"] if plan == "single-pass" else ["hidden", "weight", "bias"]

    def function(*tensors):
        own = given | dict(zip(leaves, tensors, strict=True))
        return prefuse.linear_token_logps(**own, plan=plan, softcap=3.0, temperature=0.8, label_smoothing=0.05)

    inputs = [given[name].requires_grad_() for name in leaves]
    torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("frozen", [False, True])
def test_an_adapter_is_never_merged(frozen):
    given = problem()
    first = normal(3, 8, seed=7, dtype=torch.float64).requires_grad_()
    second = normal(53, 3, seed=8, dtype=torch.float64).requires_grad_(not frozen)
    given["hidden"].requires_grad_()
    leaves = [given["hidden"], first, *([] if frozen else [second])]
    stats = prefuse.linear_token_stats(**given, lora=(first, second, 0.5))
    assert stats.plan.name == ("single-pass" if frozen else "keep")
    merged = given | {"weight": given["weight"] + 0.5 * second @ first}
    wanted = statistics(**merged)
    torch.testing.assert_close(stats.logp, wanted["logp"])
    grads = upstream(("logp",), 37)
    for ours, theirs in zip(gradients(stats, grads, leaves), gradients(wanted, grads, leaves), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_reference_of_an_adapter_is_the_weight_without_it():
    given = problem()
    lora = (normal(3, 8, seed=7, dtype=torch.float64), normal(53, 3, seed=8, dtype=torch.float64), 0.5)
    stats = prefuse.linear_token_stats(**given, stats=("logp", "ref_logp"), lora=lora, reference_hidden=given["hidden"])
    torch.testing.assert_close(stats.ref_logp, statistics(**given)["logp"])


@pytest.mark.parametrize("plan", ["single-pass", "keep", "recompute"])
@pytest.mark.parametrize(
    ("policy", "of"),
    [(torch.float64, torch.bfloat16), (torch.float32, torch.float16), (torch.float64, torch.float32)],
    ids=str,
)
def test_a_reference_of_a_narrower_dtype(policy, of, plan):
    """Its logits are rounded to its own dtype, as that model rounds them; all else is in the policy's."""
    given = problem(dtype=policy)
    states, weight, bias = normal(37, 6, seed=20).to(of), normal(53, 6, seed=21).to(of), normal(53, seed=22).to(of)
    hidden = given.pop("hidden").requires_grad_()
    got = prefuse.linear_token_stats(
        hidden,
        **given,
        stats=("kl", "ref_logp"),
        plan=plan,
        reference_hidden=states,
        reference_weight=weight,
        reference_bias=bias,
        workspace_bytes=WIDE if plan == "keep" else TIGHT,
    )
    logits = torch.nn.functional.linear(hidden, given["weight"], given.get("bias"))
    reference = torch.nn.functional.linear(states, weight, bias).to(policy)
    wanted = prefuse.token_stats(logits, given["labels"], ("kl", "ref_logp"), reference_logits=reference)
    for name in ("kl", "ref_logp"):
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-4, atol=1e-5)
    ours, theirs = (torch.autograd.grad(made.kl.sum(), hidden)[0] for made in (got, wanted))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_loss_with_a_reference_of_a_narrower_dtype():
    hidden, weight = normal(4, 5, 8, seed=1).requires_grad_(), normal(53, 8, seed=2).requires_grad_()
    states, own = normal(4, 5, 6, seed=3).bfloat16(), normal(53, 6, seed=4).bfloat16()
    labels = torch.arange(20).reshape(4, 5)
    options = {"reference": states, "reference_weight": own}
    found = prefuse.preference_loss("dpo", hidden=hidden, weight=weight, labels=labels, **options).loss
    logits, reference = hidden @ weight.T, (states @ own.T).float()
    wanted = prefuse.preference_loss("dpo", logits=logits, labels=labels, reference=reference).loss
    torch.testing.assert_close(found, wanted)
    for ours, theirs in zip(*(torch.autograd.grad(loss, (hidden, weight)) for loss in (found, wanted)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", [37, 150, 70])  # of 70, 64 are scored
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_reference_of_equal_hidden_states_has_equal_bits(dtype, tokens):
    for workspace_bytes in (TIGHT, WIDE):
        given = problem(tokens=tokens, dtype=dtype)
        stats = prefuse.linear_token_stats(
            **given,
            stats=("logp", "ref_logp", "kl"),
            reference_hidden=given["hidden"].clone(),
            workspace_bytes=workspace_bytes,
        )
        assert torch.equal(stats.logp, stats.ref_logp) and (stats.kl.abs() < 1e-6).all()


def test_an_adapter_that_adds_nothing_leaves_the_bits_of_the_reference():
    given = problem(dtype=torch.bfloat16)
    lora = (normal(3, 8, seed=7).bfloat16(), torch.zeros(53, 3, dtype=torch.bfloat16), 0.5)
    stats = prefuse.linear_token_stats(
        **given, stats=("logp", "ref_logp"), lora=lora, reference_hidden=given["hidden"].clone()
    )
    assert torch.equal(stats.logp, stats.ref_logp)


def test_a_weight_tied_to_an_embedding():
    weight = normal(53, 8, seed=2, dtype=torch.float64).requires_grad_()
    tokens = torch.arange(37) % 53
    labels = tokens.roll(-1)
    prefuse.linear_token_logps(weight[tokens] ** 2, weight, labels).sum().backward()
    ours, weight.grad = weight.grad, None
    statistics(weight[tokens] ** 2, weight, labels)["logp"].sum().backward()
    torch.testing.assert_close(ours, weight.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("plan", "workspace_bytes"),
    [
        ("single-pass", TIGHT // 2),
        ("single-pass", WIDE),
        ("keep", WIDE),
        ("recompute", TIGHT // 2),
        ("recompute", WIDE),
    ],
)
def test_narrow_dtypes(dtype, plan, workspace_bytes):
    """Errors are a few roundings of the dtype."""
    given = problem(dtype=dtype)
    leaves = ["hidden"] if plan == "single-pass" else ["hidden", "weight", "bias"]
    for name in leaves:
        given[name].requires_grad_()
    exact = {name: value.detach().double() if value.is_floating_point() else value for name, value in given.items()}
    for name in leaves:
        exact[name].requires_grad_()
    stats = prefuse.linear_token_stats(**given, plan=plan, workspace_bytes=workspace_bytes)
    wanted = statistics(**exact)
    assert stats.logp.dtype == torch.float32
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(stats.logp.double(), wanted["logp"], rtol=0, atol=eps * 64)
    grads = upstream(("logp",), 37, torch.float32)
    ours = gradients(stats, grads, [given[name] for name in leaves])
    theirs = gradients(wanted, grads, [exact[name] for name in leaves])
    for name, own, other in zip(leaves, ours, theirs, strict=True):
        assert own.dtype == dtype
        assert ((own.double() - other).norm() / other.norm()) < 4 * eps, name


def test_confident_tokens_keep_their_digits():
    """1 − p is taken before rounding: with p_label = 0.999 it would be gone after."""
    hidden = torch.eye(4, 8).repeat(3, 1).to(torch.bfloat16)
    weight = torch.zeros(64, 8)
    weight[torch.arange(4), torch.arange(4)] = 11.0
    weight, labels = weight.to(torch.bfloat16), torch.arange(12) % 4
    hidden.requires_grad_()
    logp = prefuse.linear_token_logps(hidden, weight, labels)
    assert (logp > -0.002).all() and (logp < 0).all()
    logp.sum().backward()
    exact = hidden.detach().double().requires_grad_()
    statistics(exact, weight.double(), labels)["logp"].sum().backward()
    relative = (hidden.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert relative < 0.01


def test_kept_in_float32_on_request():
    given = problem(dtype=torch.bfloat16, tokens=64, features=32)
    exact = given["hidden"].double().requires_grad_()
    statistics(exact, given["weight"].double(), given["labels"], bias=given["bias"].double())["logp"].sum().backward()
    errors = []
    for dtype in (torch.bfloat16, torch.float32):
        hidden = given["hidden"].clone().requires_grad_()
        prefuse.linear_token_logps(
            hidden, given["weight"], given["labels"], bias=given["bias"], gradient_dtype=dtype
        ).mul(1 / 3).sum().backward()
        errors.append(float((3 * hidden.grad.double() - exact.grad).norm() / exact.grad.norm()))
    assert errors[1] < errors[0]


def test_only_what_is_asked_for_is_differentiable():
    given = problem()
    given["hidden"].requires_grad_()
    stats = prefuse.linear_token_stats(**given, stats=("logp", "entropy", "top1"), differentiable=("logp",))
    assert stats.plan.gemms == 2
    assert stats.logp.requires_grad and not stats.entropy.requires_grad and not stats.top1.requires_grad
    (gradient,) = torch.autograd.grad(stats.logp.sum(), given["hidden"])
    torch.testing.assert_close(gradient, torch.autograd.grad(statistics(**given)["logp"].sum(), given["hidden"])[0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_statistics_come_in_the_order_they_were_asked_for(smoothing):
    given = problem(dtype=torch.float64)
    given["hidden"].requires_grad_()
    names = ("entropy", "lse", "logp")
    asked = prefuse.linear_token_stats(**given, stats=names, label_smoothing=smoothing)
    assert tuple(asked) == names
    for name in names:
        alone = prefuse.linear_token_stats(**given, stats=name, label_smoothing=smoothing)[name]
        torch.testing.assert_close(asked[name], alone, rtol=1e-12, atol=1e-12)
        ours, theirs = (
            torch.autograd.grad(v.sum(), given["hidden"], retain_graph=True)[0] for v in (asked[name], alone)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_no_gradient_no_second_product():
    given = problem()
    given["hidden"].requires_grad_()
    with torch.no_grad():
        assert prefuse.linear_token_stats(**given, plan="keep").plan.name == "forward"
    assert prefuse.linear_token_stats(**given, stats="top1").plan.name == "forward"


def test_hidden_states_are_let_go_with_the_weight_frozen():
    given = problem()
    given["hidden"].requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        prefuse.linear_token_logps(**given)
    assert not any(tensor is given["hidden"] or tensor.data_ptr() == given["weight"].data_ptr() for tensor in saved)


def test_sequences():
    given = problem(tokens=36)
    given["hidden"].requires_grad_()
    hidden, labels = given["hidden"].reshape(4, 9, 8), given["labels"].reshape(4, 9)
    rest = {"weight": given["weight"], "bias": given["bias"]}
    logps = statistics(hidden[:, :-1], labels=labels[:, 1:], **rest)["logp"]
    got = prefuse.linear_sequence_logps(hidden, labels=labels, shift=True, **rest)
    torch.testing.assert_close(got, logps.sum(-1))
    mean = prefuse.linear_sequence_logps(hidden, labels=labels, shift=True, average=True, **rest)
    torch.testing.assert_close(mean, logps.sum(-1) / (labels[:, 1:] != -100).sum(-1))
    packed = prefuse.linear_sequence_logps(
        hidden.reshape(36, 8), labels=labels.reshape(36), cu_seqlens=torch.arange(5) * 9, shift=True, **rest
    )
    torch.testing.assert_close(packed, got)


def test_every_plan_but_grouped_is_tested_here():
    assert set(PLANS) == {"forward", "single-pass", "grouped", "keep", "recompute", "lists", "columns"}


@pytest.mark.parametrize("plan", ["keep", "recompute"])
def test_temperatures_of_a_wider_dtype(plan):
    """With the labels' share of the bias's gradient, which is added up in float32."""
    given = problem()
    narrow = {name: value.bfloat16() if value.is_floating_point() else value for name, value in given.items()}
    wrt = [narrow[name].requires_grad_() for name in ("hidden", "weight", "bias")]
    temperature = 0.5 + uniform(37, seed=5, dtype=torch.float64)
    results = []
    for given in (temperature, temperature.float()):
        logps = prefuse.linear_token_logps(*wrt[:2], narrow["labels"], bias=wrt[2], temperature=given, plan=plan)
        results.append(torch.autograd.grad(logps.sum(), wrt))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=1e-2)
