"""What others compute under an objective's name: hyper-parameters under a library's, or its authors', name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import LanguageError
from .settings import Setting, check_setting, is_array, is_number, show

VARIANT = "variant"
"""The argument that picks one."""

PAPER = "paper"
"""The variant that the hyper-parameters' defaults are."""


class Variants:
    """The variants of one objective.

    A variant's numbers are defaults of its own, which a call may set otherwise. Its words, flags and None are what it
    is: setting them otherwise is refused.

    Args:
        objective: its name, for messages.
        defaults: its hyper-parameters and their defaults.
        declared: hyper-parameters by variant; an empty mapping says that this one computes what the defaults do.

    Raises:
        LanguageError: a variant sets what the objective does not take, or to a value of another type.
    """

    def __init__(
        self, objective: str, defaults: Mapping[str, Setting], declared: Mapping[str, Mapping[str, Setting]]
    ) -> None:
        self._objective = objective
        self._defaults = defaults
        self.declared = {name: dict(settings) for name, settings in declared.items()}
        for name, settings in self.declared.items():
            unknown = sorted(set(settings) - set(defaults))
            if unknown:
                raise LanguageError(f"{objective}: variant {name!r} sets {', '.join(unknown)}, which it does not take")
            for parameter, value in settings.items():
                check_setting(parameter, defaults[parameter], value)

    def settings(
        self, present: Mapping[str, Setting], old: str | None, new: str | None, given: Mapping[str, Setting]
    ) -> dict[str, Setting]:
        """Return the hyper-parameters of a variant: its own, then those set before or now.

        Args:
            present: hyper-parameters as they are.
            old: the variant they belong to.
            new: the one that is asked for.
            given: what is set now.

        Raises:
            ValueError: there is no such variant, or something is set that the variant fixes.
        """
        if new is None:
            return {**present, **given}
        own = self._of(new)
        before = {**self._defaults, **(self._of(old) if old is not None else {})}
        chosen = {name: value for name, value in present.items() if not _same(value, before[name])} | dict(given)
        for name, value in own.items():
            if name in chosen and not is_number(value) and not _same(chosen[name], value):
                raise ValueError(
                    f"{name}: {self._objective}'s variant {new!r} has {name}={show(value)}, got {show(chosen[name])}"
                )
        return {**self._defaults, **own, **chosen}

    def _of(self, variant: Any) -> dict[str, Setting]:
        if variant == PAPER and self.declared:
            return {}
        if variant not in self.declared:
            names = ", ".join(map(repr, (PAPER, *self.declared))) if self.declared else "none, as all agree"
            raise ValueError(f"variant: {self._objective} has {names}; got {variant!r}")
        return self.declared[variant]


def _same(a: Setting, b: Setting) -> bool:
    if is_array(a) or is_array(b):
        return a is b
    return type(a) is type(b) and a == b if isinstance(a, bool) or isinstance(b, bool) else bool(a == b)
