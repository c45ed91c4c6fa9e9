"""The decorators that turn a function into an objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, overload

from ..tracing.kinds import GROUP, PAIR, POINT, TOKEN, Kind
from .definition import Written, check_function
from .objective import Objective
from .settings import Setting

Function = Callable[..., Any]
Decorator = Callable[[Function], Objective]
Declared = Mapping[str, Mapping[str, Setting]]


def _decorate(
    function: Function | None, kind: Kind, name: str | None, bounds: Mapping[str, str] | None, variants: Declared | None
) -> Any:
    def decorate(function: Function) -> Objective:
        check_function(function, kind)
        return Objective(Written(function, kind, name, bounds or {}, variants or {}))

    return decorate if function is None else decorate(function)


@overload
def pair_objective(function: Function, /) -> Objective: ...
@overload
def pair_objective(
    *, name: str | None = None, bounds: Mapping[str, str] | None = None, variants: Declared | None = None
) -> Decorator: ...
def pair_objective(
    function: Function | None = None,
    /,
    *,
    name: str | None = None,
    bounds: Mapping[str, str] | None = None,
    variants: Declared | None = None,
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

    Raises:
        TypeError: it is no function.
        LanguageError: its signature is not that of an objective. What its body says is checked on first use.
    """
    return _decorate(function, PAIR, name, bounds, variants)


@overload
def point_objective(function: Function, /) -> Objective: ...
@overload
def point_objective(
    *, name: str | None = None, bounds: Mapping[str, str] | None = None, variants: Declared | None = None
) -> Decorator: ...
def point_objective(
    function: Function | None = None,
    /,
    *,
    name: str | None = None,
    bounds: Mapping[str, str] | None = None,
    variants: Declared | None = None,
) -> Any:
    """Make an objective of single responses from `def f(response, *, beta=0.1)`: one loss per response.

    The function sees `response.logp`, `response["label"]`, `response.token`, and, where responses come in groups,
    `response.group`. Options and errors are those of `pair_objective`.
    """
    return _decorate(function, POINT, name, bounds, variants)


@overload
def group_objective(function: Function, /) -> Objective: ...
@overload
def group_objective(
    *, name: str | None = None, bounds: Mapping[str, str] | None = None, variants: Declared | None = None
) -> Decorator: ...
def group_objective(
    function: Function | None = None,
    /,
    *,
    name: str | None = None,
    bounds: Mapping[str, str] | None = None,
    variants: Declared | None = None,
) -> Any:
    """Make an objective of lists of responses from `def f(group, *, beta=0.1)`: one loss per group.

    The function sees `group.response`, `group["name"]` and all ordered pairs as `i, j = group.pairs()`. Options and
    errors are those of `pair_objective`.
    """
    return _decorate(function, GROUP, name, bounds, variants)


@overload
def token_objective(function: Function, /) -> Objective: ...
@overload
def token_objective(
    *, name: str | None = None, bounds: Mapping[str, str] | None = None, variants: Declared | None = None
) -> Decorator: ...
def token_objective(
    function: Function | None = None,
    /,
    *,
    name: str | None = None,
    bounds: Mapping[str, str] | None = None,
    variants: Declared | None = None,
) -> Any:
    """Make an objective of tokens from `def f(token, *, clip=0.2)`: one loss per response, or one for the batch.

    The function sees `token.logp`, `token["advantage"]`, `token.response` and `token.response.group`, and reduces to
    the response or the batch itself. Options and errors are those of `pair_objective`.
    """
    return _decorate(function, TOKEN, name, bounds, variants)
