"""Objectives by name."""

from __future__ import annotations

import difflib

from .objective import Objective

_known: dict[str, Objective] = {}

ALIASES: dict[str, str] = {
    "aot_pair": "aot_unpaired",
    "edpo": "reward_distillation",
    "exo_pair": "exo",
    "irpo": "rpo",
    "nca_pair": "nca",
    "rdpo": "robust",
    "rebel": "reward_distillation",
    "selm": "vpo",
    "sigmoid": "dpo",
    "sigmoid_norm": "dpo_norm",
    "spin": "dpo",
}
"""Other names an objective is known by: TRL's loss types (`aot_pair` as in TRL 0.x) and papers' short names."""


def register(*objectives: Objective) -> None:
    """Make objectives known by their names, as `preference_loss("dpo", …)` wants them.

    Raises:
        TypeError: one is no `Objective`.
        ValueError: another objective has the name already.
    """
    for objective in objectives:
        if not isinstance(objective, Objective):
            raise TypeError(f"objectives: expected each to be an Objective, got {type(objective).__name__}")
        known = _known.setdefault(objective.name, objective)
        if known._definition is not objective._definition:
            raise ValueError(f"{objective.name}: an objective of this name is registered already")


def find(name: str) -> Objective:
    """Return the objective registered under a name.

    Raises:
        TypeError: it is not a name.
        ValueError: there is none; the message proposes a similar name.
    """
    if not isinstance(name, str):
        raise TypeError(f"name: expected that of an objective, a str, got {type(name).__name__}")
    if name not in _known:
        close = difflib.get_close_matches(name.lower(), _known, 1)
        advice = f"did you mean {close[0]!r}?" if close else "prefuse.objectives.list() shows them all"
        raise ValueError(f"no objective is called {name!r}; {advice}")
    return _known[name]


def names() -> list[str]:
    """Return the registered names in alphabetical order."""
    return sorted(_known)


def get(name: str) -> Objective:
    """Return the registered objective of this name or alias, with its default hyper-parameters.

    Raises:
        TypeError: it is not a name.
        ValueError: there is none; the message proposes a similar name.
    """
    return find(ALIASES.get(name, name) if isinstance(name, str) else name)
