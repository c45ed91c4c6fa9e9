"""One run of an objective's function over symbols: the graph it leaves behind and the columns it asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import prefuse._prefuse as _prefuse

from ..errors import LanguageError
from . import notation
from .kinds import BATCH, GROUP, PAIR, Kind

if TYPE_CHECKING:
    from .expression import Expression


# Endings of the arguments that describe tokens rather than carry values.
LAYOUT_ENDINGS = ("mask", "cu_seqlens")


class NewRole(Exception):
    """The function asked for a role this trace has no token space for; it is traced again with one."""


@dataclass(frozen=True)
class Column:
    """A column an objective reads: its argument name, its space, its node in the graph."""

    argument: str
    space: str
    node: int


class Trace:
    """The graph of one objective under construction.

    Args:
        name: the objective's name, for messages.
        kind: its kind.
        roles: the roles a pair objective has; empty for the other kinds.
        given: the arguments the caller passed, which decide whether `logp` is read or summed from tokens;
            None while no call is at hand (for `columns`, `latex`): then every column is read.
        reserved: names columns may not take (the hyper-parameters).
    """

    def __init__(
        self, name: str, kind: Kind, roles: tuple[str, ...], given: frozenset[str] | None, reserved: frozenset[str]
    ) -> None:
        self.name = name
        self.kind = kind
        self.roles = roles
        self.given = given
        self.spaces = kind.spaces(roles)
        self.graph = _prefuse.Graph(name, self.spaces)
        self.columns: dict[str, Column] = {}
        self.parameters: dict[str, int] = {}
        self.records: dict[str, Expression] = {}
        self.totals: dict[str, int] = {}
        self.touched: set[tuple[str | None, str]] = set()
        self.texts: dict[int, str] = {}
        self.symbols: dict[int, str] = {}
        self.grouped = kind is GROUP
        self.reserved = reserved

    # Building

    def node(self, method: Callable[..., int], *arguments: Any) -> int:
        """Add a node through a graph method; what the graph refuses becomes a `LanguageError`."""
        try:
            node = method(*arguments)
        except ValueError as error:
            raise self.error(str(error)) from None
        self.look_at(self.graph.space(node))
        return node

    def look_at(self, space: str) -> None:
        """Note that a space matters: responses need not be grouped where groups never do."""
        if self.kind is not PAIR and (space == "group" or "*" in space):
            self.grouped = True

    def error(self, message: str) -> LanguageError:
        """Return the error to raise, opened by the objective's name."""
        return LanguageError(f"{self.name}: {message}")

    def parameter(self, name: str) -> int:
        """Return a run-time hyper-parameter."""
        node = self.node(self.graph.parameter, name)
        self.parameters[name] = node
        self.name_node(node, name, notation.parameter(name))
        return node

    def column(self, argument: str, space: str, symbol: str | None = None) -> int:
        """Return the column given under `argument`, declaring it on first use.

        Raises:
            LanguageError: the name is taken: by a hyper-parameter, a column of another level, or an argument of every
                objective.
        """
        if argument in self.reserved:
            raise self.error(f"{argument!r} is both a hyper-parameter and a column; rename one of them")
        if argument in ("groups", "reduction", "variant") or argument.endswith(LAYOUT_ENDINGS):
            raise self.error(f"{argument!r} already says how columns lie or reduce; give the column another name")
        return self.parameter_column(argument, space, symbol or notation.column(argument))

    def parameter_column(self, name: str, space: str, symbol: str | None = None) -> int:
        """Return a hyper-parameter that was given as an array: one value per element of `space`."""
        known = self.columns.get(name)
        if known is not None and known.space != space:
            first, second = self.kind.level(known.space), self.kind.level(space)
            raise self.error(
                f"{name!r} would be both a {first} column and a {second} column; give one of them another name"
            )
        node = self.node(self.graph.column, name, space)
        if known is None:
            self.columns[name] = Column(name, space, node)
            self.name_node(node, name, symbol or notation.parameter(name))
        return node

    def total(self, argument: str, node: int) -> int:
        """Return a number of the batch, such as its tokens; what the caller gives under `argument` takes its place.

        So a batch that is spread over several calls is divided by what there is in all of them.

        Raises:
            LanguageError: it is no number of the batch, or `argument` is another number already.
        """
        space = self.graph.space(node)
        if space != BATCH:
            level = self.kind.level(space)
            raise self.error(f"{argument!r}: expected one number for the batch, got a {level} value")
        if self.totals.setdefault(argument, node) != node:
            raise self.error(f"{argument!r} would be two different numbers of the batch; give one of them another name")
        return self.column(argument, BATCH) if self.has(argument) else node

    def name_node(self, node: int, text: str, symbol: str) -> None:
        """Have a node printed under a name of its own."""
        self.texts[node], self.symbols[node] = text, symbol

    def record(self, name: str, expression: Expression) -> None:
        """Keep an expression whose mean is to be logged under `name`."""
        self.records[name] = expression

    # Asking

    def has(self, argument: str) -> bool:
        """Return whether the caller gave this argument (False while there is no caller)."""
        return self.given is not None and argument in self.given

    def sums(self, response: str, token: str) -> bool:
        """Return whether a response column is to be summed from its tokens: they were given, and it was not."""
        if self.given is None:
            return token in self.columns and response not in self.columns
        return token in self.given and response not in self.given

    def touch(self, role: str | None, name: str) -> None:
        """Note that a role's standard column was used: the default reward depends on which."""
        self.touched.add((role, name))

    @contextmanager
    def watch(self) -> Iterator[set[tuple[str | None, str]]]:
        """Collect what is touched inside the block alone, so that parts of a sum keep their own rewards."""
        outer, self.touched = self.touched, set()
        try:
            yield self.touched
        finally:
            self.touched = outer | self.touched

    def ancestors(self, space: str) -> list[str]:
        """Return the spaces a space lies in, itself first, the batch last."""
        chain = [space]
        while chain[-1] != BATCH:
            chain.append(self.parent(chain[-1]))
        return chain

    def parent(self, space: str) -> str:
        """Return the space one level up; that of an (i, j) space is its elements' parent."""
        return self.spaces[space.partition("*")[0]]
