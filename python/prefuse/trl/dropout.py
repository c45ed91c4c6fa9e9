"""Dropout rates that are not `nn.Dropout` modules: numbers that a forward pass reads from modules or configurations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd


class DropoutRates:
    """The rates of models that are greater than 0, to be set to 0 for a while.

    Rates are the ``p`` of dropout modules and all floats whose names contain "drop": OPT's ``dropout`` and
    ``layerdrop``, GPT-BigCode's ``attn_dropout``, ``attention_dropout``, ``drop_prob``, of modules and configurations.

    Args:
        models: with everything in them; None is left out.
    """

    def __init__(self, *models: nn.Module | None) -> None:
        owners: dict[int, Any] = {}
        for model in models:
            for module in model.modules() if model is not None else ():
                owners[id(module)] = module
                _add_configurations(owners, vars(module).get("config"))
        self._rates = [
            (owner, name, value)
            for owner in owners.values()
            for name, value in vars(owner).items()
            if _is_rate(owner, name) and isinstance(value, float) and value > 0
        ]

    def __len__(self) -> int:
        return len(self._rates)

    def names(self) -> list[str]:
        """The names of the rates, each once."""
        return sorted({name for _, name, _ in self._rates})

    @contextlib.contextmanager
    def zero(self) -> Iterator[None]:
        """While it lasts, all are 0."""
        self._set(zero=True)
        try:
            yield
        finally:
            self._set(zero=False)

    @contextlib.contextmanager
    def as_before(self) -> Iterator[None]:
        """While it lasts, inside of `zero`, all are what they were: for what is saved meanwhile."""
        self._set(zero=False)
        try:
            yield
        finally:
            self._set(zero=True)

    def _set(self, *, zero: bool) -> None:
        for owner, name, value in self._rates:
            setattr(owner, name, 0.0 if zero else value)


def _is_rate(owner: Any, name: str) -> bool:
    return "drop" in name or (name == "p" and isinstance(owner, _DropoutNd))


def _add_configurations(owners: dict[int, Any], config: Any) -> None:
    """Adds a configuration, and those of the parts of a model in it."""
    if not hasattr(config, "get_text_config") or id(config) in owners:  # transformers is not imported for its class
        return
    owners[id(config)] = config
    for part in list(vars(config).values()):
        _add_configurations(owners, part)
