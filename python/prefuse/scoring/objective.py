"""Objectives: what the decorators make, and what is called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch

from prefuse._display.html import Latex

from ..tracing import notation
from . import composition, execution
from .definition import Definition
from .operator import mark, score_named
from .plan import CallPlan, plan_of
from .score import Score
from .settings import Form, Setting, check_reduction, check_setting, form_of, forms_of, is_array, is_number, show
from .traced import REDUCTIONS, ColumnInfo, Traced
from .variants import VARIANT


class Objective:
    """A preference objective: call it with hyper-parameters to set them, with columns to score a batch.

    `dpo(beta=0.2)` is dpo with another β; `dpo(chosen_logps=…, rejected_logps=…, …)` is a `Score`. Columns are torch
    tensors or NumPy arrays, all of one kind; `objective.columns` lists their names. With torch, `score.loss` and
    `score.losses` carry gradients to every float column that requires them.
    """

    def __init__(
        self, definition: Definition, settings: Mapping[str, Setting] | None = None, variant: str | None = None
    ) -> None:
        self._definition = definition
        self._variant = variant
        self._settings = dict(definition.defaults if settings is None else settings)
        self._forms = forms_of(self._settings)
        self._numbers = {name: float(value) for name, value in self._settings.items() if is_number(value)}
        self._arrays = {name: value for name, value in self._settings.items() if is_array(value)}
        self._plans: dict[tuple[str, ...], CallPlan] = {}
        self.__doc__ = definition.origin.below(definition.doc)
        self.__name__ = definition.name
        self.__wrapped__ = getattr(definition, "function", None)

    # What it is

    @property
    def name(self) -> str:
        """The name it is registered and printed under."""
        return self._definition.name

    @property
    def kind(self) -> str:
        """`pair`, `point`, `group` or `token`."""
        return self._definition.kind.name

    @property
    def paper(self) -> str | None:
        """The arXiv id of the paper it is declared to be from, if any."""
        paper = self._definition.origin.paper
        return None if paper is None else paper.arxiv

    @property
    def parameters(self) -> dict[str, Setting]:
        """Hyper-parameters and their present values."""
        return dict(self._settings)

    @property
    def variants(self) -> dict[str, dict[str, Setting]]:
        """What `variant=` may be, and the hyper-parameters that each stands for; empty where all agree."""
        return {name: dict(settings) for name, settings in self._definition.variants.declared.items()}

    @property
    def roles(self) -> tuple[str, ...]:
        """The responses of a pair it reads, in the order it reads them; empty for other kinds."""
        traced = self._traced(None)
        known = {*traced.trace.roles, *(role for role, _ in traced.trace.touched if role)}
        found = []
        for name in traced.columns:
            stem = name.removeprefix("ref_")
            found += sorted((role for role in known if stem.startswith(f"{role}_")), key=len)[-1:]
        return tuple(dict.fromkeys(found))

    @property
    def columns(self) -> dict[str, ColumnInfo]:
        """What a call needs, by argument name; response sums and lengths may be left to token columns."""
        return dict(self._traced(None).arguments)

    def latex(self, column: str | None = None) -> Latex:
        """Return the loss of one item as LaTeX, or its derivative with respect to a column; a notebook typesets it.

        Raises:
            ValueError: it reads no such column.
        """
        traced = self._traced(None)
        if column is None:
            return Latex(traced.latex())
        if column not in traced.columns:
            raise ValueError(f"column: {self.name} reads {', '.join(traced.columns)}, not {column!r}")
        return Latex(traced.latex_derivative(column))

    def _repr_latex_(self) -> str:
        """The formula and, below it, the numbers that stand in it."""
        used = self._traced(None).trace.parameters
        numbers = [
            f"{notation.parameter(name)} = {show(self._settings[name])}" for name in self._numbers if name in used
        ]
        if not numbers:
            return self.latex()._repr_latex_()
        settings = r",\ ".join(numbers)
        named = rf"{notation.word(self.name)}\left({settings}\right)"
        return rf"$$\begin{{gathered}} {self.latex()} \\ {named} \end{{gathered}}$$"

    def __repr__(self) -> str:
        return self._definition.text(self._settings)

    # Calling

    def __call__(self, *unnamed: NoReturn, **arguments: Any) -> Any:
        """Set hyper-parameters, or score a batch.

        Args:
            unnamed: refused; every argument goes by name.
            arguments: hyper-parameters by name; columns by name (then the batch is scored); `reduction="mean"`,
                `"sum"` or `"none"` for `score.loss`; `mask`/`cu_seqlens` of token columns; `groups`. A numeric
                hyper-parameter may be an array with one value per item. `variant=` sets the hyper-parameters that make
                it what a library or an author's code computes under this name; `objective.variants` lists them.

        Returns:
            An `Objective` if only hyper-parameters are given, else a `Score`.

        Raises:
            TypeError: an unknown or missing argument, or one of the wrong type.
            ValueError: a shape, range or device that does not fit.
        """
        if unnamed:
            raise self._by_name(unnamed)
        if torch.compiler.is_compiling():
            return self._set_or_score_compiled(arguments)
        plan = self._plans.get(tuple(arguments))
        if plan is None or self._arrays:
            return self._set_or_score(arguments)
        return execution.score(plan, arguments, self._numbers, "mean")

    def value_and_grad(self, *unnamed: NoReturn, **arguments: Any) -> Score:
        """Score a batch together with the gradient of the loss, without autograd: the shortest way to a gradient.

        Takes what a call takes, with reduction "mean" or "sum". `score.gradients` has d(loss)/d(column) for the torch
        columns that require grad, or for every float column if none does or they are NumPy arrays.
        """
        if unnamed:
            raise self._by_name(unnamed)
        plan = self._plans.get(tuple(arguments))
        if plan is None or self._arrays:
            return self._set_and_differentiate(arguments)
        return execution.value_and_grad(plan, arguments, self._numbers, "mean")

    # Composing

    def __add__(self, other: Objective) -> Objective:
        if not isinstance(other, Objective):
            raise TypeError(f"{self.name} + {type(other).__name__}: expected another objective")
        return _composed(composition.add(self._settled, other._settled))

    def __mul__(self, factor: float) -> Objective:
        return _composed(composition.scale(self._settled, factor))

    __rmul__ = __mul__

    def weighted_by(self, weight: Any, *, detach: bool = True) -> Objective:
        """Multiply each item's loss by a weight.

        Args:
            weight: an objective of the same kind whose value is the weight, the name of a column to be given at each
                call, or an array with one value per item.
            detach: whether the weight counts as a constant in the gradient.
        """
        given = weight._settled if isinstance(weight, Objective) else weight
        return _composed(composition.weigh(self._settled, given, detach))

    # Behind a call

    def _by_name(self, unnamed: tuple[object, ...]) -> TypeError:
        """What to say of arguments that came without their names."""
        return TypeError(
            f"{self.name}: expected columns and hyper-parameters by name, such as {next(iter(self.columns))}=…, "
            f"got {len(unnamed)} without one"
        )

    def _split(
        self, arguments: Mapping[str, Any], reductions: tuple[str, ...]
    ) -> tuple[dict[str, Any], dict[str, Any], str]:
        """Return the hyper-parameters among a call's arguments, its columns, and the reduction."""
        own = {name: value for name, value in arguments.items() if name in self._settings or name == VARIANT}
        rest = {name: value for name, value in arguments.items() if name not in own}
        return own, rest, check_reduction(rest.pop("reduction", "mean"), reductions)

    def _set_or_score(self, arguments: dict[str, Any]) -> Any:
        """Take a call that names hyper-parameters or a reduction."""
        own, rest, reduction = self._split(arguments, REDUCTIONS)
        objective = self._with(own) if own else self
        if not rest:
            return objective
        return execution.score(objective._plan(rest), {**rest, **objective._arrays}, objective._numbers, reduction)

    def _set_or_score_compiled(self, arguments: dict[str, Any]) -> Any:
        """Take a call while `torch.compile` traces it; with nothing but hyper-parameters, set them."""
        own, columns, reduction = self._split(arguments, REDUCTIONS)
        if not columns:
            return self._with(own)
        objective = self
        if VARIANT in own:
            objective, own = self._with(own), {}
        settings = {**objective.parameters, **own}
        marks = ";".join([f"{name}={mark(form_of(value))}" for name, value in settings.items()])
        numbers = [float(value) for value in settings.values() if is_number(value)]
        tensors = {**columns, **{name: value for name, value in settings.items() if is_array(value)}}
        return score_named(objective._definition.handle, marks, tensors, numbers, reduction)

    def _set_and_differentiate(self, arguments: dict[str, Any]) -> Score:
        """Take a call of `value_and_grad` that names hyper-parameters or a reduction."""
        own, rest, reduction = self._split(arguments, ("mean", "sum"))
        objective = self._with(own) if own else self
        if not rest:
            raise TypeError(f"{self.name}: value_and_grad needs columns: {', '.join(self.columns)}")
        given = {**rest, **objective._arrays}
        return execution.value_and_grad(objective._plan(rest), given, objective._numbers, reduction)

    @property
    def _settled(self) -> composition.Settled:
        return composition.Settled(self._definition, self._settings)

    def _plan(self, arguments: Mapping[str, Any]) -> CallPlan:
        names = tuple(arguments)
        plan = self._plans.get(names)
        if plan is None:
            plan = self._plans[names] = plan_of(self._definition, self._forms, (*names, *self._arrays))
        return plan

    def _with(self, own: Mapping[str, Setting]) -> Objective:
        given = {name: value for name, value in own.items() if name != VARIANT}
        for name, value in given.items():
            check_setting(name, self._definition.defaults[name], value)
            bounds = self._definition.bounds.get(name)
            if bounds is not None and isinstance(form_of(value), Form):
                bounds.check(value)
        variant = own.get(VARIANT, self._variant)
        settings = self._definition.variants.settings(self._settings, self._variant, variant, given)
        return Objective(self._definition, settings, variant)

    def _traced(self, given: frozenset[str] | None) -> Traced:
        return self._definition.trace(given, self._forms)


def _composed(settled: composition.Settled) -> Objective:
    return Objective(settled.definition, settled.settings)
