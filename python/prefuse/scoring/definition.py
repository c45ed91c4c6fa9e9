"""What an objective is, apart from the values of its hyper-parameters: its function, its names, its traces."""

from __future__ import annotations

import inspect
import itertools
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import LanguageError
from ..tracing.expression import Expression, lift, parameter_column, read_parameter
from ..tracing.kinds import BATCH, PAIR, TOKEN, Kind
from ..tracing.trace import NewRole, Trace
from ..tracing.views import ResponseView, view_of
from .bounds import Bounds
from .papers import Origin
from .settings import Form, Forms, Setting, show
from .traced import Traced
from .variants import Variants


@dataclass
class Built:
    """What an objective's function gave back: the loss per item (or of the batch) and rewards by role."""

    loss: Expression
    rewards: dict[str, Expression]


class Definition(ABC):
    """An objective without values; many `Objective`s share one, and with it every trace and compiled program.

    Attributes:
        name: the objective's name.
        kind: pair, point, group or token.
        defaults: hyper-parameters and their default values.
        bounds: the interval each bounded hyper-parameter must lie in.
        doc: the docstring.
        origin: paper, equation and equal losses.
        variants: what libraries and authors' code mean by the name, as hyper-parameters.
        plans: those made so far, by forms and names: see `plan_of`.
        handle: a process-wide name, by which the custom operator finds the definition.
    """

    _serial = itertools.count()
    _alive: ClassVar[weakref.WeakValueDictionary[str, Definition]] = weakref.WeakValueDictionary()

    def __init__(
        self, name: str, kind: Kind, defaults: dict[str, Setting], bounds: Mapping[str, str], doc: str | None
    ) -> None:
        self.name = name
        self.kind = kind
        self.defaults = defaults
        self.bounds = {parameter: Bounds(parameter, interval) for parameter, interval in bounds.items()}
        self.doc = doc
        self.variants = Variants(name, defaults, {})
        self.origin = Origin()
        self.handle = f"{name}#{next(self._serial)}"
        self._roles: tuple[str, ...] = ("chosen", "rejected") if kind is PAIR else ()
        self.plans: dict[tuple[Forms, tuple[str, ...]], Any] = {}
        self._traces: dict[tuple[frozenset[str] | None, Forms], Traced] = {}
        self._lock = threading.RLock()
        self._alive[self.handle] = self

    @staticmethod
    def find(handle: str) -> Definition:
        """Return the definition a handle names."""
        return Definition._alive[handle]

    @abstractmethod
    def build(self, trace: Trace, settings: Mapping[str, Setting]) -> Built:
        """Run the function on symbols; numeric settings come as expressions."""

    @abstractmethod
    def text(self, settings: Mapping[str, Setting]) -> str:
        """Return what `repr` shows for these settings."""

    def trace(self, given: frozenset[str] | None, forms: Forms) -> Traced:
        """Return the graph for these arguments and forms of hyper-parameters, tracing it on first use.

        Raises:
            LanguageError: the function says what the language cannot say.
        """
        key = (given, forms)
        found = self._traces.get(key)
        if found is None:
            with self._lock:
                found = self._traces.get(key) or self._trace(given, forms)
                self._traces[key] = found
        return found

    def _trace(self, given: frozenset[str] | None, forms: Forms) -> Traced:
        while True:
            trace = Trace(self.name, self.kind, self._roles, given, frozenset(self.defaults))
            try:
                built = self.build(trace, _lift_forms(trace, forms))
            except NewRole as request:
                self._roles = (*self._roles, request.args[0])
                continue
            return Traced(trace, built.loss, built.rewards)


def _lift_forms(trace: Trace, forms: Forms) -> dict[str, Setting]:
    lifted: dict[str, Setting] = {}
    for name, form in forms:
        if form is Form.NUMBER:
            lifted[name] = read_parameter(trace, name)
        elif isinstance(form, Form):
            lifted[name] = parameter_column(trace, name, BATCH if form is Form.SCALAR else trace.kind.item)
        else:
            lifted[name] = form
    return lifted


