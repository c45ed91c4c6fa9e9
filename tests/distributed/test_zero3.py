"""DeepSpeed ZeRO-3, whose parameters are empty but while they are gathered: played by a module of that name."""

from __future__ import annotations

import enum
import sys
import types
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import prefuse
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

    def partition(self, **parameters: nn.Parameter) -> None:
        for name, parameter in parameters.items():
            parameter.ds_id, parameter.ds_shape = len(self.names), parameter.shape
            self.names[parameter.ds_id], self.whole[parameter.ds_id] = name, parameter.data
            parameter.hooked = parameter.expand_as(parameter).grad_fn  # as DeepSpeed does: autograd so learns the shape
            self._release(parameter)

    def gather(self, parameter: nn.Parameter) -> None:
        assert parameter.ds_status is ZeroParamStatus.NOT_AVAILABLE
        parameter.data = self.whole[parameter.ds_id].clone()  # so that nobody reads memory that was given back
        parameter.ds_status = ZeroParamStatus.AVAILABLE

    def _release(self, parameter: nn.Parameter) -> None:
        parameter.data = torch.empty(0, dtype=parameter.dtype)
        parameter.ds_status = ZeroParamStatus.NOT_AVAILABLE

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
                parameter.data.fill_(torch.nan)
                played._release(parameter)

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
    assert weight.grad is not None
    assert other.grad is None


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
