"""The catalogue of objectives: one short function each, written in `prefuse.language`.

`dpo`, `simpo`, … are `Objective` values: `dpo(beta=0.1)` binds hyper-parameters, calling with columns evaluates.
`get` finds one by name, TRL's names included; `names` lists them, and whatever else was registered. `list` gives a
table to look through and `show` a page: formula, inputs, defaults, paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..language import Objective, find, names, register
from .anchored import apo_down, apo_zero, bco_pair, nca, sppo, sppo_hard
from .dpo_family import bpo, discopop, dpo, dpo_norm, exo, f_dpo, hinge, ipo, robust
from .pointwise import apo_zero_unpaired, bco, kto
from .reference_free import cpo, orpo, sft, simpo
from .transport import aot, aot_unpaired

if TYPE_CHECKING:
    from ..catalogue import Catalogue, Entry

__all__ = [
    "ALIASES",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "apo_zero_unpaired",
    "bco",
    "bco_pair",
    "bpo",
    "cpo",
    "discopop",
    "dpo",
    "dpo_norm",
    "exo",
    "f_dpo",
    "get",
    "hinge",
    "ipo",
    "kto",
    "list",
    "names",
    "nca",
    "orpo",
    "robust",
    "sft",
    "show",
    "simpo",
    "sppo",
    "sppo_hard",
]

register(
    aot,
    aot_unpaired,
    apo_down,
    apo_zero,
    apo_zero_unpaired,
    bco,
    bco_pair,
    bpo,
    cpo,
    discopop,
    dpo,
    dpo_norm,
    exo,
    f_dpo,
    hinge,
    ipo,
    kto,
    nca,
    orpo,
    robust,
    sft,
    simpo,
    sppo,
    sppo_hard,
)

ALIASES: dict[str, str] = {
    "sigmoid": "dpo",
    "sigmoid_norm": "dpo_norm",
    "exo_pair": "exo",
    "nca_pair": "nca",
    "aot_pair": "aot_unpaired",
    "rdpo": "robust",
}
"""Other names an objective is known by: TRL's loss types (`aot_pair` as in TRL 0.x) and papers' short names."""


def get(name: str) -> Objective:
    """Return the registered objective of this name or alias, with its default hyper-parameters.

    Raises:
        ValueError: there is none; the message proposes a similar name.
    """
    return find(ALIASES.get(name, name))


def list(*words: str) -> Catalogue:
    """Return the registered objectives, or those whose page mentions every word, as a table to look through."""
    from ..catalogue import catalogue

    return catalogue(*words)


def show(name: str) -> Entry:
    """Return the page of an objective: formula, inputs, hyper-parameters, paper; a notebook draws it with LaTeX.

    Raises:
        ValueError: there is none of this name or alias.
    """
    from ..catalogue import entry

    return entry(name)
