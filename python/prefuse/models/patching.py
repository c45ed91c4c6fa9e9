"""Forward passes laid over those of single modules, which can be taken off again.

Others lay theirs as well (accelerate its autocast, TRL its fused head), under ours or over it. One that lies under
another cannot be taken out: it stays and passes on.
"""

from __future__ import annotations

import copy
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from prefuse.models.proof import full_name, is_trusted

_KEY = "_prefuse_layer"


class Layer:
    """What a module keeps of a forward laid over its own.

    Attributes:
        beneath: the instance's own forward before; None: that of its class.
        autocasts: those that lie beneath, outermost first.
        settings: what the forward wants to know.
        count: how often it was laid and not taken off.
    """

    def __init__(self, beneath: Any, settings: Any, count: int = 1) -> None:
        self.beneath = beneath
        self.settings = settings
        self.autocasts = [
            found
            for function in _functions(beneath)
            for found in closure(function)
            if isinstance(found, torch.autocast)
        ]
        self.count = count

    def around(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """`run` under the autocasts of what lies beneath, which it does not call."""
        for autocast in self.autocasts:
            run = copy.copy(autocast)(run)  # one object entered twice would leave autocast on
        return run

    def __deepcopy__(self, memo: dict[int, Any]) -> Layer:
        return Layer(copy.deepcopy(self.beneath, memo), self.settings, self.count)

    def __reduce__(self) -> Any:
        return type(None), ()  # a pickled module comes back with the forward of its class


def lay(module: nn.Module, key: str, forward: Callable[..., Any], settings: Any = None) -> None:
    """Lays a forward, whose first argument is the module, over that of `module`; again: counts it once more.

    To those who look at signatures (`generate`, `Trainer`) it has that of the class's forward.
    """
    if (layer := getattr(module, key, None)) is not None:
        layer.count += 1
        return
    like = type(module).forward
    laid = types.FunctionType(
        forward.__code__, forward.__globals__, like.__name__, forward.__defaults__, forward.__closure__
    )
    laid.__kwdefaults__ = forward.__kwdefaults__
    laid.__doc__ = like.__doc__
    # Not through __wrapped__, along which accelerate unwraps a forward past this one.
    laid.__signature__ = inspect.signature(like)  # type: ignore[attr-defined]
    setattr(laid, _KEY, key)
    setattr(module, key, Layer(vars(module).get("forward"), settings))
    module.forward = types.MethodType(laid, module)


def take_off(module: nn.Module, key: str) -> None:
    """Takes off what `lay` laid, when it has been as often as it was laid."""
    layer = getattr(module, key, None)
    if layer is None or layer.count == 0:
        return
    layer.count -= 1
    while (top := getattr(vars(module).get("forward"), _KEY, None)) and (layer := getattr(module, top)).count == 0:
        delattr(module, top)
        del module.forward
        if layer.beneath is not None:
            module.forward = layer.beneath


def is_laid(module: nn.Module, key: str) -> bool:
    """Whether a forward lies there and has not been taken off."""
    layer = getattr(module, key, None)
    return layer is not None and layer.count > 0


def unknown_above(module: nn.Module, key: str) -> str | None:
    """The name of a forward over the one laid, which may change what that returns; None where there is none."""
    for function in functions(module):
        laid = getattr(function, _KEY, None)
        if laid == key:
            return None
        if laid is None and not (is_trusted(function) or str(function.__module__).startswith("trl.")):
            return full_name(function)
    return "another forward"


def settings(module: nn.Module, key: str) -> Any:
    """What was said when the forward was laid."""
    return getattr(module, key).settings


def pass_on(module: Any, key: str, *args: Any, **kwargs: Any) -> Any:
    """Calls the forward beneath."""
    beneath = getattr(module, key).beneath
    return type(module).forward(module, *args, **kwargs) if beneath is None else beneath(*args, **kwargs)


def functions(module: nn.Module) -> Iterator[Callable[..., Any]]:
    """The functions that lie over the forward of a module's class, outermost first."""
    return _functions(vars(module).get("forward"))


def closure(function: Any) -> list[Any]:
    """What a function has closed over."""
    return [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]


def _functions(forward: Any) -> Iterator[Callable[..., Any]]:
    while forward is not None:
        function = getattr(forward, "__func__", forward)
        yield function
        key = getattr(function, _KEY, None)
        forward = getattr(function, "__wrapped__", None) if key is None else getattr(forward.__self__, key).beneath
