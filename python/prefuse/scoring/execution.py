"""Running a plan: on tensors of the CPU the short way, NumPy arrays, other devices, and what a tracer watches."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from prefuse._arguments.transforms import is_transforming, refuse_transforms

from .arrays import NUMPY, PLAIN_TENSORS, TORCH, Array, library_of
from .autograd import Recorded, record, score_with_grad
from .binding import common_device, on_cpu
from .call import Call
from .operator import score_traced
from .plain import Plain, PlainCall, PlainSource
from .plan import CallPlan
from .score import Score


def score(plan: CallPlan, arguments: Mapping[str, Array], numbers: Mapping[str, float], reduction: str) -> Score:
    """Score a batch; with torch, loss and losses carry gradients."""
    if is_transforming():
        refuse_transforms(arguments.values())
    return score_plain(plan, arguments, numbers, reduction) or _score_other(plan, arguments, numbers, reduction)


def value_and_grad(
    plan: CallPlan, arguments: Mapping[str, Array], numbers: Mapping[str, float], reduction: str
) -> Score:
    """Score a batch with the gradients of its loss."""
    refuse_transforms(arguments.values())
    score = differentiate_plain(plan, arguments, numbers, reduction)
    return score or _differentiate_other(plan, arguments, numbers, reduction)


def totals(plan: CallPlan, arguments: Mapping[str, Array], numbers: Mapping[str, float]) -> dict[str, float]:
    """Return the numbers of this batch that a caller may give in their place."""
    arguments = plan.as_arrays(arguments)
    library_of(arguments)
    common_device(arguments)
    return plan.bind(on_cpu(arguments), numbers, TORCH).totals()


def score_plain(
    plan: CallPlan, arguments: Mapping[str, Array], numbers: Mapping[str, float], reduction: str
) -> Score | None:
    """Score what goes the short way; None for what does not."""
    found = _run_plain(plan, arguments, numbers, reduction, torch.is_grad_enabled(), False)
    if found is None:
        return None
    loss, count, extras, differentiated = found
    losses = loss if reduction == "none" else count
    if differentiated is None:
        return Score(loss, losses, PlainSource(plan.traced, count), extras)
    wrt, columns, gradients, versions = differentiated
    call = PlainCall(plan.traced, count, numbers, arguments)
    return record(Recorded(call, wrt, columns, versions, losses, extras), loss, gradients, reduction)


def differentiate_plain(
    plan: CallPlan, arguments: Mapping[str, Array], numbers: Mapping[str, float], reduction: str
) -> Score | None:
    """`score_plain`, with the gradients of the loss."""
    found = _run_plain(plan, arguments, numbers, reduction, True, True)
    if found is None:
        return None
    loss, count, extras, differentiated = found
    gradients = dict(zip(differentiated[0], differentiated[2], strict=True)) if differentiated else {}
    return Score(loss, count, PlainSource(plan.traced, count), extras, gradients)


def _run_plain(
    plan: CallPlan,
    arguments: Mapping[str, Array],
    numbers: Mapping[str, float],
    reduction: str,
    gradients: bool,
    any_column: bool,
) -> Plain | None:
    """Return what `Short.score` gives; None, too, for an error, where the general way copes, or says what is wrong."""
    if plan.short is None:
        return None
    try:
        return plan.short[reduction].score(arguments, numbers, gradients, any_column)
    except (ValueError, RuntimeError):
        return None


def _score_other(plan: CallPlan, arguments: Mapping[str, Array], numbers: Mapping[str, float], reduction: str) -> Score:
    """Score what is not all plain CPU tensors with one value per item."""
    arguments = plan.as_arrays(arguments)
    if library_of(arguments) is NUMPY:
        return _score_numpy(plan, arguments, numbers, reduction)
    if not all(type(array) in PLAIN_TENSORS for array in arguments.values()):
        return score_traced(plan, arguments, numbers, reduction)
    call = plan.bind_tensors(arguments, numbers)
    score = _scored(call, reduction, _requiring_grad(call))
    where = common_device(arguments)
    return score if score.loss.device == where else score.to(where)


def _score_numpy(plan: CallPlan, arguments: Mapping[str, Array], numbers: Mapping[str, float], reduction: str) -> Score:
    call = plan.bind(arguments, numbers, NUMPY)
    if reduction != "none":
        return _differentiated(call, reduction, _floats(call))
    scored = call.score(reduction, ())
    return Score(scored.loss, scored.losses, call, scored.extras)


def _differentiate_other(
    plan: CallPlan, arguments: Mapping[str, Array], numbers: Mapping[str, float], reduction: str
) -> Score:
    arguments = plan.as_arrays(arguments)
    if library_of(arguments) is NUMPY:
        return _score_numpy(plan, arguments, numbers, reduction)
    call = plan.bind_tensors(arguments, numbers)
    score = _differentiated(call, reduction, _requiring_grad(call) or _floats(call))
    where = common_device(arguments)
    return score if score.loss.device == where else score.to(where)


def _scored(call: Call, reduction: str, columns: tuple[str, ...]) -> Score:
    """Score, with autograd where a column requires grad."""
    if columns and torch.is_grad_enabled():
        return score_with_grad(call, reduction, columns)
    scored = call.score(reduction, ())
    return Score(scored.loss, scored.losses, call, scored.extras)


def _differentiated(call: Call, reduction: str, wrt: tuple[str, ...]) -> Score:
    scored = call.score(reduction, wrt)
    gradients = {}
    for name, gradient in zip(wrt, scored.gradients, strict=True):
        column = call.columns[name]
        gradients[name] = gradient if gradient.dtype == column.dtype else call.arrays.cast(gradient, column)
    return Score(scored.loss, scored.losses, call, scored.extras, gradients)


def _requiring_grad(call: Call) -> tuple[str, ...]:
    return tuple([name for name, column in call.columns.items() if column.requires_grad])


def _floats(call: Call) -> tuple[str, ...]:
    return tuple(name for name, column in call.columns.items() if call.arrays.is_float(column))
