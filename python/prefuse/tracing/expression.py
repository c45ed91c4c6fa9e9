"""Expressions: what a column, and anything computed from columns, is while an objective is traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import LanguageError
from .kinds import BATCH, pair_space

if TYPE_CHECKING:
    from .trace import Trace

Number = int | float


class Expression:
    """A value of the objective's formula, known by its level rather than by its numbers.

    Arithmetic, comparisons (0 or 1) and the functions of `prefuse.language` combine expressions. A coarser value meets
    a finer one by itself (a pair's margin and each of its tokens); a finer value must be reduced first.
    """

    __slots__ = ("_space", "node", "trace")
    __array_ufunc__ = None  # NumPy scalars on the left defer to the operators below
    __hash__ = object.__hash__

    def __init__(self, trace: Trace, node: int) -> None:
        self.trace = trace
        self.node = node
        self._space: str | None = None

    @property
    def space(self) -> str:
        """The space the value lives in, e.g. `group` or `token:chosen`."""
        if self._space is None:  # asked again and again, and never another
            self._space = self.trace.graph.space(self.node)
        return self._space

    @property
    def level(self) -> str:
        """The level in an author's words: `pair`, `response`, `token of chosen`, `batch`, …"""
        return self.trace.kind.level(self.space)

    # Arithmetic

    def __neg__(self) -> Expression:
        return unary("neg", self)

    def __pos__(self) -> Expression:
        return self

    def __abs__(self) -> Expression:
        return unary("abs", self)

    def __add__(self, other: Expression | Number) -> Expression:
        return binary("add", self, other)

    def __radd__(self, other: Number) -> Expression:
        return binary("add", other, self)

    def __sub__(self, other: Expression | Number) -> Expression:
        return binary("sub", self, other)

    def __rsub__(self, other: Number) -> Expression:
        return binary("sub", other, self)

    def __mul__(self, other: Expression | Number) -> Expression:
        return binary("mul", self, other)

    def __rmul__(self, other: Number) -> Expression:
        return binary("mul", other, self)

    def __truediv__(self, other: Expression | Number) -> Expression:
        return binary("div", self, other)

    def __rtruediv__(self, other: Number) -> Expression:
        return binary("div", other, self)

    def __pow__(self, other: Expression | Number) -> Expression:
        return binary("pow", self, other)

    def __rpow__(self, other: Number) -> Expression:
        return binary("pow", other, self)

    # Comparisons and logic, on values 0 and 1

    def __lt__(self, other: Expression | Number) -> Expression:
        return binary("lt", self, other)

    def __le__(self, other: Expression | Number) -> Expression:
        return binary("le", self, other)

    def __gt__(self, other: Expression | Number) -> Expression:
        return binary("gt", self, other)

    def __ge__(self, other: Expression | Number) -> Expression:
        return binary("ge", self, other)

    def __eq__(self, other: Expression | Number) -> Expression:  # type: ignore[override]
        return binary("eq", self, other)

    def __ne__(self, other: Expression | Number) -> Expression:  # type: ignore[override]
        return binary("ne", self, other)

    def __and__(self, other: Expression | Number) -> Expression:
        return binary("and", self, other)

    def __rand__(self, other: Number) -> Expression:
        return binary("and", other, self)

    def __or__(self, other: Expression | Number) -> Expression:
        return binary("or", self, other)

    def __ror__(self, other: Number) -> Expression:
        return binary("or", other, self)

    def __invert__(self) -> Expression:
        return unary("not", self)

    # Reductions: to the level above unless `to` names another ("response", "group", "batch");
    # sums and means of (i, j) values also to "i" or "j", one value per response over its partners

    def sum(self, to: str | None = None) -> Expression:
        """Sum over the elements below each element of `to`; 0 where there are none."""
        return self._reduce("sum", to)

    def mean(self, to: str | None = None) -> Expression:
        """Mean over the elements below each element of `to`; 0 where there are none."""
        return self._reduce("mean", to)

    def max(self, to: str | None = None) -> Expression:
        """Largest value below each element of `to`; −inf where there are none. Ties share the gradient."""
        return self._reduce("max", to)

    def min(self, to: str | None = None) -> Expression:
        """Smallest value below each element of `to`; +inf where there are none. Ties share the gradient."""
        return self._reduce("min", to)

    def logsumexp(self, to: str | None = None) -> Expression:
        """log Σ exp over the elements below each element of `to`, in nats; −inf where there are none."""
        return self._reduce("logsumexp", to)

    def logmeanexp(self, to: str | None = None) -> Expression:
        """log of the mean of exp over the elements below each element of `to`, in nats; −inf where there are none."""
        return self.logsumexp(to) - unary("log", binary("clamp_min", self.count(to), 1.0))

    def count(self, to: str | None = None) -> Expression:
        """How many elements there are below each element of `to`, whatever their values."""
        return build(self.trace, self.trace.graph.count, self.space, self._outer(to))

    def token_mean(self) -> Expression:
        """Mean over the tokens of the batch; where the caller gives ``batch_tokens``, their sum divided by it."""
        count = self.count("batch")
        total = batch_total(self.trace, "batch_tokens", count)
        return self.mean("batch") if total.node == count.node else self.sum("batch") / total

    def clamp(self, min: Expression | Number | None = None, max: Expression | Number | None = None) -> Expression:
        """Limit to [min, max]; as with `torch.clamp` the gradient passes inside and at the limits, not outside."""
        lower = self if min is None else binary("clamp_min", self, min)
        return lower if max is None else binary("clamp_max", lower, max)

    def softmax(self, to: str | None = None) -> Expression:
        """exp(x) normalised over the elements that share an element of `to`; same level as `x`."""
        return unary("exp", self.log_softmax(to))

    def log_softmax(self, to: str | None = None) -> Expression:
        """x − logsumexp(x), in nats; same level as `x`."""
        return self - self.logsumexp(to)

    def _reduce(self, operation: str, to: str | None) -> Expression:
        if to in ("i", "j") and "*" in self.space:
            return self._collapse(operation, to)
        return build(self.trace, self.trace.graph.reduce, operation, self.node, self._outer(to))

    def _collapse(self, operation: str, side: str) -> Expression:
        """Sum or average a pair value over the other side: one value per response on this side."""
        total = build(self.trace, self.trace.graph.collapse, self.node, side)
        if operation == "sum":
            return total
        if operation != "mean":
            raise self.trace.error(f'to="{side}" goes with sum and mean, not with {operation}')
        return total / build(self.trace, self.trace.graph.count, total.space, self.trace.parent(total.space))

    def _outer(self, to: str | None) -> str:
        """Return the space above this one that `to` means."""
        chain = self.trace.ancestors(self.space)
        if to is None:
            if self.space == BATCH:
                raise self.trace.error("a value of the whole batch has nothing left to reduce")
            return chain[1]
        space = self.trace.kind.levels.get(to)
        if space is None:
            raise self.trace.error(f"no level {to!r}; levels are {', '.join(self.trace.kind.levels)}")
        if space not in chain[1:]:
            raise self.trace.error(f"a {self.level} value does not lie below the level {to!r}")
        return space

    def _inside_parent(self) -> int:
        """Return the node for an operation along the elements of one parent."""
        if self.space == BATCH:
            raise self.trace.error("a value of the whole batch has no neighbours")
        self.trace.look_at(self.trace.parent(self.space))
        return self.node

    # Order

    def rank(self, within: str | None = None, *, descending: bool = True) -> Expression:
        """Rank among the elements of `within`, 1 first, ties by input order; no gradient passes."""
        space = self._outer(within)
        self.trace.look_at(space)
        return build(self.trace, self.trace.graph.rank, self.node, space, descending)

    def sort(self, within: str | None = None, *, key: Expression | None = None, descending: bool = False) -> Expression:
        """Values in the stable order of `key` (of themselves by default) inside `within`; gradients follow."""
        by = self if key is None else key
        space = self._outer(within)
        self.trace.look_at(space)
        return build(self.trace, self.trace.graph.sort, self.node, by.node, space, descending)

    # Along the tokens of a response

    def suffix_sum(self, discount: Expression | Number = 1.0, *, reset: Expression | None = None) -> Expression:
        """Inclusive discounted sum from each element to the end, stopped before the next element where `reset` is 1."""
        return self._scan(True, discount, reset)

    def prefix_sum(self, discount: Expression | Number = 1.0, *, reset: Expression | None = None) -> Expression:
        """Inclusive discounted sum from the start to each element, begun anew at elements where `reset` is 1."""
        return self._scan(False, discount, reset)

    def _scan(self, reverse: bool, discount: Expression | Number, reset: Expression | None) -> Expression:
        factor = lift(self.trace, discount).node
        flags = None if reset is None else lift(self.trace, reset).node
        return build(self.trace, self.trace.graph.scan, self._inside_parent(), reverse, factor, flags)

    def shift(self, by: int, fill: float = 0.0) -> Expression:
        """Values moved `by` places towards the end of their parent, x[t − by]; `fill` where nothing moved in.

        `v.shift(-1)` is the next token's value.
        """
        return build(self.trace, self.trace.graph.shift, self._inside_parent(), by, float(fill))

    def first(self) -> Expression:
        """The first value below each element of the level above; 0 where there is none."""
        return build(self.trace, self.trace.graph.first, self._inside_parent())

    def last(self) -> Expression:
        """The last value below each element of the level above; 0 where there is none."""
        return build(self.trace, self.trace.graph.last, self._inside_parent())

    def detach(self) -> Expression:
        """The same value, through which no gradient passes."""
        return build(self.trace, self.trace.graph.stop_gradient, self.node)

    # What an expression is not

    def __bool__(self) -> NoReturn:
        raise self.trace.error(
            "an expression has no truth value while the objective is traced; "
            "write where(condition, a, b) instead of `if`, and & | ~ instead of and, or, not"
        )

    def __float__(self) -> NoReturn:
        raise self.trace.error("an expression is not a number; use the functions of prefuse.language instead of math's")

    def __iter__(self) -> NoReturn:
        raise self.trace.error("an expression is not iterable; reduce it with sum, mean, max, … or use group.pairs()")

    def __len__(self) -> NoReturn:
        raise self.trace.error("an expression has no len(); the number of tokens is response.length")

    def __repr__(self) -> str:
        return f"<{self.level}: {self.trace.graph.text(self.node, self.trace.texts)}>"

    def _repr_latex_(self) -> str:
        return f"$${self.trace.graph.latex(self.node, self.trace.symbols)}$$"


class Pairs:
    """All ordered pairs (i, j) of responses in one group, i = j included.

    `i, j = group.pairs()`: then `i(x)` is a response's value seen from the first of the pair, `j(x)` from the second.
    `pairs["name"]` is a column with one value per pair.
    """

    def __init__(self, trace: Trace, space: str) -> None:
        self._trace = trace
        self._space = space

    def i(self, x: Expression) -> Expression:
        """Return x of the pair's first response."""
        return self._project(x, "i")

    def j(self, x: Expression) -> Expression:
        """Return x of the pair's second response."""
        return self._project(x, "j")

    def __iter__(self):  # type: ignore[no-untyped-def]  # unpacks into two differently bound methods
        return iter((self.i, self.j))

    def __getitem__(self, name: str) -> Expression:
        return read_column(self._trace, name, pair_space(self._space))

    def _project(self, x: Expression, side: str) -> Expression:
        x = lift(self._trace, x)
        if x.space == BATCH or x.space == self._trace.parent(self._space):
            return x
        if x.space != self._space:
            raise self._trace.error(f"{side}(x) takes a response value, not a {x.level} value")
        return build(self._trace, self._trace.graph.project, x.node, side)


def lift(trace: Trace, value: object) -> Expression:
    """Return a value as an expression of this trace.

    Raises:
        LanguageError: it belongs to another objective, or is neither an expression nor a number.
    """
    if isinstance(value, Expression):
        if value.trace is not trace:
            raise trace.error(
                f"an expression of {value.trace.name} was used here; "
                "combine objectives with a + b or a.weighted_by(b) instead"
            )
        return value
    if isinstance(value, int | float):
        return constant(trace, value)
    if getattr(value, "shape", None) == () and hasattr(value, "__float__"):
        return constant(trace, float(value))
    raise trace.error(
        f"{type(value).__name__} cannot be part of the formula; arrays come in as columns, "
        'e.g. pair["name"], response["name"], token["name"]'
    )


def unary(operation: str, x: Expression) -> Expression:
    """Apply a one-argument operation."""
    return build(x.trace, x.trace.graph.unary, operation, x.node)


def binary(operation: str, a: object, b: object) -> Expression:
    """Apply a two-argument operation, the coarser argument broadcast to the finer one's level."""
    trace = trace_of(operation, a, b)
    left, right = lift(trace, a), lift(trace, b)
    check_levels(left, right)
    return build(trace, trace.graph.binary, operation, left.node, right.node)


def trace_of(operation: str, *values: object) -> Trace:
    """Return the trace the first expression among the values belongs to."""
    for value in values:
        if isinstance(value, Expression):
            return value.trace
    kinds = ", ".join(type(value).__name__ for value in values)
    raise LanguageError(f"{operation} needs an expression of an objective among its arguments, not {kinds}")


def check_levels(*values: Expression) -> None:
    """Refuse values of levels neither of which lies inside the other."""
    trace = values[0].trace
    spaces = [value.space for value in values]
    finest = max(spaces, key=lambda space: len(trace.ancestors(space)))
    inside = trace.ancestors(finest)
    for value, space in zip(values, spaces, strict=True):
        if space not in inside:
            raise trace.error(_incomparable(trace, finest, value))


def _incomparable(trace: Trace, finest: str, value: Expression) -> str:
    level = trace.kind.level(finest)
    if "*" in finest:
        return f"a {value.level} value meets (i, j) values only as i(x) or j(x), with i, j = group.pairs()"
    if "*" in value.space:
        return f"an (i, j) value cannot meet a {level} value; reduce it first, e.g. x.sum()"
    return (
        f"a {level} value cannot meet a {value.level} value: the two have different lengths; "
        "reduce each to the response first, e.g. x.sum() or x.mean()"
    )


def build(trace: Trace, method: Callable[..., int], *arguments: Any) -> Expression:
    """Return what a graph method adds to a trace."""
    return Expression(trace, trace.node(method, *arguments))


def constant(trace: Trace, value: float) -> Expression:
    """Return a number as an expression."""
    return build(trace, trace.graph.constant, float(value))


def read_parameter(trace: Trace, name: str) -> Expression:
    """Return a run-time hyper-parameter."""
    return Expression(trace, trace.parameter(name))


def read_column(trace: Trace, argument: str, space: str, symbol: str | None = None) -> Expression:
    """Return the column given under `argument`: see `Trace.column`."""
    return Expression(trace, trace.column(argument, space, symbol))


def parameter_column(trace: Trace, name: str, space: str) -> Expression:
    """Return a hyper-parameter that was given as an array: one value per element of `space`."""
    return Expression(trace, trace.parameter_column(name, space))


def named(expression: Expression, text: str, symbol: str) -> Expression:
    """Return an expression that is printed under a name of its own."""
    expression.trace.name_node(expression.node, text, symbol)
    return expression


def batch_total(trace: Trace, argument: str, value: Expression) -> Expression:
    """Return a number of the batch, or what the caller gives in its place: see `Trace.total`."""
    return Expression(trace, trace.total(argument, value.node))
