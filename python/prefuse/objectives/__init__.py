"""The catalogue of objectives: one short function each, written in `prefuse.language`.

`dpo`, `simpo`, … are `Objective` values: `dpo(beta=0.1)` binds hyper-parameters, calling with columns evaluates.
`get` finds one by name, TRL's names included; `names` lists them, and whatever else was registered. `list` gives a
table to look through and `show` a page: formula, inputs, defaults, paper.
Pairs are in `dpo_family` (one margin), `anchored` (each response on its own), `reference_free`, `likelihood`,
`lengths`, `margins`, `weighted`, `robustness`, `self_play`, `transport` and `visual`; single responses in `pointwise`.
What a formula is known to be only at second hand is marked "as reconstructed".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..language import Objective, find, names, register
from .anchored import apo_down, apo_zero, bco_pair, kto_pair, nca, sppo, sppo_hard
from .dpo_family import discopop, dpo, dpo_norm, exo, f_dpo, hinge, ipo, robust
from .lengths import ld_dpo, r_dpo, sampo
from .likelihood import cal_dpo, codpo, dpop, rationale_dpo, rationale_orpo, rpo, spo_degree
from .margins import alpha_dpo, chi_po, daa, dpo_gamma, flex_dpo, modpo, odpo
from .pointwise import apo_zero_unpaired, asft_unpaired, bco, crraft, dro, gpo, kto, nbpo, npo, simnpo, sppo_point
from .reference_free import alphapo, asft, cpo, orpo, sft, simper, simpo, slic, tpo, tpo_l
from .robustness import dpo_d, dpo_rk, dr_dpo, gdpo, mcts_dpo, ropo, upo
from .self_play import copg, dno, egpo, hypo_kl, inpo, ofs_dpo, online_ipo, psi_po, reward_distillation, srpo, vpo, xpo
from .transport import aot, aot_unpaired
from .visual import bpo, opa_dpo
from .weighted import beta_dpo, mallows_po, ns_dpo, wpo

if TYPE_CHECKING:
    from ..catalogue import Catalogue, Entry

__all__ = [
    "ALIASES",
    "alpha_dpo",
    "alphapo",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "apo_zero_unpaired",
    "asft",
    "asft_unpaired",
    "bco",
    "bco_pair",
    "beta_dpo",
    "bpo",
    "cal_dpo",
    "chi_po",
    "codpo",
    "copg",
    "cpo",
    "crraft",
    "daa",
    "discopop",
    "dno",
    "dpo",
    "dpo_d",
    "dpo_gamma",
    "dpo_norm",
    "dpo_rk",
    "dpop",
    "dr_dpo",
    "dro",
    "egpo",
    "exo",
    "f_dpo",
    "flex_dpo",
    "gdpo",
    "get",
    "gpo",
    "hinge",
    "hypo_kl",
    "inpo",
    "ipo",
    "kto",
    "kto_pair",
    "ld_dpo",
    "list",
    "mallows_po",
    "mcts_dpo",
    "modpo",
    "names",
    "nbpo",
    "nca",
    "npo",
    "ns_dpo",
    "odpo",
    "ofs_dpo",
    "online_ipo",
    "opa_dpo",
    "orpo",
    "psi_po",
    "r_dpo",
    "rationale_dpo",
    "rationale_orpo",
    "reward_distillation",
    "robust",
    "ropo",
    "rpo",
    "sampo",
    "sft",
    "show",
    "simnpo",
    "simper",
    "simpo",
    "slic",
    "spo_degree",
    "sppo",
    "sppo_hard",
    "sppo_point",
    "srpo",
    "tpo",
    "tpo_l",
    "upo",
    "vpo",
    "wpo",
    "xpo",
]

register(
    alpha_dpo,
    alphapo,
    aot,
    aot_unpaired,
    apo_down,
    apo_zero,
    apo_zero_unpaired,
    asft,
    asft_unpaired,
    bco,
    bco_pair,
    beta_dpo,
    bpo,
    cal_dpo,
    chi_po,
    codpo,
    copg,
    cpo,
    crraft,
    daa,
    discopop,
    dno,
    dpo,
    dpo_d,
    dpo_gamma,
    dpo_norm,
    dpo_rk,
    dpop,
    dr_dpo,
    dro,
    egpo,
    exo,
    f_dpo,
    flex_dpo,
    gdpo,
    gpo,
    hinge,
    hypo_kl,
    inpo,
    ipo,
    kto,
    kto_pair,
    ld_dpo,
    mallows_po,
    mcts_dpo,
    modpo,
    nbpo,
    nca,
    npo,
    ns_dpo,
    odpo,
    ofs_dpo,
    online_ipo,
    opa_dpo,
    orpo,
    psi_po,
    r_dpo,
    rationale_dpo,
    rationale_orpo,
    reward_distillation,
    robust,
    ropo,
    rpo,
    sampo,
    sft,
    simnpo,
    simper,
    simpo,
    slic,
    spo_degree,
    sppo,
    sppo_hard,
    sppo_point,
    srpo,
    tpo,
    tpo_l,
    upo,
    vpo,
    wpo,
    xpo,
)

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
