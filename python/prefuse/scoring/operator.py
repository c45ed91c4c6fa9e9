"""Objectives as a custom operator: what `torch.compile` and other tracers see instead of a Python call.

`prefuse::objective` scores and `prefuse::objective_backward` pulls back; both run the programs that eager calls run.
An objective is named by strings, as an operator takes no objects: its definition's handle, its settings' forms.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..tracing.kinds import BATCH, PAIR
from .arrays import TORCH
from .binding import common_device
from .call import Call
from .definition import Definition
from .device import runs_on
from .plan import CallPlan, plan_of
from .score import Score
from .settings import Form

# How a setting's form is written in the operator's `settings`: `beta=#` is a number, `beta=@` one value per item.
MARKS = {"#": Form.NUMBER, "@": Form.ITEMS, "@0": Form.SCALAR}


def score_traced(plan: CallPlan, arguments: Mapping[str, Any], numbers: Mapping[str, float], reduction: str) -> Score:
    """Score tensors that hold no data of their own: fake ones, or those of another tracer."""
    marks = ";".join(f"{name}={mark(form)}" for name, form in plan.forms)
    ordered = [numbers[name] for name, form in plan.forms if form is Form.NUMBER]
    return score_named(plan.definition.handle, marks, arguments, ordered, reduction)


def score_named(handle: str, marks: str, tensors: Mapping[str, Any], numbers: list[float], reduction: str) -> Score:
    """Score by the custom operator."""
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor under torch.compile, got {type(value).__name__}")
    names = ",".join(tensors)
    loss, losses, extras = _objective(list(tensors.values()), names, handle, marks, numbers, reduction)
    return Score(loss, losses, _Outline(*_outline(handle, names, marks)), extras)


def mark(form: Any) -> str:
    """Return how a setting's form is written in the operator's `settings`."""
    if isinstance(form, Form):
        return "#" if form is Form.NUMBER else "@" if form is Form.ITEMS else "@0"
    return repr(form)


def _outline(handle: str, names: str, settings: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the roles of the rewards and the names of the metrics."""
    traced = _plan(handle, names, settings).traced
    return traced.reward_roles, traced.metric_names


# What `torch.compiler.assume_constant_result` sets, which imports the compiler to do so.
_outline._dynamo_marked_constant = True  # type: ignore[attr-defined]


class _Outline:
    """Cuts the operator's extras: rewards in the caller's order, then metrics."""

    def __init__(self, roles: tuple[str, ...], metrics: tuple[str, ...]) -> None:
        self._roles = roles
        self._metrics = metrics

    def rewards(self, extras: torch.Tensor) -> dict[str, torch.Tensor]:
        size = (extras.shape[0] - len(self._metrics)) // max(len(self._roles), 1)
        return {role: extras[i * size : (i + 1) * size] for i, role in enumerate(self._roles)}

    def metrics(self, extras: torch.Tensor) -> dict[str, Any]:
        start = extras.shape[0] - len(self._metrics)
        if torch.compiler.is_compiling():
            return {name: extras[start + i] for i, name in enumerate(self._metrics)}
        return dict(zip(self._metrics, extras[start:].tolist(), strict=True))


def _plan(handle: str, names: str, settings: str) -> CallPlan:
    forms = tuple(_form(setting) for setting in settings.split(";") if setting)
    return plan_of(Definition.find(handle), forms, tuple(names.split(",")))


def _form(setting: str) -> tuple[str, Any]:
    name, _, mark = setting.partition("=")
    return name, MARKS[mark] if mark in MARKS else ast.literal_eval(mark)


def _numbers(settings: str, numbers: Sequence[float]) -> dict[str, float]:
    names = [setting.partition("=")[0] for setting in settings.split(";") if setting.endswith("=#")]
    return dict(zip(names, numbers, strict=True))


def _bound(
    tensors: Sequence[torch.Tensor], names: str, handle: str, settings: str, numbers: Sequence[float]
) -> tuple[Call, torch.device]:
    arguments = dict(zip(names.split(","), tensors, strict=True))
    device = common_device(arguments)
    return _plan(handle, names, settings).bind_tensors(arguments, _numbers(settings, numbers)), device


@torch.library.custom_op("prefuse::objective", mutates_args=())
def _objective(
    columns: list[torch.Tensor], names: str, handle: str, settings: str, numbers: list[float], reduction: str
) -> list[torch.Tensor]:
    call, device = _bound(columns, names, handle, settings, numbers)
    scored = call.score(reduction, ())
    loss = scored.loss.clone() if scored.loss is scored.losses else scored.loss
    start = len(scored.extras) - len(call.traced.metric_names)
    rewards = [reward.reshape(-1) for reward in call.rewards(scored.extras).values()]
    extras = torch.cat([*rewards, scored.extras[start:]])
    return [output.to(device) for output in (loss, scored.losses, extras)]


