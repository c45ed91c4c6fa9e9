"""Running a plan: on tensors of the CPU the short way, NumPy arrays, other devices, and what a tracer watches."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from prefuse._arguments.transforms import is_transforming, refuse_transforms

from .arrays import NUMPY, PLAIN_TENSORS, TORCH, Array, library_of
from .autograd import record, score_with_grad
from .binding import common_device, on_cpu
from .call import Call
from .operator import score_traced
from .plain import PlainCall, PlainColumns, PlainSource, PlainSteps, plain_columns, score_plain
from .plan import CallPlan
from .score import Score


def score(plan: CallPlan, arguments: Mapping[str, Array], numbers: Mapping[str, float], reduction: str) -> Score:
    """Score a batch; with torch, loss and losses carry gradients."""
    if is_transforming():
        refuse_transforms(arguments.values())
    try:
        steps = plan.plain
        found = plain_columns(plan.traced, arguments) if steps is not None else None
        if steps is not None and found is not None:
            return _score_plain(steps, arguments, numbers, reduction, found)
    except (ValueError, RuntimeError):  # the general way copes, or says what is wrong
        pass
    return _score_other(plan, arguments, numbers, reduction)


def value_and_grad(
    plan: CallPlan, arguments: Mapping[str, Array], numbers: Mapping[str, float], reduction: str
) -> Score:
    """Score a batch with the gradients of its loss."""
    refuse_transforms(arguments.values())
    try:
        found = plain_columns(plan.traced, arguments) if plan.plain is not None else None
        if found is not None:
            call = PlainCall(plan.traced, numbers, arguments, found.dtype)
            wrt = found.trainable or tuple(plan.traced.columns)
            loss, losses, extras, gradients = call.score(reduction, wrt)
            return Score(loss, losses, call, extras, dict(zip(wrt, gradients, strict=True)))
    except (ValueError, RuntimeError):  # as above
        pass
    return _differentiate_other(plan, arguments, numbers, reduction)


def totals(plan: CallPlan, arguments: Mapping[str, Array], numbers: Mapping[str, float]) -> dict[str, float]:
    """Return the numbers of this batch that a caller may give in their place."""
    arguments = plan.as_arrays(arguments)
    library_of(arguments)
    common_device(arguments)
    return plan.bind(on_cpu(arguments), numbers, TORCH).totals()


def _score_plain(
    steps: PlainSteps,
    arguments: Mapping[str, torch.Tensor],
    numbers: Mapping[str, float],
    reduction: str,
    found: PlainColumns,
) -> Score:
    """Score what `plain_columns` takes."""
    dtype, trainable = found
    wrt = trainable if trainable and torch.is_grad_enabled() else ()
    if reduction != "mean":
        return _scored(PlainCall(steps.traced, numbers, arguments, dtype), reduction, wrt)
    scored = score_plain(steps.of(wrt), numbers, arguments, dtype)
    if wrt:
        return record(PlainCall(steps.traced, numbers, arguments, dtype), wrt, scored)
    return Score(scored.loss, scored.losses, PlainSource(steps.traced, scored.losses), scored.extras)


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


def _scored(call: Call | PlainCall, reduction: str, columns: tuple[str, ...]) -> Score:
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
