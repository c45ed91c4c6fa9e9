"""`from_torch`: objectives the language cannot say, written in torch and differentiated by autograd."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..tracing.kinds import GROUP, PAIR, POINT, STANDARD, TOKEN, Kind
from .definition import check_function, hyper_parameters
from .score import Score
from .settings import Setting, check_reduction, check_setting, show
from .traced import REDUCTIONS

KINDS = {kind.name: kind for kind in (PAIR, POINT, GROUP, TOKEN)}


class TensorTokens:
    """The tokens of a response as the caller gave them: padded [R, T] with `.mask`, packed [N] with `.cu_seqlens`."""

    def __init__(self, arguments: Arguments, role: str | None) -> None:
        self._arguments = arguments
        self._role = role
        prefix = f"{role}_" if role else ""
        self.mask: torch.Tensor | None = arguments.optional(f"{prefix}mask")
        self.cu_seqlens: torch.Tensor | None = arguments.optional(f"{prefix}cu_seqlens")

    @property
    def logp(self) -> torch.Tensor:
        """log π(y_t | x, y_<t) of the policy, in nats."""
        return self["logp"]

    @property
    def ref_logp(self) -> torch.Tensor:
        """log π_ref(y_t | x, y_<t), in nats."""
        return self["ref_logp"]

    @property
    def logratio(self) -> torch.Tensor:
        """Log-ratio of one token, in nats."""
        return self.logp - self.ref_logp

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._arguments.column(self._role, "token", name)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return [R]: values of tokens summed over each response; masked positions count nothing, NaN or not."""
        if self.mask is not None:
            return torch.where(self.mask.bool(), values, 0.0).sum(1)
        if self.cu_seqlens is None:
            raise self._arguments.missing("mask or cu_seqlens")
        lengths = self.cu_seqlens.diff()
        response = torch.repeat_interleave(torch.arange(len(lengths), device=values.device), lengths)
        return values.new_zeros(len(lengths)).index_add(0, response, values[: len(response)])

    def count(self) -> torch.Tensor | None:
        """Return [R]: the number of tokens of each response, if mask or `cu_seqlens` tell."""
        if self.mask is not None:
            return self.mask.bool().sum(1)
        return None if self.cu_seqlens is None else self.cu_seqlens.diff()


class TensorResponse:
    """A response: the attributes of the language's response view, as tensors [R]."""

    def __init__(self, arguments: Arguments, role: str | None = None) -> None:
        self._arguments = arguments
        self._role = role
        self.token = TensorTokens(arguments, role)

    @property
    def logp(self) -> torch.Tensor:
        """log π(y | x), in nats."""
        return self._log_probability("logp")

    @property
    def ref_logp(self) -> torch.Tensor:
        """log π_ref(y | x), in nats."""
        return self._log_probability("ref_logp")

    @property
    def logratio(self) -> torch.Tensor:
        """log π(y | x) − log π_ref(y | x), in nats."""
        return self.logp - self.ref_logp

    @property
    def length(self) -> torch.Tensor:
        """Number of tokens, at least 1."""
        self._arguments.touched.add((self._role, "length"))
        given = self._arguments.optional(self._arguments.kind.argument(self._role, "response", "length"))
        count = self.token.count() if given is None else given
        if count is None:
            raise self._arguments.missing(self._arguments.kind.argument(self._role, "response", "length"))
        return count.clamp(min=1)

    @property
    def avg_logp(self) -> torch.Tensor:
        """logp / length, in nats."""
        return self.logp / self.length

    @property
    def group(self) -> TensorGroup:
        """The groups of the responses."""
        return TensorGroup(self._arguments)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in STANDARD:
            value: torch.Tensor = getattr(self, name)
            return value
        return self._arguments.column(self._role, "own" if self._arguments.kind is TOKEN else "response", name)

    def _log_probability(self, name: str) -> torch.Tensor:
        self._arguments.touched.add((self._role, name))
        kind = self._arguments.kind
        given = None if kind is TOKEN else self._arguments.optional(kind.argument(self._role, "response", name))
        if given is not None:
            return given
        if kind is not TOKEN and not self._arguments.has(kind.argument(self._role, "token", name)):
            raise self._arguments.missing(kind.argument(self._role, "response", name))
        return self.token.sum(self.token[name])


