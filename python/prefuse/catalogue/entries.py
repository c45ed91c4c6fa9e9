"""What an objective declares of itself: kind, paper, formula, derivative, inputs, hyper-parameters."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from prefuse._display.html import bold, code, markup, paper, table
from prefuse._display.tables import plain
from prefuse.scoring.objective import Objective
from prefuse.scoring.papers import Origin
from prefuse.scoring.registry import ALIASES, get, names
from prefuse.scoring.settings import show


@dataclass(frozen=True, repr=False)
class Entry:
    """One objective.

    Attributes:
        objective: itself, with its default hyper-parameters.
        aliases: other names it is found under.
    """

    objective: Objective
    aliases: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name it is registered under."""
        return self.objective.name

    @property
    def kind(self) -> str:
        """`pair`, `point`, `group` or `token`."""
        return self.objective.kind

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return self._doc.splitlines()[0].rstrip(".")

    @property
    def citation(self) -> str:
        """Authors, year, arXiv id and equation, as far as they are declared."""
        return self._origin.citation

    @property
    def paper(self) -> str | None:
        """The arXiv id."""
        return self.objective.paper

    @property
    def title(self) -> str | None:
        """The paper's title; None where there is no paper."""
        paper = self._origin.paper
        return None if paper is None else paper.title

    @property
    def equation(self) -> str | None:
        """Where in the paper its formula stands."""
        return self._origin.equation

    @property
    def identities(self) -> tuple[str, ...]:
        """Equal losses, as `left = right where column=value, …`: Python expressions of `prefuse.objectives`.

        `where` sets every column in whose name the word occurs: to a number, or to the column that has the other word
        in its place.
        """
        return self._origin.identities

    @property
    def inputs(self) -> dict[str, str]:
        """What a call takes: the level and the kind of number of each argument."""
        return {
            name: f"one {info.dtype} per {info.level}" if info.level != "batch" else f"one {info.dtype}"
            for name, info in self.objective.columns.items()
        }

    @property
    def parameters(self) -> dict[str, str]:
        """Hyper-parameters: the default, and the interval it must lie in."""
        bounds = self.objective._definition.bounds
        return {
            name: show(value) + (f" in {bounds[name].interval}" if name in bounds else "")
            for name, value in self.objective.parameters.items()
        }

    @property
    def variants(self) -> dict[str, str]:
        """What `variant=` may be beside "paper", and the hyper-parameters that make it so."""
        return {
            name: ", ".join(f"{parameter}={show(value)}" for parameter, value in settings.items()) or "as the paper"
            for name, settings in self.objective.variants.items()
        }

    @property
    def formula(self) -> str:
        """The loss of one item, in plain text."""
        traced = self.objective._traced(None)
        return str(traced.trace.graph.text(traced.loss.node, traced.trace.texts))

    def derivatives(self) -> dict[str, str]:
        """d(loss)/d(column) as LaTeX, of every column that the loss depends on differentiably."""
        through = self.objective._traced(None).columns_with_gradient
        return {name: self.objective.latex(name) for name in through}

    @property
    def notes(self) -> str:
        """The docstring below its first line."""
        return "\n".join(self._doc.splitlines()[1:]).strip()

    @property
    def _origin(self) -> Origin:
        return self.objective._definition.origin

    @property
    def _doc(self) -> str:
        return inspect.cleandoc(self.objective._definition.doc or self.name)

    def matches(self, word: str) -> bool:
        """Whether a word occurs in its name, aliases, docstring, paper, equal losses or arguments, in whatever case."""
        said = (self._doc, self.title or "", self.citation, *self.identities)
        haystack = " ".join([self.name, *self.aliases, self.kind, *said, *self.objective.columns])
        return word.lower() in haystack.lower()

    def __repr__(self) -> str:
        also = f" (also {', '.join(self.aliases)})" if self.aliases else ""
        parts = [
            f"{self.name}{also}: {self.summary}",
            *([f"“{self.title}”"] if self.title else []),
            *([f"{self.citation}"] if self.citation else []),
            f"\nloss of one {self.objective._definition.kind.level(self.objective._definition.kind.item)}\n"
            f"  {self.formula}",
            _listing("takes", self.inputs),
            _listing("hyper-parameters", self.parameters) if self.parameters else "",
            _listing("variants", self.variants) if self.variants else "",
            "\n".join(["\nequal losses", *(f"  {identity}" for identity in self.identities)])
            if self.identities
            else "",
            f"\n{self.notes}" if self.notes else "",
        ]
        return "\n".join(part for part in parts if part)

    def _repr_html_(self) -> str:
        named = (*self.inputs.items(), *self.parameters.items(), *self.variants.items())
        rows = [(code(name), value) for name, value in named]
        cited = self.citation.partition(f"arXiv:{self.paper}") if self.paper else (self.citation, "", "")
        title = f"<i>{markup(self.title)}</i>. " if self.title else ""
        equal = "".join(f"<li>{code(identity)}</li>" for identity in self.identities)
        parts = [
            f"<div>{bold(self.name)}: {markup(self.summary)}</div>",
            f"<div>{title}{markup(cited[0])}{paper(self.paper, cited[1])}{markup(cited[2])}</div>",
            f"<div>{markup(self.objective.latex()._repr_latex_())}</div>",
            table(rows, ("takes", "what")),
            f"<ul>{equal}</ul>" if equal else "",
            f'<div style="white-space:pre-wrap">{markup(self.notes)}</div>' if self.notes else "",
        ]
        return "".join(parts)


