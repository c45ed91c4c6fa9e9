"""The decorators that turn a function into an objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypedDict, overload

from ..tracing.kinds import GROUP, PAIR, POINT, TOKEN, Kind
from .definition import Written, check_function
from .objective import Objective
from .papers import Paper, origin_of
from .settings import Setting

if TYPE_CHECKING:
    from typing_extensions import Unpack

Function = Callable[..., Any]
Decorator = Callable[[Function], Objective]
Declared = Mapping[str, Mapping[str, Setting]]


class Options(TypedDict, total=False):
    """What a decorator may be given; `pair_objective` says what each is."""

    name: str | None
    bounds: Mapping[str, str] | None
    variants: Declared | None
    paper: Paper | str | None
    equation: str | None
    identities: tuple[str, ...]


def _decorate(
    function: Function | None,
    kind: Kind,
    name: str | None,
    bounds: Mapping[str, str] | None,
    variants: Declared | None,
    paper: Paper | str | None,
    equation: str | None,
    identities: tuple[str, ...],
) -> Any:
    def decorate(function: Function) -> Objective:
        check_function(function, kind)
        origin = origin_of(name or function.__name__, paper, equation, identities)
        return Objective(Written(function, kind, name, bounds or {}, variants or {}, origin))

    return decorate if function is None else decorate(function)


@overload
def pair_objective(function: Function, /) -> Objective: ...
@overload
def pair_objective(**options: Unpack[Options]) -> Decorator: ...
def pair_objective(
    function: Function | None = None,
    /,
    *,
    name: str | None = None,
    bounds: Mapping[str, str] | None = None,
    variants: Declared | None = None,
    paper: Paper | str | None = None,
    equation: str | None = None,
    identities: tuple[str, ...] = (),
) -> Any:
    """Make an objective of preference pairs from `def f(pair, *, beta=0.1)`: one loss per pair.

    The function sees `pair.chosen`, `pair.rejected`, further responses as `pair.response("gold")`, and columns of the
    pair as `pair["name"]`. It returns the loss, or (loss, {"chosen": reward, "rejected": reward}).

    Args:
        function: the function; left out when the decorator takes options.
        name: the objective's name, the function's by default.
        bounds: intervals of hyper-parameters, e.g. {"beta": "(0, inf)", "label_smoothing": "[0, 0.5)"}.
        variants: what others mean by the name, as hyper-parameters, e.g. {"trl-1.16": {"average": True}}; a call takes
            one as `variant="trl-1.16"`. Its numbers are defaults, its words, flags and None are fixed.
        paper: where the formula is from: a `Paper`, or an arXiv id alone.
        equation: the place in it, e.g. "eq. 7".
        identities: equal losses as Python, e.g. ("mine(alpha=0) = dpo where ref=0",): `where` sets every column in
            whose name the word occurs, to a number or to the column that has the other word in its place.

    Raises:
        TypeError: it is no function, or an option is of the wrong type.
        ValueError: an arXiv id, an identity or a bound that is none, or an equation without a paper.
        LanguageError: its signature is not that of an objective. What its body says is checked on first use.
    """
    return _decorate(function, PAIR, name, bounds, variants, paper, equation, identities)


@overload
def point_objective(function: Function, /) -> Objective: ...
@overload
def point_objective(**options: Unpack[Options]) -> Decorator: ...
def point_objective(
    function: Function | None = None,
    /,
    *,
    name: str | None = None,
    bounds: Mapping[str, str] | None = None,
    variants: Declared | None = None,
    paper: Paper | str | None = None,
    equation: str | None = None,
    identities: tuple[str, ...] = (),
) -> Any:
    """Make an objective of single responses from `def f(response, *, beta=0.1)`: one loss per response.

    The function sees `response.logp`, `response["label"]`, `response.token`, and, where responses come in groups,
    `response.group`. Options and errors are those of `pair_objective`.
    """
    return _decorate(function, POINT, name, bounds, variants, paper, equation, identities)


@overload
def group_objective(function: Function, /) -> Objective: ...
@overload
def group_objective(**options: Unpack[Options]) -> Decorator: ...
def group_objective(
    function: Function | None = None,
    /,
    *,
    name: str | None = None,
    bounds: Mapping[str, str] | None = None,
    variants: Declared | None = None,
    paper: Paper | str | None = None,
    equation: str | None = None,
    identities: tuple[str, ...] = (),
) -> Any:
    """Make an objective of lists of responses from `def f(group, *, beta=0.1)`: one loss per group.

    The function sees `group.response`, `group["name"]` and all ordered pairs as `i, j = group.pairs()`. Options and
    errors are those of `pair_objective`.
    """
    return _decorate(function, GROUP, name, bounds, variants, paper, equation, identities)


@overload
def token_objective(function: Function, /) -> Objective: ...
@overload
def token_objective(**options: Unpack[Options]) -> Decorator: ...
def token_objective(
    function: Function | None = None,
    /,
    *,
    name: str | None = None,
    bounds: Mapping[str, str] | None = None,
    variants: Declared | None = None,
    paper: Paper | str | None = None,
    equation: str | None = None,
    identities: tuple[str, ...] = (),
) -> Any:
    """Make an objective of tokens from `def f(token, *, clip=0.2)`: one loss per response, or one for the batch.

    The function sees `token.logp`, `token["advantage"]`, `token.response` and `token.response.group`, and reduces to
    the response or the batch itself. Options and errors are those of `pair_objective`.
    """
    return _decorate(function, TOKEN, name, bounds, variants, paper, equation, identities)
