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

from ..catalogue.entries import Catalogue, Entry, catalogue, entry
from ..language import Objective, names, register
from ..scoring.registry import ALIASES, get
from .anchored import apo_down, apo_zero, bco_pair, kto_pair, nca, sppo, sppo_hard
from .diffusion import d3po, diffusion_dpo, seppo
from .dpo_family import cdpo, discopop, dpo, dpo_norm, exo, f_dpo, hinge, ipo, robust
from .group_relative import cispo, dapo, dr_grpo, grpo, gspo, gspo_token, luspo, sapo, vespo
from .lengths import ld_dpo, r_dpo, sampo
from .likelihood import average_hinge, cal_dpo, codpo, dpop, rationale_dpo, rationale_orpo, rpo, spo_degree
from .listwise import (
    brain,
    d2o,
    exo_list,
    info_nca,
    lipo,
    lire,
    multi_dpo,
    nca_list,
    op_gfn,
    op_gfn_pareto,
    plackett_luce,
    pro,
    rrhf,
    softmax_dpo,
    tpo_tree,
)
from .margins import alpha_dpo, c_dpo, chi_po, daa, dpo_gamma, flex_dpo, modpo, odpo, safe_dpo
from .pointwise import apo_zero_unpaired, asft_unpaired, bco, crraft, dro, gpo, kto, nbpo, npo, simnpo, sppo_point, ulma
from .policy_gradient import (
    crpg,
    crraft_list,
    dr_po,
    mdpo,
    mdpo_off,
    p3o,
    pf_ppo_weight,
    ppo,
    ppo_max,
    reinforce,
    rloo,
    rto,
)
from .reference_free import alphapo, asft, cpo, orpo, sft, simper, simpo, slic, tpo, tpo_l
from .reward_models import bradley_terry, gpm
from .robustness import dpo_d, dpo_rk, dr_dpo, em_dpo, gdpo, group_robust_dpo, mcts_dpo, ropo, upo
from .self_play import (
    copg,
    copg_list,
    dno,
    egpo,
    hypo_kl,
    inpo,
    nash_md,
    ofs_dpo,
    online_ipo,
    online_ipo_list,
    psi_po,
    reward_distillation,
    srpo,
    vpo,
    xpo,
)
from .tokens import d2po, dmpo, mapo, oreo, oreo_value, sparse_po, tdpo1, tdpo2, tis_dpo
from .transport import aot, aot_unpaired
from .visual import bpo, multimodal_dpo, opa_dpo
from .weighted import beta_dpo, dpo_rc, mallows_po, ns_dpo, wpo

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
    "average_hinge",
    "bco",
    "bco_pair",
    "beta_dpo",
    "bpo",
    "bradley_terry",
    "brain",
    "c_dpo",
    "cal_dpo",
    "cdpo",
    "chi_po",
    "cispo",
    "codpo",
    "copg",
    "copg_list",
    "cpo",
    "crpg",
    "crraft",
    "crraft_list",
    "d2o",
    "d2po",
    "d3po",
    "daa",
    "dapo",
    "diffusion_dpo",
    "discopop",
    "dmpo",
    "dno",
    "dpo",
    "dpo_d",
    "dpo_gamma",
    "dpo_norm",
    "dpo_rc",
    "dpo_rk",
    "dpop",
    "dr_dpo",
    "dr_grpo",
    "dr_po",
    "dro",
    "egpo",
    "em_dpo",
    "exo",
    "exo_list",
    "f_dpo",
    "flex_dpo",
    "gdpo",
    "get",
    "gpm",
    "gpo",
    "group_robust_dpo",
    "grpo",
    "gspo",
    "gspo_token",
    "hinge",
    "hypo_kl",
    "info_nca",
    "inpo",
    "ipo",
    "kto",
    "kto_pair",
    "ld_dpo",
    "lipo",
    "lire",
    "list",
    "luspo",
    "mallows_po",
    "mapo",
    "mcts_dpo",
    "mdpo",
    "mdpo_off",
    "modpo",
    "multi_dpo",
    "multimodal_dpo",
    "names",
    "nash_md",
    "nbpo",
    "nca",
    "nca_list",
    "npo",
    "ns_dpo",
    "odpo",
    "ofs_dpo",
    "online_ipo",
    "online_ipo_list",
    "op_gfn",
    "op_gfn_pareto",
    "opa_dpo",
    "oreo",
    "oreo_value",
    "orpo",
    "p3o",
    "pf_ppo_weight",
    "plackett_luce",
    "ppo",
    "ppo_max",
    "pro",
    "psi_po",
    "r_dpo",
    "rationale_dpo",
    "rationale_orpo",
    "reinforce",
    "reward_distillation",
    "rloo",
    "robust",
    "ropo",
    "rpo",
    "rrhf",
    "rto",
    "safe_dpo",
    "sampo",
    "sapo",
    "seppo",
    "sft",
    "show",
    "simnpo",
    "simper",
    "simpo",
    "slic",
    "softmax_dpo",
    "sparse_po",
    "spo_degree",
    "sppo",
    "sppo_hard",
    "sppo_point",
    "srpo",
    "tdpo1",
    "tdpo2",
    "tis_dpo",
    "tpo",
    "tpo_l",
    "tpo_tree",
    "ulma",
    "upo",
    "vespo",
    "vpo",
    "wpo",
    "xpo",
]

register(*(value for value in tuple(globals().values()) if isinstance(value, Objective)))


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
