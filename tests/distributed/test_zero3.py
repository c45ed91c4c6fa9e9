"""DeepSpeed ZeRO-3, whose parameters are empty but while they are gathered: played by a module of that name."""

from __future__ import annotations

import enum
import gc
import sys
import types
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import prefuse
from prefuse import Support
from prefuse.linear.functions import linear_token_stats
from tests.devices import integers, normal

TOKENS, FEATURES, CLASSES, RANK = 20, 6, 31, 3
F64 = torch.float64


class ZeroParamStatus(enum.Enum):
    AVAILABLE = 1
    NOT_AVAILABLE = 2
    INFLIGHT = 3


class DeepSpeed:
    """Partitions parameters, and remembers in which order whose data came and went."""

    def __init__(self) -> None:
        self.whole: dict[int, Tensor] = {}
        self.log: list[tuple[str, tuple[str, ...]]] = []
        self.names: dict[int, str] = {}
        self.reduced: list[str] = []
        """Whose gradients arrived, in order."""
        self.spoils = True
        """Whether memory is overwritten when a parameter gives it back: nothing should hold on to it."""

    def partition(self, **parameters: nn.Parameter) -> None:
        for name, parameter in parameters.items():
            parameter.ds_id, parameter.ds_shape = len(self.names), parameter.shape
            self.names[parameter.ds_id], self.whole[parameter.ds_id] = name, parameter.data
            if parameter.requires_grad:  # a hook of the parameter's, as DeepSpeed has it: no node of autograd is kept
                parameter.register_post_accumulate_grad_hook(self._reduce)
            self._release(parameter)

    def gather(self, parameter: nn.Parameter) -> None:
        assert parameter.ds_status is ZeroParamStatus.NOT_AVAILABLE
        parameter.data = self.whole[parameter.ds_id].clone()  # so that nobody reads memory that was given back
        parameter.ds_status = ZeroParamStatus.AVAILABLE

    def _release(self, parameter: nn.Parameter) -> None:
        parameter.data = torch.empty(0, dtype=parameter.dtype)
        parameter.ds_status = ZeroParamStatus.NOT_AVAILABLE

    def release(self, parameter: nn.Parameter) -> None:
        if self.spoils:
            parameter.data.fill_(torch.nan)
        self._release(parameter)

    def _reduce(self, parameter: nn.Parameter) -> None:
        assert parameter.grad.shape == parameter.ds_shape  # DeepSpeed fails, too, where there is no gradient
        self.reduced.append(self.names[parameter.ds_id])

    def record(self, what: str, parameters: list[nn.Parameter]) -> None:
        self.log.append((what, tuple(self.names[parameter.ds_id] for parameter in parameters)))


@pytest.fixture
def deepspeed(monkeypatch: pytest.MonkeyPatch) -> Iterator[DeepSpeed]:
    played = DeepSpeed()

    class GatheredParameters:
        def __init__(self, params: list[nn.Parameter]) -> None:
            self.params = params

        def __enter__(self) -> None:
            played.record("enter", self.params)
            for parameter in self.params:
                played.gather(parameter)

        def __exit__(self, *error: object) -> None:
            played.record("exit", self.params)
            for parameter in self.params:
                played.release(parameter)

    module = types.ModuleType("deepspeed")
    module.zero = types.SimpleNamespace(GatheredParameters=GatheredParameters)
    monkeypatch.setitem(sys.modules, "deepspeed", module)
    yield played


def parameters(**wanted: bool) -> dict[str, nn.Parameter]:
    """Parameters by name, and whether they want a gradient."""
    shapes = {"weight": (CLASSES, FEATURES), "bias": (CLASSES,), "first": (RANK, FEATURES), "second": (CLASSES, RANK)}
    shapes |= {"reference_weight": (CLASSES, FEATURES), "reference_bias": (CLASSES,)}
    return {
        name: nn.Parameter(normal(*shapes[name], seed=i, dtype=F64), requires_grad=wanted[name])
        for i, name in enumerate(shapes)
        if name in wanted
    }


