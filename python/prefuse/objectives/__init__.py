"""The catalogue of objectives: one short function each, written in `prefuse.language`.

`dpo`, `simpo`, … are `Objective` values: `dpo(beta=0.1)` binds hyper-parameters, calling with columns evaluates.
`get` finds one by name, TRL's names included; `names` lists them, and whatever else was registered. `list` gives a
table to look through and `show` a page: formula, inputs, defaults, paper.
Pairs are in `dpo_family` (one margin), `anchored` (each response on its own), `reference_free`, `likelihood`,
`lengths`, `margins`, `weighted`, `robustness`, `self_play`, `transport` and `visual`; single responses in `pointwise`.
What a formula is known to be only at second hand is marked "as reconstructed".
Equation numbers are those of the version that was read; "at ICLR" is the submission to that conference.
Defaults are the papers'. What a library or an author's code computes under the same name is `variant=`, where it
differs: `ipo(variant="trl-1.16")`; `ipo.variants` says what that sets. `advantages`, `mixtures` and `steps` make
columns that some objectives read.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from ..catalogue.entries import Catalogue, Entry, catalogue, entry
from ..language import Objective, names, register
from ..scoring.registry import ALIASES, get


def list(*words: str) -> Catalogue:
    """Return the registered objectives, or those whose page mentions every word, as a table to look through."""
    return catalogue(*words)


def show(objective: str | Objective) -> Entry:
    """Return the page of an objective: formula, inputs, hyper-parameters, paper; a notebook draws it with LaTeX.

    Args:
        objective: a registered one's name or alias, or an objective of your own.

    Raises:
        TypeError: neither a name nor an objective.
        ValueError: there is none of this name or alias.
    """
    return entry(objective)


def _written() -> dict[str, Objective]:
    """Every objective of the modules of this folder: to add one is to write it there."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    found = {name: value for module in modules for name, value in vars(module).items() if isinstance(value, Objective)}
    return dict(sorted(found.items()))


_OBJECTIVES = _written()
register(*_OBJECTIVES.values())
globals().update(_OBJECTIVES)

__all__ = ["ALIASES", "get", "list", "names", "show", *_OBJECTIVES]

if TYPE_CHECKING:

    def __getattr__(name: str) -> Objective:
        """What type checkers see of the objectives."""
