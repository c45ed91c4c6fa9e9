"""The catalogue of objectives: one short function each, written in `prefuse.language`.

`dpo`, `simpo`, … are `Objective` values: `dpo(beta=0.1)` binds hyper-parameters, calling with columns evaluates.
`get` finds one by name, TRL's names included; `names` lists them.
"""

from __future__ import annotations

from ..language import Objective
from .anchored import apo_down, apo_zero, bco_pair, nca, sppo, sppo_hard
from .dpo_family import bpo, discopop, dpo, dpo_norm, exo, f_dpo, hinge, ipo, robust
from .pointwise import bco, kto
from .reference_free import cpo, orpo, sft, simpo
from .transport import aot, aot_unpaired

__all__ = [
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
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
    "names",
    "nca",
    "orpo",
    "robust",
    "sft",
    "simpo",
    "sppo",
    "sppo_hard",
]