class Written(Definition):
    """An objective written as a function of its view.

    Raises:
        LanguageError: the function takes something else than one view and keyword-only hyper-parameters with defaults.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        kind: Kind,
        name: str | None,
        bounds: Mapping[str, str],
        variants: Mapping[str, Mapping[str, Setting]],
        origin: Origin,
    ) -> None:
        name = name or function.__name__
        super().__init__(name, kind, hyper_parameters(name, function), bounds, inspect.getdoc(function))
        self.variants = Variants(name, self.defaults, variants)
        self.origin = origin
        self.function = function
        unknown = sorted(set(bounds) - set(self.defaults))
        if unknown:
            raise LanguageError(f"{name}: bounds are given for {', '.join(unknown)}, which it does not take")

    def text(self, settings: Mapping[str, Setting]) -> str:
        """Return `dpo(beta=0.1, label_smoothing=0.0)`."""
        return f"{self.name}({', '.join(f'{name}={show(value)}' for name, value in settings.items())})"

    def build(self, trace: Trace, settings: Mapping[str, Setting]) -> Built:
        """Run the function and check what it returns."""
        with trace.watch() as touched:
            loss, rewards = _unpack(trace, self.function(view_of(trace), **settings))
        _check_level(trace, loss)
        if rewards is None:
            return Built(loss, _default_rewards(trace, touched, settings.get("beta")))
        return Built(loss, _named_rewards(trace, rewards))


def check_function(function: Any, kind: Kind) -> None:
    """Refuse what is not a function of a view.

    Raises:
        TypeError: it cannot be called, or is an objective already.
    """
    view = "response" if kind.name == "point" else kind.name
    example = f"a function such as def mine({view}, *, beta=0.1)"
    if isinstance(getattr(function, "parameters", None), Mapping):
        raise TypeError(f"function: expected {example}, got {function.name}, which is an objective already")
    if not callable(function):
        raise TypeError(f"function: expected {example}, got {type(function).__name__}")


# Stands for the view of a function without arguments.
_NOTHING = inspect.Parameter("nothing", inspect.Parameter.KEYWORD_ONLY)


def hyper_parameters(name: str, function: Callable[..., Any]) -> dict[str, Setting]:
    """Return the keyword-only arguments of an objective's function and their defaults."""
    view, *rest = inspect.signature(function).parameters.values() or [_NOTHING]
    if view.kind not in (view.POSITIONAL_ONLY, view.POSITIONAL_OR_KEYWORD):
        raise LanguageError(f"{name}: an objective's first argument is its view, e.g. def {name}(pair, *, beta=0.1)")
    for parameter in rest:
        if parameter.kind is not parameter.KEYWORD_ONLY or parameter.default is parameter.empty:
            raise LanguageError(
                f"{name}: the hyper-parameter {parameter.name!r} must be keyword-only and have a default, "
                f"e.g. def {name}({view.name}, *, {parameter.name}=0.1)"
            )
    return {parameter.name: parameter.default for parameter in rest}


def _unpack(trace: Trace, result: Any) -> tuple[Expression, Any]:
    loss, rewards = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if result is None:
        raise trace.error("the function returned nothing; return the loss, or (loss, rewards)")
    if not isinstance(loss, Expression):
        raise trace.error(
            f"the function returned {type(loss).__name__}, not an expression of {_view_word(trace)}; "
            "return the loss, or (loss, rewards)"
        )
    return lift(trace, loss), rewards


def _check_level(trace: Trace, loss: Expression) -> None:
    kind = trace.kind
    if loss.space in (kind.item, BATCH):
        return
    item = kind.level(kind.item)
    if loss.space in trace.ancestors(kind.item):
        advice = 'finish with .mean("batch") or .sum("batch")'
    else:
        advice = f"reduce it first, e.g. x.sum() or x.mean({'' if item == 'response' else repr(item)})"
    raise trace.error(f"the loss is a {loss.level} value; expected one per {item} or one for the batch: {advice}")


def _view_word(trace: Trace) -> str:
    return {"pair": "the pair", "point": "the response", "group": "the group", "token": "the token"}[trace.kind.name]


def _named_rewards(trace: Trace, rewards: Any) -> dict[str, Expression]:
    """Return rewards by role from a mapping, a (chosen, rejected) tuple, or one expression."""
    if isinstance(rewards, Expression):
        rewards = {"": rewards}
    elif isinstance(rewards, tuple) and len(rewards) == 2 and trace.kind is PAIR:
        rewards = dict(zip(("chosen", "rejected"), rewards, strict=True))
    if not isinstance(rewards, Mapping) or (trace.kind is PAIR) == ("" in rewards):
        expected = "{'chosen': …, 'rejected': …} or a tuple of the two" if trace.kind is PAIR else "one expression"
        raise trace.error(f"the second value returned must be the rewards: {expected}")
    named = {role: lift(trace, value) for role, value in rewards.items()}
    for role, value in named.items():
        if value.space not in trace.ancestors(trace.kind.response):
            raise trace.error(f"the reward {role or ''} is a {value.level} value; expected one per response")
    return named


def _default_rewards(trace: Trace, touched: set[tuple[str | None, str]], beta: Setting) -> dict[str, Expression]:
    """β·logratio where the reference was used, else β·avg_logp where every length was, else β·logp (β or 1)."""
    if trace.kind is TOKEN:
        return {}
    roles, referenced, measured = (
        sorted(role or "" for role, name in touched if name == wanted) for wanted in ("logp", "ref_logp", "length")
    )
    quantity = "logratio" if referenced else "avg_logp" if set(roles) <= set(measured) else "logp"
    scale = beta if isinstance(beta, Expression) else 1.0
    return {
        role: scale * _response_value(trace, role or None, quantity)
        for role in roles
        if not referenced or role in referenced
    }


def _response_value(trace: Trace, role: str | None, quantity: str) -> Expression:
    value: Expression = getattr(ResponseView(trace, role), quantity)
    return value
