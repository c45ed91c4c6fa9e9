"""A plan: what a call with certain argument names means, worked out once and used for every batch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .._transforms import refuse_transforms
from ..tracing.kinds import BATCH, PAIR, token_space
from . import device
from .arrays import NUMPY, PLAIN_TENSORS, TORCH, Array, Arrays, from_list, library_of
from .autograd import score_with_grad
from .call import Call, bind
from .definition import Definition
from .plain import PlainCall, bind_plain
from .score import Score
from .settings import Forms, is_number
from .traced import Traced


@dataclass(frozen=True)
class ColumnInfo:
    """What the caller gives under one argument name: its level, and the kind of number."""

    level: str
    dtype: str


class Plan:
    """How an objective whose settings have these forms scores arguments of these names.

    Args:
        definition: the objective, without values.
        forms: the forms of its settings.
        names: the arguments: columns, array settings, masks and the like.

    Raises:
        TypeError: an argument the objective does not read, or one it needs and was not given.
    """

    def __init__(self, definition: Definition, forms: Forms, names: frozenset[str]) -> None:
        self.definition = definition
        self.forms = forms
        self.traced = definition.trace(names, forms)
        spaces = self.traced.score_step("mean", ()).spaces
        self.grouped = self.traced.trace.grouped
        layout_names = self._layout_names(spaces)
        self._check_names(names, layout_names | self._counted(names), [name for name, _ in forms])
        self.plain = self._is_plain(names & layout_names)

    def _layout_names(self, spaces: tuple[str, ...]) -> set[str]:
        """Return the arguments beside columns that mean something to this objective."""
        trace = self.traced.trace
        roles: list[str | None] = list(trace.roles) if trace.kind is PAIR else [None]
        used = [role for role in roles if token_space(role) in spaces]
        prefixes = [f"{role}_" if role else "" for role in used]
        names = {f"{prefix}{stem}" for prefix in prefixes for stem in ("mask", "cu_seqlens")}
        return names | ({"groups"} if self.grouped else set())

    def _counted(self, names: frozenset[str]) -> set[str]:
        """Return columns that are not read any more, because the caller gives the totals that are made of them."""
        totals = self.traced.trace.totals.keys() & names
        return set(self.definition.trace(names - totals, self.forms).columns) if totals else set()

    def _check_names(self, names: frozenset[str], layout: set[str], settings: list[str]) -> None:
        reads = list(self.traced.columns)
        for name in sorted(names - set(reads) - layout):
            known = [*reads, *settings, *sorted(layout)]
            close = difflib.get_close_matches(name, [option for option in known if option not in names], 1)
            raise TypeError(
                f"{self.definition.name} does not read {name!r}{f'; did you mean {close[0]!r}?' if close else ''} "
                f"(columns: {', '.join(reads)}; hyper-parameters: {', '.join(settings) or 'none'})"
            )
        if self.traced.missing:
            raise TypeError(f"{self.definition.name}: missing {'; '.join(map(self._how_to_give, self.traced.missing))}")

    def _how_to_give(self, name: str) -> str:
        kind, space = self.traced.kind, self.traced.columns[name]
        for role in self.traced.trace.roles or (None,):
            prefix = f"{role}_" if role else ""
            masks = f"{prefix}mask or {prefix}cu_seqlens"
            for standard in ("logp", "ref_logp"):
                if name == kind.argument(role, "response", standard) != kind.argument(role, "token", standard):
                    return f"{name} (or {kind.argument(role, 'token', standard)} with {masks})"
            if name == kind.argument(role, "response", "length"):
                return f"{name} (or {masks})"
        return f"{name} (one value per {kind.level(space)})"

    def _is_plain(self, layout_names: frozenset[str]) -> bool:
        """Return whether every column and result has one value per item or is a number."""
        traced, item = self.traced, self.definition.kind.item
        return (
            not self.grouped
            and not layout_names
            and bool(traced.item_columns)
            and all(space in (item, BATCH) for space in traced.columns.values())
            and all(space == item for space in traced.reward_spaces)
        )

    # Scoring

    def score(self, arguments: Mapping[str, Array], numbers: Mapping[str, float], reduction: str) -> Score:
        """Score a batch; with torch, loss and losses carry gradients."""
        refuse_transforms(arguments.values())
        try:
            call = bind_plain(self.traced, numbers, arguments) if self.plain else None
            if call is not None:
                return _scored(call, reduction, call.trainable)
        except (ValueError, RuntimeError):  # the general way copes, or says what is wrong
            pass
        return self._score_other(arguments, numbers, reduction)

    def value_and_grad(self, arguments: Mapping[str, Array], numbers: Mapping[str, float], reduction: str) -> Score:
        """Score a batch with the gradients of its loss."""
        refuse_transforms(arguments.values())
        try:
            call = bind_plain(self.traced, numbers, arguments) if self.plain else None
            if call is not None:
                wrt = call.trainable or tuple(self.traced.columns)
                loss, losses, extras, gradients = call.score(reduction, wrt, apart=False)
                return Score(loss, losses, call, extras, dict(zip(wrt, gradients, strict=True)))
        except (ValueError, RuntimeError):  # as above
            pass
        return self._differentiate_other(arguments, numbers, reduction)

    def totals(self, arguments: Mapping[str, Array], numbers: Mapping[str, float]) -> dict[str, float]:
        """Return the numbers of this batch that a caller may give in their place."""
        arguments = self._as_arrays(arguments)
        library_of(arguments)
        common_device(arguments)
        return self.bind(on_cpu(arguments), numbers, TORCH).totals()

    def bind(self, arguments: Mapping[str, Array], numbers: Mapping[str, float], arrays: Arrays) -> Call:
        """Bind arrays on the CPU, whatever their layout."""
        return bind(self.traced, numbers, arguments, arrays, self.grouped)

    def bind_tensors(self, arguments: Mapping[str, torch.Tensor], numbers: Mapping[str, float]) -> Call:
        """Bind tensors where they are if objectives run there, else on the CPU."""
        where = common_device(arguments)
        if device.runs_on(where):
            return device.bind_on_device(self.traced, numbers, arguments, where, self.grouped, self.plain)
        return self.bind(on_cpu(arguments), numbers, TORCH)

    def _score_other(self, arguments: Mapping[str, Array], numbers: Mapping[str, float], reduction: str) -> Score:
        """Score what is not all plain CPU tensors with one value per item."""
        arguments = self._as_arrays(arguments)
        if library_of(arguments) is NUMPY:
            return self._score_numpy(arguments, numbers, reduction)
        if not all(type(array) in PLAIN_TENSORS for array in arguments.values()):
            from .operator import score_traced

            return score_traced(self, arguments, numbers, reduction)
        call = self.bind_tensors(arguments, numbers)
        score = _scored(call, reduction, _requiring_grad(call))
        where = common_device(arguments)
        return score if score.loss.device == where else score.to(where)

    def _score_numpy(self, arguments: Mapping[str, Array], numbers: Mapping[str, float], reduction: str) -> Score:
        call = self.bind(arguments, numbers, NUMPY)
        if reduction != "none":
            return _differentiated(call, reduction, _floats(call))
        scored = call.score(reduction, ())
        return Score(scored.loss, scored.losses, call, scored.extras)

    def _differentiate_other(
        self, arguments: Mapping[str, Array], numbers: Mapping[str, float], reduction: str
    ) -> Score:
        arguments = self._as_arrays(arguments)
        if library_of(arguments) is NUMPY:
            return self._score_numpy(arguments, numbers, reduction)
        call = self.bind_tensors(arguments, numbers)
        score = _differentiated(call, reduction, _requiring_grad(call) or _floats(call))
        where = common_device(arguments)
        return score if score.loss.device == where else score.to(where)

    def _as_arrays(self, arguments: Mapping[str, Any]) -> dict[str, Array]:
        """Let numbers stand for columns of the batch, and lists of numbers for any column."""
        tensor = next((value for value in arguments.values() if isinstance(value, torch.Tensor)), None)
        numpy = any(isinstance(value, np.ndarray | list | tuple) for value in arguments.values())
        arrays = dict(arguments)
        for name, value in arguments.items():
            if isinstance(value, list | tuple):
                arrays[name] = from_list(name, value, tensor)
            elif is_number(value) and self.traced.columns.get(name) == BATCH:
                array = np.asarray(value, np.float64)
                arrays[name] = array if numpy and tensor is None else torch.from_numpy(array)
        return arrays


def describe(traced: Traced) -> dict[str, ColumnInfo]:
    """Return the arguments a call needs, with level and dtype."""
    kind = traced.kind
    found = {}
    lengths = {kind.argument(role, "response", "length") for role in (*traced.trace.roles, None)}
    for name, space in traced.columns.items():
        found[name] = ColumnInfo(kind.level(space), "int" if name in lengths else "float")
    spaces = traced.score_step("mean", ()).spaces
    for role in traced.trace.roles or (None,):
        if token_space(role) in spaces:
            found[f"{role}_mask" if role else "mask"] = ColumnInfo(kind.level(token_space(role)), "bool")
    if traced.trace.grouped:
        found["groups"] = ColumnInfo("response", "int")
    return found


def _scored(call: Call | PlainCall, reduction: str, columns: tuple[str, ...]) -> Score:
    """Score, with autograd where a column requires grad."""
    if columns and torch.is_grad_enabled():
        scored = score_with_grad(call, reduction, columns)
    else:
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


def common_device(arguments: Mapping[str, torch.Tensor]) -> torch.device:
    """Return the one device of the arguments; numbers may stay on the CPU.

    Raises:
        ValueError: they are on several, or on one that holds no data.
    """
    devices: dict[torch.device, str] = {}
    for name, array in arguments.items():
        if array.ndim or array.device.type != "cpu":
            devices.setdefault(array.device, name)
    if len(devices) > 1:
        where = ", ".join(f"{name} is on {device}" for device, name in devices.items())
        raise ValueError(f"{where}; give all columns on one device")
    device = next(iter(devices), torch.device("cpu"))
    if device.type == "meta":
        raise ValueError(f"{next(iter(devices.values()))}: a meta tensor holds no data to score")
    return device


def on_cpu(arguments: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the arguments on the CPU; autograd brings gradients back."""
    return {name: array.cpu() for name, array in arguments.items()}