class TensorGroup:
    """The groups: `group.response`, `group["name"]` with one value per group, and `group.index`."""

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self.response = TensorResponse(arguments)

    @property
    def index(self) -> torch.Tensor:
        """[R]: the number of each response's group, groups counted by ascending id."""
        groups = self._arguments.optional("groups")
        if groups is None:
            raise self._arguments.missing("groups")
        index: torch.Tensor = torch.unique(groups, return_inverse=True)[1]
        return index

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._arguments.column(None, "own", name)


class TensorPair:
    """A preference pair: `pair.chosen`, `pair.rejected`, `pair.response(role)`, `pair["name"]`."""

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self.chosen = TensorResponse(arguments, "chosen")
        self.rejected = TensorResponse(arguments, "rejected")

    def response(self, role: str) -> TensorResponse:
        """Return a further response by its role."""
        return TensorResponse(self._arguments, role)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._arguments.column(None, "own", name)


class Arguments:
    """What the caller gave, and what of it was looked at."""

    def __init__(self, name: str, kind: Kind, given: Mapping[str, Any]) -> None:
        self.name = name
        self.kind = kind
        self.touched: set[tuple[str | None, str]] = set()
        self._given = given
        self.read: set[str] = set()

    def has(self, argument: str) -> bool:
        """Return whether the argument was given."""
        return argument in self._given

    def optional(self, argument: str) -> torch.Tensor | None:
        """Return the argument, or None."""
        if argument in self._given:
            self.read.add(argument)
        value: torch.Tensor | None = self._given.get(argument)
        return value

    def column(self, role: str | None, level: str, name: str) -> torch.Tensor:
        """Return a column by role, level and name."""
        argument = self.kind.argument(role, level, name)
        value = self.optional(argument)
        if value is None:
            raise self.missing(argument)
        return value

    def missing(self, argument: str) -> TypeError:
        """Return the error for an argument that was not given."""
        return TypeError(f"{self.name}: missing {argument}")

    def view(self) -> Any:
        """Return what the function takes."""
        views = {"pair": TensorPair, "point": TensorResponse, "group": TensorGroup}
        return TensorTokens(self, None) if self.kind is TOKEN else views[self.kind.name](self)


class TorchObjective:
    """An objective computed by torch; called as any other, differentiable as often as its function is."""

    def __init__(self, function: Callable[..., Any], kind: Kind, name: str, settings: Mapping[str, Setting]) -> None:
        self._function = function
        self._kind = kind
        self._settings = dict(settings)
        self.name = name
        self.__doc__ = inspect.getdoc(function)
        self.__name__ = name

    @property
    def kind(self) -> str:
        """`pair`, `point`, `group` or `token`."""
        return self._kind.name

    @property
    def parameters(self) -> dict[str, Setting]:
        """Hyper-parameters and their present values."""
        return dict(self._settings)

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={show(value)}' for name, value in self._settings.items())})"

    def __call__(self, **arguments: Any) -> Any:
        """Set hyper-parameters, or score a batch of torch tensors; see `Objective.__call__`."""
        own = {name: value for name, value in arguments.items() if name in self._settings}
        rest = {name: value for name, value in arguments.items() if name not in own}
        reduction = check_reduction(rest.pop("reduction", "mean"), REDUCTIONS)
        for name, value in own.items():
            check_setting(name, self._settings[name], value)
        settings = self._settings | own
        if not rest:
            return TorchObjective(self._function, self._kind, self.name, settings)
        return self._score(rest, settings, reduction)

    def value_and_grad(self, **arguments: Any) -> Score:
        """Score a batch with d(loss)/d(column) of the float columns that require grad, or of all if none does."""
        floats = {
            name: value
            for name, value in arguments.items()
            if isinstance(value, torch.Tensor) and value.is_floating_point()
        }
        chosen = {name: value for name, value in floats.items() if value.requires_grad} or floats
        leaves = {name: value.detach().requires_grad_() for name, value in chosen.items()}
        with torch.enable_grad():
            score = self(**(arguments | leaves))
            gradients = torch.autograd.grad(score.loss, list(leaves.values()), allow_unused=True)
        made = {
            name: torch.zeros_like(leaf) if gradient is None else gradient
            for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
        }
        return Score(score.loss.detach(), score.losses.detach(), score._source, score._extras, made)

    def _score(self, given: Mapping[str, Any], settings: Mapping[str, Setting], reduction: str) -> Score:
        for name, value in given.items():
            if not isinstance(value, torch.Tensor):
                raise TypeError(
                    f"{name}: {self.name} is written in torch; expected a torch.Tensor, got {type(value).__name__}"
                )
        arguments = Arguments(self.name, self._kind, given)
        result = self._function(arguments.view(), **settings)
        losses, rewards = result if isinstance(result, tuple) else (result, None)
        unread = sorted(set(given) - arguments.read - {"groups"})
        if unread:
            raise TypeError(f"{self.name} does not read {', '.join(map(repr, unread))}")
        loss = losses if losses.ndim == 0 or reduction == "none" else getattr(losses, reduction)()
        return Score(loss, losses, _Source(arguments, rewards, settings), None)