class Catalogue(Sequence[Entry]):
    """Entries in alphabetical order; prints as a table."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = tuple(entries)

    @overload
    def __getitem__(self, index: int) -> Entry: ...

    @overload
    def __getitem__(self, index: slice) -> Catalogue: ...

    def __getitem__(self, index: int | slice) -> Entry | Catalogue:
        found = self._entries[index]
        return found if isinstance(found, Entry) else Catalogue(found)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def search(self, *words: str) -> Catalogue:
        """The entries in which every word occurs."""
        return Catalogue([found for found in self if all(found.matches(word) for word in words)])

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Name, kind, what it is, paper."""
        return [(found.name, found.kind, found.summary, found.paper or "") for found in self]

    @property
    def title(self) -> str:
        """How many there are, which stands above the table."""
        return f"{len(self)} objective{'' if len(self) == 1 else 's'}"

    def __repr__(self) -> str:
        return plain(self.title, ("name", "kind", "what it is", "arXiv"), self.rows())

    def _repr_html_(self) -> str:
        rows = [(code(name), kind, what, paper(arxiv)) for name, kind, what, arxiv in self.rows()]
        return table(rows, ("name", "kind", "what it is", "arXiv"))


def catalogue(*words: str) -> Catalogue:
    """Every registered objective, or those in which all of the words occur."""
    every = Catalogue([_entry(name) for name in names()])
    return every.search(*words) if words else every


def entry(objective: str | Objective) -> Entry:
    """An objective's page: a registered one by its name or an alias, or any.

    Raises:
        TypeError: neither a name nor an `Objective`.
        ValueError: no objective of this name; the message proposes a similar one.
    """
    found = resolve(objective)
    same = found.name in names() and get(found.name)._definition is found._definition
    return Entry(found, _aliases(found.name) if same else ())


def resolve(objective: str | Objective | Entry) -> Objective:
    """The objective that a name, an objective or a page of the catalogue stands for.

    Raises:
        TypeError: it is none of these.
        ValueError: no objective of this name; the message proposes a similar one.
    """
    if isinstance(objective, str):
        return get(objective)
    if isinstance(objective, Entry):
        return objective.objective
    if not isinstance(objective, Objective):
        raise TypeError(
            "objective: expected an Objective, as @pair_objective and its like make of a function, "
            f"or the name of one, got {type(objective).__name__}"
        )
    return objective


Objectives = str | Objective | Entry | Iterable[str | Objective | Entry]


def resolve_all(given: Objectives) -> list[Objective]:
    """What one or several of the things that `resolve` takes stand for."""
    if isinstance(given, Iterable) and not isinstance(given, str):
        return [resolve(one) for one in given]
    return [resolve(given)]


def _entry(name: str) -> Entry:
    return Entry(get(name), _aliases(name))


def _aliases(name: str) -> tuple[str, ...]:
    return tuple(sorted(alias for alias, known in ALIASES.items() if known == name))


def _listing(title: str, entries: dict[str, str]) -> str:
    width = max(map(len, entries), default=0)
    return "\n".join([f"\n{title}", *(f"  {name.ljust(width)}  {value}" for name, value in entries.items())])
