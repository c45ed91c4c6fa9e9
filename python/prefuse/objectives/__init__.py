"""The catalogue of objectives: one short function each, written in `prefuse.language`.

`dpo`, `simpo`, … are `Objective` values: `dpo(beta=0.1)` binds hyper-parameters, calling with columns evaluates.
`get` finds one by name, TRL's names included; `names` lists them, and whatever else was registered.
"""

from __future__ import annotations

from ..language import Objective, find, names, register
from .anchored import apo_down, apo_zero, bco_pair, nca, sppo, sppo_hard
from .dpo_family import discopop, dpo, dpo_norm, exo, f_dpo, hinge, ipo, robust
from .lengths import ld_dpo, r_dpo, sampo
from .likelihood import cal_dpo, codpo, dpop, rationale_dpo, rationale_orpo, rpo, spo_degree
from .pointwise import apo_zero_unpaired, bco, kto
from .reference_free import alphapo, asft, cpo, orpo, sft, simper, simpo, slic, tpo, tpo_l
from .transport import aot, aot_unpaired
from .visual import bpo
from .weighted import beta_dpo, mallows_po, ns_dpo, wpo

__all__ = [
    "ALIASES",
    "alphapo",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "apo_zero_unpaired",
    "asft",
    "bco",
    "bco_pair",
    "beta_dpo",
    "bpo",
    "cal_dpo",
    "codpo",
    "cpo",
    "discopop",
    "dpo",
    "dpo_norm",
    "dpop",
    "exo",
    "f_dpo",
    "get",
    "hinge",
    "ipo",
    "kto",
    "ld_dpo",
    "mallows_po",
    "names",
    "nca",
    "ns_dpo",
    "orpo",
    "r_dpo",
    "rationale_dpo",
    "rationale_orpo",
    "robust",
    "rpo",
    "sampo",
    "sft",
    "simper",
    "simpo",
    "slic",
    "spo_degree",
    "sppo",
    "sppo_hard",
    "tpo",
    "tpo_l",
    "wpo",
]

register(
    alphapo,
    aot,
    aot_unpaired,
    apo_down,
    apo_zero,
    apo_zero_unpaired,
    asft,
    bco,
    bco_pair,
    beta_dpo,
    bpo,
    cal_dpo,
    codpo,
    cpo,
    discopop,
    dpo,
    dpo_norm,
    dpop,
    exo,
    f_dpo,
    hinge,
    ipo,
    kto,
    ld_dpo,
    mallows_po,
    nca,
    ns_dpo,
    orpo,
    r_dpo,
    rationale_dpo,
    rationale_orpo,
    robust,
    rpo,
    sampo,
    sft,
    simper,
    simpo,
    slic,
    spo_degree,
    sppo,
    sppo_hard,
    tpo,
    tpo_l,
    wpo,
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
