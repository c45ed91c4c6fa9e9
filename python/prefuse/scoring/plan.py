"""A plan: what a call with certain argument names means, worked out once and used for every batch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..tracing.kinds import BATCH, PAIR, token_space
from . import device
from .arrays import TORCH, Array, Arrays, from_list
from .binding import common_device, on_cpu
from .call import Call, bind
from .definition import Definition
from .plain import short_way
from .settings import Forms, is_number
from .traced import REDUCTIONS


class CallPlan:
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
        plain = self._is_plain(names & layout_names)
        self.short = {how: short_way(self.traced, how) for how in REDUCTIONS} if plain else None

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

    # Binding

    def bind(self, arguments: Mapping[str, Array], numbers: Mapping[str, float], arrays: Arrays) -> Call:
        """Bind arrays on the CPU, whatever their layout."""
        return bind(self.traced, numbers, arguments, arrays, self.grouped)

    def bind_tensors(self, arguments: Mapping[str, torch.Tensor], numbers: Mapping[str, float]) -> Call:
        """Bind tensors where they are if objectives run there, else on the CPU."""
        where = common_device(arguments)
        if device.runs_on(where):
            return device.bind_on_device(self.traced, numbers, arguments, where, self.grouped, self.short is not None)
        return self.bind(on_cpu(arguments), numbers, TORCH)

    def as_arrays(self, arguments: Mapping[str, Any]) -> dict[str, Array]:
        """Return the arguments as arrays: numbers for columns of the batch, and lists of numbers for any column."""
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


def plan_of(definition: Definition, forms: Forms, names: tuple[str, ...]) -> CallPlan:
    """Return the plan for settings of these forms and arguments of these names, made on first use."""
    found = definition.plans.get((forms, names))
    if found is None:
        found = definition.plans.setdefault((forms, names), CallPlan(definition, forms, frozenset(names)))
    return found  # type: ignore[no-any-return]