def run(given: dict[str, nn.Parameter], *stats: str, **options: object) -> dict[str, Tensor]:
    """Values, then gradients of everything that wants one."""
    given = dict(given)
    hidden = normal(TOKENS, FEATURES, seed=10, dtype=F64).requires_grad_()
    leaves = {"hidden": hidden} | {name: value for name, value in given.items() if value.requires_grad}
    if "first" in given:
        options["lora"] = (given.pop("first"), given.pop("second"), 0.5)
    if {"kl", "rkl"} & set(stats):
        options["reference_hidden"] = normal(TOKENS, FEATURES, seed=11, dtype=F64)
    labels = integers(CLASSES, TOKENS, seed=12)
    found = linear_token_stats(hidden, given.pop("weight"), labels, stats, **given, **options)
    loss = sum((value * normal(TOKENS, seed=13, dtype=F64)).sum() for value in found.values())
    loss.backward()
    return {"loss": loss.detach()} | {name: leaf.grad for name, leaf in leaves.items()}


def agrees(played: DeepSpeed, wanted: dict[str, bool], *stats: str, **options: object) -> list[tuple[str, ...]]:
    """Which parameters were gathered, one entry per time."""
    expected = run(parameters(**wanted), *stats, **options)
    given = parameters(**wanted)
    played.partition(**given)
    got = run(given, *stats, **options)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    assert all(parameter.ds_status is ZeroParamStatus.NOT_AVAILABLE for parameter in given.values())
    assert sorted(played.reduced) == sorted(name for name, wants in wanted.items() if wants)
    played.reduced.clear()
    entered = [names for what, names in played.log if what == "enter"]
    assert played.log == [(what, names) for names in entered for what in ("enter", "exit")]
    return entered


def test_a_frozen_head_is_gathered_forward_only(deepspeed):
    for bias in ({}, {"bias": False}):
        deepspeed.log.clear()
        head = {"weight": False} | bias
        assert agrees(deepspeed, head, "logp", plan="single-pass") == [tuple(head)]


def test_the_gradient_of_lse_reads_rows_of_the_weight(deepspeed):
    assert agrees(deepspeed, {"weight": False}, "logp", "lse", plan="single-pass") == [("weight",), ("weight",)]


def test_recompute_gathers_again(deepspeed):
    head = {"weight": True, "bias": True}
    assert agrees(deepspeed, head, "logp", plan="recompute") == [("weight", "bias"), ("weight", "bias")]


def test_a_support_gathers_again(deepspeed):
    head = {"weight": True, "bias": True, "first": True, "second": True}
    options = {"support": Support(top_k=9, top_p=0.9), "workspace_bytes": 20_000}
    forward, backward = agrees(deepspeed, head, "logp", "entropy", **options)
    assert set(forward) == set(head)
    assert set(backward) == {"weight", "bias", "second"}
    deepspeed.log.clear()
    assert len(agrees(deepspeed, {"weight": False}, "logp", **options)) == 2


def test_keep_does_not_read_the_bias_again(deepspeed):
    assert agrees(deepspeed, {"weight": True, "bias": True}, "logp", plan="keep") == [("weight", "bias"), ("weight",)]


def test_an_adapter(deepspeed):
    head = {"weight": False, "first": True, "second": True}
    forward, backward = agrees(deepspeed, head, "logp", plan="keep")
    assert set(forward) == set(head)
    assert set(backward) == {"weight", "second"}


@pytest.mark.parametrize("plan", ["single-pass", "recompute"])
def test_a_reference_with_its_own_head(deepspeed, plan):
    trains = plan == "recompute"
    head = {"weight": trains, "reference_weight": False, "reference_bias": False}
    entered = agrees(deepspeed, head, "logp", "kl", plan=plan)
    assert [set(names) for names in entered] == [set(head)] * (2 if trains else 1)


def test_a_reference_that_requires_grad_gets_none(deepspeed):
    given = parameters(weight=True, reference_weight=True)
    deepspeed.partition(**given)
    weight, other = given.values()
    hidden = normal(TOKENS, FEATURES, seed=10, dtype=F64)
    labels = integers(CLASSES, TOKENS, seed=12)
    options = {"reference_hidden": hidden + 1, "reference_weight": other}
    linear_token_stats(hidden, weight, labels, "kl", **options).kl.sum().backward()
    assert deepspeed.reduced == ["weight"]
    assert weight.grad is not None
    assert other.grad is None
    assert other.requires_grad


