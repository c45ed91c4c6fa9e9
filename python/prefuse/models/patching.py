"""Patched forwards of single modules, and the way back.

Other libraries patch `forward` too (accelerate for autocast, TRL for its fused head), before or after us. A patch below
another cannot be taken out: it stays, and calls the original.
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

_KEY = "_prefuse_patch"


class ForwardPatch:
    """What a module keeps of its own forward while it is patched.

    Attributes:
        original: the instance's own forward before; None: that of its class.
        autocasts: those around the original, outermost first.
        settings: what the forward wants to know.
        count: how often it was patched and not unpatched.
    """

    def __init__(self, original: Any, settings: Any, count: int = 1) -> None:
        self.original = original
        self.settings = settings
        self.autocasts = [
            found
            for function in _functions(original)
            for found in closure(function)
            if isinstance(found, torch.autocast)
        ]
        self.count = count

    def around(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """`run` under the autocasts around the original, which it does not call."""
        for autocast in self.autocasts:
            run = copy.copy(autocast)(run)  # one object entered twice would leave autocast on
        return run

    def __deepcopy__(self, memo: dict[int, Any]) -> ForwardPatch:
        return ForwardPatch(copy.deepcopy(self.original, memo), self.settings, self.count)

    def __reduce__(self) -> Any:
        return type(None), ()  # a pickled module comes back with the forward of its class


def patch_forward(module: nn.Module, key: str, forward: Callable[..., Any], settings: Any = None) -> None:
    """Replaces the forward of `module` by one whose first argument is the module; again: counts it once more.

    To those who look at signatures (`generate`, `Trainer`) it has that of the class's forward.
    """
    if (patch := getattr(module, key, None)) is not None:
        patch.count += 1
        return
    like = type(module).forward
    patched = types.FunctionType(
        forward.__code__, forward.__globals__, like.__name__, forward.__defaults__, forward.__closure__
    )
    patched.__kwdefaults__ = forward.__kwdefaults__
    patched.__doc__ = like.__doc__
    # Not through __wrapped__, along which accelerate unwraps a forward past this one.
    patched.__signature__ = inspect.signature(like)  # type: ignore[attr-defined]
    setattr(patched, _KEY, key)
    setattr(module, key, ForwardPatch(vars(module).get("forward"), settings))
    module.forward = types.MethodType(patched, module)


def unpatch(module: nn.Module, key: str) -> None:
    """Brings the original back, once it was called as often as `patch_forward`."""
    patch = getattr(module, key, None)
    if patch is None or patch.count == 0:
        return
    patch.count -= 1
    while (top := getattr(vars(module).get("forward"), _KEY, None)) and (patch := getattr(module, top)).count == 0:
        delattr(module, top)
        del module.forward
        if patch.original is not None:
            module.forward = patch.original


def is_patched(module: nn.Module, key: str) -> bool:
    """Whether it is patched under this key, and not unpatched."""
    patch = getattr(module, key, None)
    return patch is not None and patch.count > 0


def unknown_above(module: nn.Module, key: str) -> str | None:
    """The name of a forward over our patch, which may change what ours returns; None where there is none."""
    for function in functions(module):
        patched = getattr(function, _KEY, None)
        if patched == key:
            return None
        if patched is None and not (is_trusted(function) or str(function.__module__).startswith("trl.")):
            return full_name(function)
    return "another forward"


def settings(module: nn.Module, key: str) -> Any:
    """The settings that `patch_forward` was given."""
    return getattr(module, key).settings


def call_original(module: Any, key: str, *args: Any, **kwargs: Any) -> Any:
    """Calls the original forward."""
    original = getattr(module, key).original
    return type(module).forward(module, *args, **kwargs) if original is None else original(*args, **kwargs)


def functions(module: nn.Module) -> Iterator[Callable[..., Any]]:
    """The functions over the forward of a module's class, outermost first."""
    return _functions(vars(module).get("forward"))


def closure(function: Any) -> list[Any]:
    """What a function has closed over."""
    return [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]


def _functions(forward: Any) -> Iterator[Callable[..., Any]]:
    while forward is not None:
        function = getattr(forward, "__func__", forward)
        yield function
        key = getattr(function, _KEY, None)
        forward = getattr(function, "__wrapped__", None) if key is None else getattr(forward.__self__, key).original