@_objective.register_fake
def _objective_fake(
    columns: list[torch.Tensor], names: str, handle: str, settings: str, numbers: list[float], reduction: str
) -> list[torch.Tensor]:
    plan = _plan(handle, names, settings)
    arguments = dict(zip(names.split(","), columns, strict=True))
    sizes = _fake_sizes(plan, arguments)
    traced = plan.traced
    extras = sum(_product(sizes[space]) for space in traced.reward_spaces) + len(traced.metric_names)
    like = common_like(plan, arguments)
    losses = like.new_empty(sizes[traced.kind.item])
    return [like.new_empty(losses.shape if reduction == "none" else ()), losses, like.new_empty((extras,))]


def common_like(plan: CallPlan, arguments: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return an empty tensor of the results' dtype and device."""
    columns = [arguments[name] for name in plan.traced.columns]
    device = next((tensor for tensor in arguments.values() if tensor.ndim), columns[0]).device
    return columns[0].new_empty((), dtype=TORCH.result_dtype(columns), device=device)


def _product(shape: Sequence[Any]) -> Any:
    total: Any = 1
    for size in shape:
        total = total * size
    return total


def _fake_sizes(plan: CallPlan, arguments: Mapping[str, torch.Tensor]) -> dict[str, tuple[Any, ...]]:
    """Return the shapes of the spaces results can live in; the number of distinct groups is only known at run time."""
    response = plan.traced.kind.response
    sizes: dict[str, tuple[Any, ...]] = {BATCH: ()}
    for name, space in plan.traced.columns.items():
        if space == response:
            sizes.setdefault(space, tuple(arguments[name].shape))
    if response not in sizes:
        sizes[response] = (_fake_count(arguments),)
    if plan.traced.kind is not PAIR:
        sizes["group"] = sizes[response][:1]
        if "groups" in arguments:
            sizes["group"] = (torch.library.get_ctx().new_dynamic_size(),)
    return sizes


def _fake_count(arguments: Mapping[str, torch.Tensor]) -> Any:
    for name, tensor in arguments.items():
        if name.endswith("mask"):
            return tensor.shape[0]
        if name.endswith("cu_seqlens"):
            return tensor.shape[0] - 1
    raise ValueError("nothing given tells the number of responses")


@torch.library.custom_op("prefuse::objective_backward", mutates_args=())
def _objective_backward(
    columns: list[torch.Tensor],
    names: str,
    handle: str,
    settings: str,
    numbers: list[float],
    reduction: str,
    wrt: list[int],
    loss: torch.Tensor | None,
    losses: torch.Tensor | None,
) -> list[torch.Tensor]:
    call, device = _bound(columns, names, handle, settings, numbers)
    order = names.split(",")
    home = device if runs_on(device) else torch.device("cpu")
    upstream = [None if gradient is None else gradient.detach().to(home) for gradient in (loss, losses)]
    gradients = call.pullback(reduction, tuple(order[i] for i in wrt), call.columns, *upstream)
    return [gradient.to(columns[i]) for gradient, i in zip(gradients, wrt, strict=True)]


@_objective_backward.register_fake
def _objective_backward_fake(
    columns: list[torch.Tensor],
    names: str,
    handle: str,
    settings: str,
    numbers: list[float],
    reduction: str,
    wrt: list[int],
    loss: torch.Tensor | None,
    losses: torch.Tensor | None,
) -> list[torch.Tensor]:
    return [columns[i].new_empty(columns[i].shape) for i in wrt]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    columns, *rest = inputs
    ctx.rest = rest
    ctx.wrt = [i for i, column in enumerate(columns) if column.requires_grad]
    ctx.save_for_backward(*columns)


def _backward(ctx: Any, gradients: Sequence[torch.Tensor | None]) -> Any:
    columns: list[torch.Tensor | None] = [None] * len(ctx.saved_tensors)
    made = _objective_backward(list(ctx.saved_tensors), *ctx.rest, ctx.wrt, gradients[0], gradients[1])
    for i, gradient in zip(ctx.wrt, made, strict=True):
        columns[i] = gradient
    numbers: list[float] = ctx.rest[3]
    return columns, None, None, None, None if numbers else [], None  # torch takes an empty list for one of tensors


torch.library.register_autograd("prefuse::objective", _backward, setup_context=_setup_context)