def test_under_autocast(deepspeed):
    def gradients(weight: nn.Parameter) -> tuple[Tensor, Tensor]:
        hidden = normal(TOKENS, FEATURES, seed=10).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            logps = prefuse.linear_token_logps(hidden, weight, integers(CLASSES, TOKENS, seed=12))
        logps.sum().backward()
        return hidden.grad, weight.grad

    plain = nn.Parameter(normal(CLASSES, FEATURES, seed=1))
    cut = nn.Parameter(normal(CLASSES, FEATURES, seed=1))
    deepspeed.partition(weight=cut)
    for got, expected in zip(gradients(cut), gradients(plain), strict=True):
        assert torch.equal(got, expected)


def test_what_is_whole_already_is_left_alone(deepspeed):
    """A tied embedding, while its module is at work."""
    given = parameters(weight=True)
    deepspeed.partition(**given)
    deepspeed.gather(given["weight"])
    got = run(given, "logp", plan="recompute")
    assert deepspeed.log == []
    assert given["weight"].ds_status is ZeroParamStatus.AVAILABLE
    expected = run(parameters(weight=True), "logp", plan="recompute")
    torch.testing.assert_close(got["weight"], expected["weight"])


def test_a_parameter_that_comes_twice_is_gathered_once(deepspeed):
    weight = parameters(weight=True)["weight"]
    deepspeed.partition(weight=weight)
    hidden = normal(TOKENS, FEATURES, seed=10, dtype=F64)
    options = {"reference_hidden": hidden + 1, "reference_weight": weight}
    linear_token_stats(hidden, weight, integers(CLASSES, TOKENS, seed=12), "kl", **options)
    assert deepspeed.log == [("enter", ("weight",)), ("exit", ("weight",))]


@pytest.mark.parametrize("plan", ["grouped", "keep", "recompute"])
def test_preference_loss(deepspeed, plan):
    results = []
    for partitioned in (False, True):
        given = parameters(weight=True, bias=True)
        if partitioned:
            deepspeed.partition(**given)
        hidden = normal(4, 5, FEATURES, seed=10, dtype=F64).requires_grad_()
        labels = integers(CLASSES, 4, 5, seed=12)
        score = prefuse.preference_loss("simpo", hidden=hidden, labels=labels, plan=plan, **given)
        score.loss.backward()
        assert score.plan.job.classes == CLASSES
        results.append([score.loss.detach(), hidden.grad, *(parameter.grad for parameter in given.values())])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    backward = {"grouped": [], "keep": [("weight",)], "recompute": [("weight", "bias")]}[plan]
    assert [names for what, names in deepspeed.log if what == "enter"] == [("weight", "bias"), *backward]


def test_explain_sees_the_shapes(deepspeed, capsys):
    given = parameters(weight=True)
    deepspeed.partition(**given)
    hidden, labels = normal(4, 5, FEATURES, seed=10, dtype=F64), integers(CLASSES, 4, 5, seed=12)
    plan = prefuse.explain("simpo", hidden=hidden, labels=labels, **given)
    assert plan.job.classes == CLASSES
    assert f"x {CLASSES} classes" in capsys.readouterr().out


def test_an_error_leaves_everything_partitioned(deepspeed):
    given = parameters(weight=True)
    deepspeed.partition(**given)
    with pytest.raises(ValueError, match=rf"hidden: expected {FEATURES} features, as weight of shape"):
        linear_token_stats(normal(TOKENS, 4, seed=1, dtype=F64), given["weight"], integers(CLASSES, TOKENS, seed=2))
    assert given["weight"].ds_status is ZeroParamStatus.NOT_AVAILABLE


def logps(weight: nn.Parameter, seed: int = 10) -> tuple[Tensor, Tensor]:
    """Hidden states, and the log-probabilities they give."""
    hidden = normal(TOKENS, FEATURES, seed=seed, dtype=F64).requires_grad_()
    return hidden, prefuse.linear_token_logps(hidden, weight, integers(CLASSES, TOKENS, seed=12))


def weights(played: DeepSpeed) -> tuple[nn.Parameter, nn.Parameter]:
    """The same weight twice: whole, and partitioned."""
    plain, cut = (parameters(weight=True)["weight"] for _ in range(2))
    played.partition(weight=cut)
    return plain, cut


