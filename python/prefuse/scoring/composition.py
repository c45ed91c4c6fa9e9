"""Objectives made of objectives: sums, multiples, weighted ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import LanguageError
from ..tracing.expression import read_column
from ..tracing.trace import Trace
from .arrays import library_of
from .definition import Built, Definition
from .settings import Setting, is_array, is_number


class Settled(NamedTuple):
    """A definition with the values of its settings: what an `Objective` holds."""

    definition: Definition
    settings: dict[str, Setting]

    @property
    def name(self) -> str:
        """The name it is printed under."""
        return self.definition.name


@dataclass(frozen=True)
class Part:
    """A definition inside another; its settings go by `label.name` there."""

    label: str
    definition: Definition

    def own(self, settings: Mapping[str, Setting]) -> dict[str, Setting]:
        """Return this part's settings out of the whole's."""
        prefix = f"{self.label}."
        return {name.removeprefix(prefix): value for name, value in settings.items() if name.startswith(prefix)}

    def build(self, trace: Trace, settings: Mapping[str, Setting]) -> Built:
        """Run the part with its settings, what it touches kept apart."""
        with trace.watch():
            return self.definition.build(trace, self.own(settings))

    def text(self, settings: Mapping[str, Setting]) -> str:
        """Return what `repr` shows for the part."""
        return self.definition.text(self.own(settings))


class Sum(Definition):
    """Σ factor · part. The factors are run-time numbers, the rewards those of the first part that has any."""

    def __init__(self, parts: Sequence[Part], settings: dict[str, Setting]) -> None:
        self.parts = parts
        name = " + ".join(part.definition.name for part in parts)
        super().__init__(name, parts[0].definition.kind, settings, {}, None)

    def build(self, trace: Trace, settings: Mapping[str, Setting]) -> Built:
        """Add the parts' losses up on one graph."""
        built = [part.build(trace, settings) for part in self.parts]
        losses = [
            settings[_factor(part.label)] * made.loss if _factor(part.label) in settings else made.loss
            for part, made in zip(self.parts, built, strict=True)
        ]
        total = losses[0]
        for loss in losses[1:]:
            total = total + loss
        return Built(total, next((made.rewards for made in built if made.rewards), {}))

    def text(self, settings: Mapping[str, Setting]) -> str:
        """Return `0.8 * dpo(beta=0.1) + 0.2 * sft()`."""
        factors = [settings.get(_factor(part.label)) for part in self.parts]
        texts = [part.text(settings) for part in self.parts]
        return " + ".join(
            text if factor is None else f"{factor!r} * {text}" for factor, text in zip(factors, texts, strict=True)
        )


class Weighted(Definition):
    """part · weight, item by item; the weight is another objective's value, a column, or an array."""

    def __init__(
        self, part: Part, weight: Part | str, detach: bool, settings: dict[str, Setting], column: bool
    ) -> None:
        self.part = part
        self.weight = weight
        self.detach = detach
        self._reads_column = column
        super().__init__(part.definition.name, part.definition.kind, settings, {}, None)

    def build(self, trace: Trace, settings: Mapping[str, Setting]) -> Built:
        """Multiply on one graph; the rewards are the weighted part's."""
        built = self.part.build(trace, settings)
        if isinstance(self.weight, Part):
            weight = self.weight.build(trace, settings).loss
        elif self._reads_column:
            weight = read_column(trace, self.weight, trace.kind.item)
        else:
            weight = settings[self.weight]
        return Built(built.loss * (weight.detach() if self.detach else weight), built.rewards)

    def text(self, settings: Mapping[str, Setting]) -> str:
        """Return `dpo(beta=0.1).weighted_by(wpo_weight())`."""
        weight = self.weight.text(settings) if isinstance(self.weight, Part) else repr(self.weight)
        inner = self.part.text(settings)
        return f"{f'({inner})' if ' + ' in inner else inner}.weighted_by({weight})"


def add(left: Settled, right: Settled) -> Settled:
    """Return left + right.

    Raises:
        LanguageError: they are of different kinds.
    """
    _check_kinds(left, right)
    return _sum([*_terms(left), *_terms(right)])


def scale(objective: Settled, factor: float) -> Settled:
    """Return factor · objective.

    Raises:
        TypeError: the factor is not a number.
    """
    if not is_number(factor):
        raise TypeError(f"factor: expected a number, got {type(factor).__name__}; weights go through weighted_by")
    return _sum([(factor * (1.0 if own is None else own), term) for own, term in _terms(objective)])


def weigh(objective: Settled, weight: Any, detach: bool) -> Settled:
    """Return the objective weighted item by item.

    Raises:
        LanguageError: the weight is an objective of another kind.
        TypeError: it is neither an objective, a column name, nor an array.
    """
    part, settings = _part("loss" if not isinstance(weight, str) else objective.name, objective)
    if isinstance(weight, Settled):
        _check_kinds(objective, weight)
        other, more = _part("weight", weight)
        return _made(Weighted(part, other, detach, settings | more, False))
    if isinstance(weight, str):
        return _made(Weighted(part, weight, detach, settings, True))
    if is_array(weight):
        library_of({"weight": weight})
        return _made(Weighted(part, "weight", detach, settings | {"weight": weight}, False))
    raise TypeError(
        f"weight: expected an objective, the name of a column, or an array with one value per item, "
        f"got {type(weight).__name__}"
    )


def _terms(objective: Settled) -> list[tuple[float | None, Settled]]:
    """Return (factor, objective) of a sum's parts, or the objective alone."""
    definition, settings = objective
    if not isinstance(definition, Sum):
        return [(None, objective)]
    return [
        (settings.get(_factor(part.label)), Settled(part.definition, part.own(settings))) for part in definition.parts
    ]


def _sum(terms: Sequence[tuple[float | None, Settled]]) -> Settled:
    parts: list[Part] = []
    settings: dict[str, Setting] = {}
    for factor, objective in terms:
        label = _free(objective.name, [part.label for part in parts])
        part, own = _part(label, objective)
        parts.append(part)
        if factor is not None:
            settings[_factor(label)] = factor
        settings |= own
    return _made(Sum(parts, settings))


def _part(label: str, objective: Settled) -> tuple[Part, dict[str, Setting]]:
    definition, settings = objective
    return Part(label, definition), {f"{label}.{name}": value for name, value in settings.items()}


def _factor(label: str) -> str:
    return f"{label}*"


def _free(name: str, taken: Sequence[str]) -> str:
    number, label = 1, name
    while label in taken:
        number += 1
        label = f"{name}_{number}"
    return label


def _check_kinds(left: Settled, right: Settled) -> None:
    kinds = left.definition.kind, right.definition.kind
    if kinds[0] is not kinds[1]:
        raise LanguageError(
            f"{left.name} is a {kinds[0].name} objective and {right.name} a {kinds[1].name} objective; "
            "only objectives of one kind combine"
        )


def _made(definition: Definition) -> Settled:
    return Settled(definition, dict(definition.defaults))
