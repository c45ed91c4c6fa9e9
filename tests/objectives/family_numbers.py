"""Worked numbers of the wider family: rows as in `worked_numbers`, from the papers' formulas or the authors' code."""

from __future__ import annotations

import numpy as np

from .fixtures import (
    CALIBRATION,
    COMMON,
    CONFIDENT,
    DENOISED,
    F1,
    F1_FALLEN,
    F1_TOKENS,
    F2,
    F2_ONLINE,
    GOLD,
    JUDGED,
    OTHER,
    OTHER_SIDE,
    PREVIOUS,
    RATIONALE,
    SRPO,
    SURVEY,
    T0,
    Columns,
    opa,
    pairs,
    tokens,
)
from .worked_numbers import Row, wl

THREE_PAIRS = pairs([-3.5, -3.5, -4], [-6.5, -3, -2], [-3.75, -4.5, -3.5], [-5.25, -3, -3], [3, 4, 2], [5, 2, 1])


def column(batch: Columns, **values: object) -> Columns:
    """The batch with further columns, of one value each."""
    return batch | {name: np.atleast_1d(value) for name, value in values.items()}


def point(logp: float, ref_logp: float = 0.0, **values: object) -> Columns:
    return column({}, logps=logp, ref_logps=ref_logp, **values)


LD_GRADIENT = {
    "chosen_token_logps": [[-0.02344] * 3 + [0.0], [-0.024375] * 2 + [-0.012188] * 2],
    "rejected_token_logps": [[0.02344] * 3 + [0.01172] * 2, [0.024375] * 2 + [0.0] * 3],
}
GPO = {"logps": [-12.0, -15.0], "ref_logps": [-13.0, -14.5], "score": [0.4, -0.25]}
RATIONALE_GRADIENT = wl(-0.040131, 0.040131)