def test_several_calls_before_one_backward(deepspeed):
    plain, cut = weights(deepspeed)
    for weight in (plain, cut):
        (logps(weight)[1].sum() + logps(weight, seed=20)[1].square().sum()).backward()
    torch.testing.assert_close(cut.grad, plain.grad, rtol=0, atol=1e-12)
    assert deepspeed.reduced == ["weight"]


def test_gradients_of_several_backward_passes_add_up(deepspeed):
    """Their graphs made one after another, and all before the first of them goes back."""
    for ahead in (False, True):
        deepspeed.reduced.clear()
        plain, cut = weights(deepspeed)
        for weight in (plain, cut):
            made = (logps(weight, seed=seed)[1].sum() for seed in range(20, 23))
            for loss in list(made) if ahead else made:
                loss.backward()
                assert weight.shape == (plain.shape if weight is plain else (0,))
        torch.testing.assert_close(cut.grad, plain.grad, rtol=0, atol=1e-12)
        assert len(deepspeed.reduced) == 3


def test_a_graph_that_goes_back_twice(deepspeed):
    plain, cut = weights(deepspeed)
    for weight in (plain, cut):
        loss = logps(weight)[1].sum()
        loss.backward(retain_graph=True)
        loss.backward()
    torch.testing.assert_close(cut.grad, plain.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_head_under_a_checkpoint(deepspeed, reentrant):
    deepspeed.spoils = reentrant  # the other kind holds on to what it has made again
    plain, cut = weights(deepspeed)
    hidden = normal(TOKENS, FEATURES, seed=10, dtype=F64).requires_grad_()
    labels = integers(CLASSES, TOKENS, seed=12)
    for weight in (plain, cut):

        def head(hidden: Tensor, weight: nn.Parameter = weight) -> Tensor:
            return prefuse.linear_token_logps(hidden, weight, labels, plan="recompute")

        checkpoint(head, hidden, use_reentrant=reentrant).sum().backward()
    torch.testing.assert_close(cut.grad, plain.grad, rtol=0, atol=1e-12)


def test_a_head_that_is_whole_in_the_call_and_partitioned_in_the_backward_pass(deepspeed):
    plain, cut = weights(deepspeed)
    deepspeed.gather(cut)
    losses = [logps(weight)[1].sum() for weight in (plain, cut)]
    deepspeed.release(cut)
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(cut.grad, plain.grad, rtol=0, atol=1e-12)
    assert deepspeed.reduced == ["weight"]


@pytest.mark.parametrize("whole", [False, True])
def test_a_tied_head(deepspeed, whole):
    """The embedding is whole while its module is at work, and may stay so until the head's call is over."""
    plain, cut = weights(deepspeed)
    tokens = integers(CLASSES, TOKENS, seed=12)
    losses = []
    for weight in (plain, cut):
        if weight is cut:
            deepspeed.gather(cut)
        hidden = nn.functional.embedding(tokens, weight)
        if weight is cut and not whole:
            deepspeed.release(cut)
        losses.append(prefuse.linear_token_logps(hidden, weight, tokens).sum())
    if whole:
        deepspeed.release(cut)
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(cut.grad, plain.grad, rtol=0, atol=1e-12)
    assert deepspeed.reduced == ["weight"]


def test_nothing_keeps_a_parameter(deepspeed):
    """Neither its graph, when that is gone, nor a cycle."""
    gc.disable()
    try:
        for backward in (True, False):
            cut = weights(deepspeed)[1]
            gone, (_, values) = weakref.ref(cut), logps(cut)
            if backward:
                values.sum().backward()
            del cut, values, _
            assert gone() is None
    finally:
        gc.enable()


def test_a_graph_of_the_partitioned_parameter_is_refused(deepspeed):
    """It expects an empty gradient, and autograd has one node per parameter."""
    cut = weights(deepspeed)[1]
    other = cut.sum()
    with pytest.raises(
        RuntimeError, match=rf"shape \[{CLASSES}, {FEATURES}\] .* while it was partitioned .* shape \[0\]"
    ):
        logps(cut)
    assert cut.ds_status is ZeroParamStatus.NOT_AVAILABLE
    del other
    logps(cut)[1].sum().backward()
    assert cut.grad.shape == (CLASSES, FEATURES)
