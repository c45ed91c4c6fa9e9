"""Objectives by name."""

from __future__ import annotations

import difflib

from .objective import Objective

_known: dict[str, Objective] = {}


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