ROWS: list[Row] = [
    # libraries.md 1.7.10: DPOP where the chosen response fell
    ("dpop", {"beta": 0.1, "penalty": 50.0}, F1_FALLEN, 1.052903, {}),
    ("dpop", {"beta": 0.1, "penalty": 5.0}, F1_FALLEN, 0.693225, {"chosen_logps": [-0.151875, -0.024688]}),
    ("dpop", {"beta": 0.1, "penalty": 1.0}, F1_FALLEN, 0.668538, {}),
    ("dpop", {"beta": 0.1}, SURVEY, 0.678260, {}),
    # libraries.md 1.7.18 and 1.7.2, token_rl_data.md: RPO by tokens and by responses; pairwise.md, 3D: SFT-DPO
    ("rpo", {"beta": 0.1, "nll": "token_mean"}, F1, 1.632677, wl(-0.165986, -0.166608, 0.023129, 0.023751)),
    ("rpo", {"beta": 0.1, "alpha": 0.2}, F1, 0.836843, {}),
    ("rpo", {"beta": 0.1, "alpha": 0.5}, F1, 1.143093, {}),
    ("rpo", {"beta": 0.1}, SURVEY, 1.678260, {}),
    ("rpo", {"beta": 0.1, "alpha": 0.01, "nll": "sum"}, COMMON, 0.713015, wl(-0.050131, 0.040131)),
    # token_rl_data.md, CGPO
    ("codpo", {"beta": 0.1}, SURVEY, 5.678260, {}),
    # token_rl_data.md, the survey's table, and libraries.md 1.7.15: Cal-DPO
    ("cal_dpo", {"beta": 0.1}, SURVEY, 47.844355, {}),
    ("cal_dpo", {"beta": 0.1, "variant": "original"}, SURVEY, 24.199355, {}),
    ("cal_dpo", {"beta": 0.1, "variant": "original"}, F1, 19.663588, {}),
    ("cal_dpo", {"beta": 0.5, "variant": "original"}, F1, 0.663587, {}),
    # pairwise.md, Rationale-PO
    (
        "rationale_dpo",
        {"beta": 0.1, "gamma": 0.05},
        RATIONALE,
        2.513015,
        RATIONALE_GRADIENT | {"rationale_logps": [-0.05]},
    ),
    (
        "rationale_dpo",
        {"beta": 0.1, "gamma": 0.05, "variant": "original"},
        RATIONALE,
        2.639943,
        RATIONALE_GRADIENT | {"rationale_logps": [-0.044040]},
    ),
    # pairwise.md, SPO-deg: three classes, logits (1, 0, -1), label 0; γ = 0 is DPO
    ("spo_degree", {"beta": 0.1, "weight": 1.0}, COMMON | {"degree_loss": np.array([0.407606])}, 0.920621, {}),
    ("spo_degree", {"beta": 0.1, "weight": 0.0}, COMMON | {"degree_loss": np.array([0.407606])}, 0.513015, {}),
    # token_rl_data.md, the survey's table, and general.md, daa-scaling (whose notes print the other sign): R-DPO
    ("r_dpo", {"beta": 0.1, "alpha": 0.01}, SURVEY, 0.693147, {}),
    ("r_dpo", {"beta": 0.1, "alpha": -0.01}, T0, 0.611755, {}),
    # libraries.md 1.1.4: LD-DPO and WPO as TRL 1.16 has them
    ("ld_dpo", {"beta": 0.1, "alpha": 0.5}, F1_TOKENS, 0.650529, LD_GRADIENT),
    ("ld_dpo", {"beta": 0.5, "alpha": 0.5}, F1_TOKENS, 0.502320, {}),
    ("ld_dpo", {"beta": 0.1, "alpha": 0.0}, F1_TOKENS, 0.668772, {}),
    ("ld_dpo", {"beta": 0.5, "alpha": 0.0}, F1_TOKENS, 0.583612, {}),
    ("ld_dpo", {"beta": 0.1, "alpha": 1.0}, F1_TOKENS, 0.632677, {}),
    ("wpo", {"beta": 0.1, "variant": "trl-1.16"}, F1_TOKENS, 0.241440, {}),
    ("wpo", {"beta": 0.5, "variant": "trl-1.16"}, F1_TOKENS, 0.163777, {}),
    ("wpo", {"beta": 0.1}, F1_TOKENS, 0.241440, {}),
    ("wpo", {"beta": 0.1, "label_smoothing": 0.1}, F1_TOKENS, 0.246248, {}),
    # libraries.md 1.7.14: β-DPO without dropping pairs
    ("beta_dpo", {"beta": 0.1, "centre": 0.0}, F1, 0.589978, {}),
    ("beta_dpo", {"beta": 0.1, "centre": 2.0}, F1, 0.659387, {}),
    ("beta_dpo", {"beta": 0.1, "centre": 1.25}, F1, 0.632677, {}),
    # libraries.md 1.4: AlphaPO; on F2 as TRL ran it
    ("alphapo", {"beta": 0.1, "gamma": 0.5}, F1, 0.942665, {}),
    ("alphapo", {"beta": 2.0, "gamma": 0.5}, F1, 0.515529, {}),
    ("alphapo", {"beta": 0.1, "gamma": 0.5, "alpha": -0.25}, F1, 0.956691, {}),
    ("alphapo", {"beta": 2.0, "gamma": 0.5, "alpha": -0.25}, F1, 0.678918, {}),
    ("alphapo", {"beta": 0.1, "gamma": 0.5}, F2, 1.005976, {}),
    ("alphapo", {"beta": 2.0, "gamma": 0.5}, F2, 1.730744, {}),
    ("alphapo", {"beta": 0.1, "gamma": 0.5, "alpha": -0.25}, F2, 0.985389, {}),
    # token_rl_data.md, the survey's table: SimPER and SLiC-HF; general.md, rso; libraries.md 1.7.3
    ("simper", {}, SURVEY, 0.104487, {}),
    ("slic", {"delta": 1.0, "alpha": 1.0}, SURVEY, 5.0, {}),
    ("slic", {"delta": 10.0, "alpha": 0.0}, T0, 7.0, wl(-1.0, 1.0)),
    ("slic", {"delta": 1.0, "alpha": 0.0}, F1, 0.75, {}),
    ("slic", {"delta": 1.0, "alpha": 0.1}, F1, 1.10, {}),
    # pairwise.md, TPO
    ("tpo", {}, COMMON | GOLD, 1.644397, wl(-0.004750, 0.004750) | {"gold_logps": [-0.125]}),
    (
        "tpo_l",
        {},
        COMMON | GOLD | {"chosen_logps": np.array([-12.0])},
        0.743147,
        wl(-0.1, 0.066667) | {"gold_logps": [-0.00625]},
    ),
    # pairwise.md, ASFT
    ("asft", {}, CONFIDENT, 2.545413, wl(-0.2, 0.010435)),
    ("asft", {"weight": 0.1}, CONFIDENT, 1.334541, {}),
    ("asft", {"beta": 0.5, "alpha": 0.0}, CONFIDENT, 1.258866, wl(-0.043193, 0.010928)),
    # libraries.md 1.1.3: TRL's coefficient above 1
    ("f_dpo", {"divergence": "alpha", "coefficient": 2.0}, F1, 0.627717, wl(-0.030501, -0.062133, 0.006806, 0.022857)),
    # token_rl_data.md, Diffusion-DPO: denoising errors .10 and .15, the reference's .12 and .14, β = 10
    ("dpo", {"beta": 5.0}, DENOISED, 0.620957, {}),
    # pairwise.md, 3D; token_rl_data.md, the survey's table: Flex-DPO and DPO-Shift
    ("flex_dpo", {}, COMMON, 0.529260, wl(-0.041096, 0.032877)),
    ("flex_dpo", {"beta_rejected": 0.075}, SURVEY, 0.675800, {}),
    # general.md, ranking-accuracy: DPO^γ; token_rl_data.md, the survey's table: weights .1 and .05
    ("dpo_gamma", {"gamma": 0.0}, T0, 0.554355, {}),
    ("dpo_gamma", {"gamma": 0.5}, T0, 0.586962, {}),
    ("dpo_gamma", {"gamma": 1.0}, T0, 0.620957, wl(-0.046257, 0.046257)),
    ("dpo_gamma", {"gamma": 2.0}, T0, 0.693147, {}),
    ("dpo_gamma", {"gamma": 0.5}, SURVEY, 0.661175, {}),
    # token_rl_data.md, the survey's table, and general.md, modpo: offsets
    ("odpo", {}, column(SURVEY, margin=0.2), 0.781755, {}),
    ("modpo", {}, column(T0, margin=0.25), 0.798139, {"chosen_logps": [-0.109967]}),
    ("modpo", {"link": "hinge"}, column(T0, margin=0.25), 1.2, {}),
    ("modpo", {"weight": 1.0}, column(T0, margin=0.2), 0.718460, {}),
    ("modpo", {}, column(SURVEY, margin=0.15), 0.820330, {}),
    # general.md, daa-scaling
    ("daa", {}, T0, 0.620957, {}),
    ("daa", {"link": "ipo"}, T0, 0.7225, {}),
    ("daa", {"link": "slic"}, T0, 0.85, {}),
    ("daa", {"beta": 0.5}, T0, 0.386871, {}),
    ("daa", {"beta": 0.5, "link": "ipo"}, T0, 0.0625, {}),
    ("daa", {"beta": 0.5, "link": "slic"}, T0, 0.25, {}),
    ("daa", {"alpha": -0.01}, T0, 0.611755, {}),
    # token_rl_data.md, the survey's table: χPO, GDPO, Dr. DPO on one pair, ties
    ("chi_po", {}, SURVEY, 0.657442, {}),
    ("gdpo", {}, column(SURVEY, win_prob=0.8), 0.684188, {}),
    ("dr_dpo", {}, SURVEY, 0.678260, {}),
    ("dpo_rk", {"nu": 1.5}, column(SURVEY, tie=False), 0.898399, {}),
    ("dpo_rk", {"nu": 1.5}, column(SURVEY, tie=True), 1.609654, {}),
    ("dpo_d", {"nu": 0.5}, column(SURVEY, tie=False), 1.083687, {}),
    ("dpo_d", {"nu": 0.5}, column(SURVEY, tie=True), 1.098687, {}),
    # general.md, mcts-dpo, upo, dno, inpo
    ("mcts_dpo", {}, column(T0, chosen_visits=10, rejected_visits=3), 0.655572, wl(-0.023180, 0.023180)),
    ("upo", {"alpha": 0.0}, column(T0, uncertainty=0.1), 0.635957, {}),
    ("upo", {"alpha": 0.0}, column(T0, uncertainty=0.035076), 0.626218, {}),
    ("dno", {}, column(T0, chosen_win_prob=0.8, rejected_win_prob=0.3), 0.677588, wl(-0.008503, 0.008503)),
    ("inpo", {"eta": 0.1, "tau": 0.1 / 3}, PREVIOUS, 16.267778, wl(-8.066667, 8.066667)),
    ("inpo", {}, PREVIOUS, 9807.601111, wl(-198.066667, 198.066667)),
    # pairwise.md, EGPO and online IPO
    ("egpo", {}, JUDGED, 6.25, wl(-5.0, 5.0)),
    ("psi_po", {}, JUDGED, 6.25, wl(-5.0, 5.0)),
    ("online_ipo", {}, JUDGED, 2.25, wl(-3.0, 3.0)),
    # general.md, copg; token_rl_data.md, the survey's table: reward distillation
    ("copg", {"beta": 0.5}, column(T0, chosen_score=2.5, rejected_score=1.0), -1.6875, wl(-0.75, 0.75)),
    ("copg", {"beta": 0.5}, column(T0, chosen_score=1.5, rejected_score=1.0), -0.1875, {}),
    ("reward_distillation", {}, column(SURVEY, chosen_score=0.5, rejected_score=0.0), 0.2209, {}),
    # pairwise.md, VPO; libraries.md 1.5 and token_rl_data.md, the survey's table: XPO
    ("vpo", {}, CALIBRATION, 0.514015, wl(-0.040131, 0.040131) | {"calibration_logps": [0.001]}),
    (
        "vpo",
        {"alpha": 1.0, "mode": "offline"},
        column(COMMON, calibration_logps=-20.0, ref_calibration_logps=-22.0),
        0.313015,
        wl(-0.040131, 0.040131) | {"calibration_logps": [-0.1]},
    ),
    ("vpo", {}, column(SURVEY, calibration_logps=-7.0, ref_calibration_logps=0.0), 0.671260, {}),
    ("xpo", {}, F2_ONLINE, 0.690893, {}),
    ("xpo", {"alpha": 1e-2}, F2_ONLINE, 0.645591, {}),
    ("xpo", {"link": "ipo"}, F2_ONLINE, 24.560322, {}),
    ("xpo", {"link": "ipo", "alpha": 1e-2}, F2_ONLINE, 24.515022, {}),
    # general.md, ofs-dpo
    ("ofs_dpo", {"alpha": 0.5}, T0 | OTHER, 0.955187, {}),
    ("ofs_dpo", {"alpha": 0.5, "module": "slow"}, OTHER_SIDE, 0.310167, {}),
    # pairwise.md, SRPO
    ("srpo", {"alpha": 0.0}, SRPO, 0.5625, {}),
    ("srpo", {"alpha": 1.0}, SRPO, 0.3528, {}),
    (
        "srpo",
        {},
        SRPO,
        0.457650,
        wl(-0.075, 0.075)
        | {"improved_logps": [-0.117], "worsened_logps": [0.117]}
        | {"kept_rejected_logps": [0.042], "kept_chosen_logps": [-0.042]},
    ),
    # pairwise.md, HyPO: two samples; the value is λ/k Σ a·logp
    (
        "hypo_kl",
        {"weight": 0.1},
        {"logps": np.array([-2.0, -3.0]), "ref_logps": np.array([-2.5, -2.9]), "groups": np.array([4, 4])},
        0.03,
        {"logps": [0.03, -0.03]},
    ),
    # pairwise.md, SPPO: the single form at P = .8 is the soft one at (.8, .2); libraries.md 1.3: kto_pair
    ("sppo", {"beta": 0.1, "labels": "single"}, column(COMMON, win_prob=0.8), 1.0, wl(-1.0, 1.0)),
    ("kto_pair", {}, F1, 0.476603, {}),
    # token_rl_data.md, OPA-DPO: the weighted pair beside log 2, the anchor, and image terms of log 2
    ("opa_dpo", {"image_weight": 0.0, "anchor_weight": 0.0}, opa(0.3), 0.693147 + 0.656350, {}),
    ("opa_dpo", {"image_weight": 0.5, "anchor_weight": 0.0}, opa(0.3), 2 * 0.693147 + 0.656350, {}),
    ("opa_dpo", {"image_weight": 0.0}, opa(0.6), 0.678260 + 0.656350 + 0.663597 + 0.708260, {}),
    # general.md, gpo: half the sum of the pair's two squares; token_rl_data.md: DRO, NPO, SimNPO, CRRAFT
    ("gpo", {"beta": 1.0}, {k: np.array(v) for k, v in GPO.items()}, 0.211250, {}),
    ("gpo", {"beta": 0.1}, {k: np.array(v) for k, v in GPO.items()}, 6.5, {}),
    ("dro", {"tau": 0.1}, point(-5.0, -5.5, reward=1.0, value=0.3), 0.211250, {"logps": [-0.065], "value": [-0.65]}),
    ("npo", {}, point(-6.0, -6.2), 14.063944, {}),
    ("simnpo", {"beta": 0.1}, {"logps": np.array([-6.0]), "lengths": np.array([8])}, 13.127003, {}),
    (
        "crraft",
        {"average": "tokens"},
        column({}, logps=-5.0, lengths=5, score=0.768525),
        0.768525,
        {"logps": [-0.153705]},
    ),
    ("crraft", {}, column({}, logps=-5.0, score=0.768525), 3.842625, {"logps": [-0.768525]}),
    # pairwise.md, SPPO: one half of the soft pair
    ("sppo_point", {"beta": 0.1}, point(-20.0, -22.0, win_prob=0.8), 0.5, {"logps": [-1.0]}),
    # pairwise.md, ASFT: the two halves of the pair
    ("asft_unpaired", {}, column({}, logps=-12.0, lengths=10, label=True), 2.4, {"logps": [-0.2]}),
    ("asft_unpaired", {}, column({}, logps=-30.0, lengths=15, label=False), 0.145413, {"logps": [0.010435]}),
    # general.md, nbpo: its gradients are of the ascent direction; the values of the final form mean nothing
    ("nbpo", {"form": "likelihood"}, point(1.0, flip=-2.0, label=True), 0.440190, {}),
    (
        "nbpo",
        {"form": "likelihood"},
        point(1.0, flip=-2.0, label=False),
        1.032584,
        {"logps": [0.486330], "flip": [-0.215556]},
    ),
    ("nbpo", {"form": "surrogate"}, point(1.0, flip=-2.0, label=True), -0.643914, {}),
    ("nbpo", {"form": "surrogate"}, point(1.0, flip=-2.0, label=False), -0.356086, {}),
    ("nbpo", {}, point(1.0, flip=-2.0, label=True), 0.368712, {"logps": [-0.236883], "flip": [0.087144]}),
    ("nbpo", {}, point(1.0, flip=-2.0, label=False), 2.905512, {"logps": [0.699000], "flip": [-0.643914]}),
    # from the formulas, with gradients by differences in 30 digits
    ("mallows_po", {}, column(COMMON, dispersion=0.5), 0.598139, wl(-0.022508, 0.022508)),
    ("ns_dpo", {}, column(COMMON, age=2.0), 0.462996, wl(-0.036218, 0.036218)),
    ("ropo", {}, COMMON, 1.526034, wl(-0.093706, 0.093706)),
    (
        "rationale_orpo",
        {"gamma": 0.5},
        column(CONFIDENT, rationale_logps=-40.0, rationale_lengths=20),
        2.230979,
        wl(-0.103812, 0.002054) | {"rationale_logps": [-0.025]},
    ),
    (
        "alpha_dpo",
        {"beta": 2.0, "gamma": 1.0, "average": True},
        F1,
        0.879107,
        wl(-0.239250, -0.097340, 0.143550, 0.194680),
    ),
    (
        "alpha_dpo",
        {"beta": 2.0, "gamma": 1.0},
        THREE_PAIRS,
        0.995926,
        wl(-0.158496, -0.077161, -0.224246, 0.095098, 0.154323, 0.448493),
    ),
    (
        "alpha_dpo",
        {"beta": 2.0, "gamma": 1.0, "average": True},
        THREE_PAIRS,
        0.993669,
        wl(-0.157350, -0.078332, -0.224016, 0.094410, 0.156663, 0.448033),
    ),
    (
        "alpha_dpo",
        {"beta": 2.0, "gamma": 1.0, "average": True, "scaled": True},
        THREE_PAIRS,
        0.991267,
        wl(-0.164136, -0.083734, -0.202350, 0.098482, 0.167469, 0.404701),
    ),
    (
        "alpha_dpo",
        {"beta": 2.0, "gamma": 1.0, "mean": 0.5, "deviation": 2.0},
        THREE_PAIRS,
        0.987819,
        wl(-0.154902, -0.075028, -0.229992, 0.092941, 0.150055, 0.459983),
    ),
    (
        "sampo",
        {},
        tokens("chosen", [[0.5, -0.2, 0.9]], [[0.0] * 3], sampled=[[1, 0, 1]])
        | tokens("rejected", [[-0.1, 0.4]], [[0.0] * 2], sampled=[[1, 1]]),
        0.639659,
        {
            "chosen_token_logps": [[-0.047253, 0.0, -0.047253]],
            "rejected_token_logps": [[0.047253, 0.047253]],
        },
    ),
]
