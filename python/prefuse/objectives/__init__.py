"""The catalogue of objectives: one short function each, written in `prefuse.language`.

`dpo`, `simpo`, … are `Objective` values: `dpo(beta=0.1)` binds hyper-parameters, calling with columns evaluates.
`get` finds one by name, TRL's names included; `names` lists them, and whatever else was registered.
"""

from __future__ import annotations

from ..language import Objective, find, names, register
from .anchored import apo_down, apo_zero, bco_pair, nca, sppo, sppo_hard
from .diffusion import d3po, diffusion_dpo, seppo
from .dpo_family import bpo, discopop, dpo, dpo_norm, exo, f_dpo, hinge, ipo, robust
from .group_relative import cispo, dapo, dr_grpo, grpo, gspo, luspo, sapo, vespo
from .listwise import (
    brain,
    exo_list,
    info_nca,
    lipo,
    nca_list,
    op_gfn,
    op_gfn_pareto,
    plackett_luce,
    pro,
    softmax_dpo,
    tpo_tree,
)
from .pointwise import apo_zero_unpaired, bco, kto
from .policy_gradient import crpg, crraft, dr_po, mdpo, mdpo_off, p3o, pf_ppo_weight, ppo, ppo_max, reinforce, rloo, rto
from .reference_free import cpo, orpo, sft, simpo
from .reward_models import bradley_terry, gpm
from .tokens import d2po, mapo, oreo, oreo_value, sparse_po, tdpo1, tdpo2, tis_dpo
from .transport import aot, aot_unpaired

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
    "bradley_terry",
    "brain",
    "cispo",
    "cpo",
    "crpg",
    "crraft",
    "d2po",
    "d3po",
    "dapo",
    "diffusion_dpo",
    "discopop",
    "dpo",
    "dpo_norm",
    "dr_grpo",
    "dr_po",
    "exo",
    "exo_list",
    "f_dpo",
    "get",
    "gpm",
    "grpo",
    "gspo",
    "hinge",
    "info_nca",
    "ipo",
    "kto",
    "lipo",
    "luspo",
    "mapo",
    "mdpo",
    "mdpo_off",
    "names",
    "nca",
    "nca_list",
    "op_gfn",
    "op_gfn_pareto",
    "oreo",
    "oreo_value",
    "orpo",
    "p3o",
    "pf_ppo_weight",
    "plackett_luce",
    "ppo",
    "ppo_max",
    "pro",
    "reinforce",
    "rloo",
    "robust",
    "rto",
    "sapo",
    "seppo",
    "sft",
    "simpo",
    "softmax_dpo",
    "sparse_po",
    "sppo",
    "sppo_hard",
    "tdpo1",
    "tdpo2",
    "tis_dpo",
    "tpo_tree",
    "vespo",
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
    bradley_terry,
    brain,
    cispo,
    cpo,
    crpg,
    crraft,
    d2po,
    d3po,
    dapo,
    diffusion_dpo,
    discopop,
    dpo,
    dpo_norm,
    dr_grpo,
    dr_po,
    exo,
    exo_list,
    f_dpo,
    gpm,
    grpo,
    gspo,
    hinge,
    info_nca,
    ipo,
    kto,
    lipo,
    luspo,
    mapo,
    mdpo,
    mdpo_off,
    nca,
    nca_list,
    op_gfn,
    op_gfn_pareto,
    oreo,
    oreo_value,
    orpo,
    p3o,
    pf_ppo_weight,
    plackett_luce,
    ppo,
    ppo_max,
    pro,
    reinforce,
    rloo,
    robust,
    rto,
    sapo,
    seppo,
    sft,
    simpo,
    softmax_dpo,
    sparse_po,
    sppo,
    sppo_hard,
    tdpo1,
    tdpo2,
    tis_dpo,
    tpo_tree,
    vespo,
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