class _Source:
    """Rewards and metrics of a torch objective, made when asked for."""

    def __init__(self, arguments: Arguments, rewards: Any, settings: Mapping[str, Setting]) -> None:
        self._arguments = arguments
        self._rewards = rewards
        self._beta = settings.get("beta", 1.0)
        self._touched = frozenset(arguments.touched)

    def rewards(self, extras: Any) -> dict[str, torch.Tensor]:
        """Return what the function gave, or β·logratio and its reference-free forms."""
        if isinstance(self._rewards, torch.Tensor):
            return {"": self._rewards.detach()}
        if isinstance(self._rewards, tuple):
            return {role: value.detach() for role, value in zip(("chosen", "rejected"), self._rewards, strict=True)}
        if self._rewards is not None:
            return {role: value.detach() for role, value in self._rewards.items()}
        names = {name for _, name in self._touched}
        quantity = "logratio" if "ref_logp" in names else "avg_logp" if "length" in names else "logp"
        return {role or "": (self._beta * self._value(role, quantity)).detach() for role in self._roles()}

    def metrics(self, extras: Any) -> dict[str, float]:
        """Return the batch means under TRL's names."""
        rewards = self.rewards(extras)
        means = {f"rewards/{role or 'mean'}": value.mean().item() for role, value in rewards.items()}
        if {"chosen", "rejected"} <= set(rewards):
            margins = rewards["chosen"] - rewards["rejected"]
            means["rewards/margins"] = margins.mean().item()
            means["rewards/accuracies"] = (margins > 0).float().mean().item()
        for role in self._roles():
            means[f"logps/{role or 'mean'}"] = self._value(role, "logp").detach().mean().item()
        return means

    def _roles(self) -> list[str | None]:
        if self._arguments.kind is TOKEN:
            return []
        return sorted({role for role, name in self._touched if name == "logp"}, key=str)

    def _value(self, role: str | None, quantity: str) -> torch.Tensor:
        value: torch.Tensor = getattr(TensorResponse(self._arguments, role), quantity)
        return value


def from_torch(function: Callable[..., Any], kind: str = "pair", *, name: str | None = None) -> TorchObjective:
    """Make an objective of a function that computes with torch tensors instead of expressions.

    The function takes the same views and hyper-parameters; `pair.chosen.logp` is a tensor [B], `response.token.logp` is
    what the caller gave (padded or packed), and it returns losses [items] or a number, or (losses, rewards). The call,
    the rewards and the metrics are those of any objective; the gradient is autograd's.

    Args:
        function: the function.
        kind: "pair", "point", "group" or "token".
        name: the objective's name, the function's by default.

    Raises:
        TypeError: it is no function.
        ValueError: there is no such kind.
        LanguageError: the function's signature is not that of an objective.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected {', '.join(map(repr, KINDS))}, got {kind!r}")
    check_function(function, KINDS[kind])
    name = name or function.__name__
    return TorchObjective(function, KINDS[kind], name, hyper_parameters(name, function))
