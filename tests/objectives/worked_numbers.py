"""Worked numbers: loss and gradients of each objective on the batches of `fixtures`, six decimals.

One row per number, in the order objective, hyper-parameters, batch, loss, gradients by argument name. Gradients are of
the mean loss. The numbers were computed by running the libraries named in the comments or from the papers' formulas.
"""

from __future__ import annotations

from .fixtures import (
    BLIND,
    COMMON,
    CONFIDENT,
    F1,
    F1_POINTS,
    F1_WIN_RATES,
    F1B,
    F2,
    F2_POINTS,
    F2_POINTS_KL,
    SURVEY,
    T0,
    WIN_RATES,
    Columns,
)

Row = tuple[str, dict[str, object], Columns, float, dict[str, list[float]]]


def wl(*gradients: float) -> dict[str, list[float]]:
    """Gradients to the policy's log-probabilities: those of the chosen responses first."""
    half = len(gradients) // 2
    return {"chosen_logps": list(gradients[:half]), "rejected_logps": list(gradients[half:])}


ROWS: list[Row] = [
    # pairwise.md, head: plain DPO on the common pair
    ("dpo", {"beta": 0.1}, COMMON, 0.513015, wl(-0.040131, 0.040131)),
    # pairwise.md, BPO
    ("bpo", {"beta": 0.1}, BLIND, 1.088955, wl(-0.083914, 0.040131) | {"blind_logps": [0.043782]}),
    # pairwise.md, BPO: the released script's mean over two rows is half of the sum
    ("bpo", {"beta": 0.1, "combine": "mean"}, BLIND, 1.088955 / 2, wl(-0.083914 / 2, 0.040131 / 2)),
    # pairwise.md, SimPO
    ("simpo", {"beta": 2.0, "gamma": 1.0}, COMMON, 1.313262, wl(-0.146212, 0.097474)),
    ("simpo", {"beta": 2.5, "gamma": 1.375}, CONFIDENT, 0.428701, wl(-0.087161, 0.058108)),
    ("simpo", {"beta": 2.5, "gamma_beta_ratio": 0.55}, CONFIDENT, 0.428701, wl(-0.087161, 0.058108)),
    # pairwise.md, ASFT: ORPO on the same pair
    ("orpo", {"beta": 1.0}, CONFIDENT, 1.509790, {}),
    # pairwise.md, SPPO
    ("sppo", {"beta": 1e-3}, WIN_RATES, 64004.0, wl(-298.0, 198.0)),
    ("sppo", {"beta": 0.1}, WIN_RATES, 0.5, wl(-1.0, 0.0)),
    ("sppo_hard", {"beta": 0.1}, COMMON, 18.0, {}),
    # pairwise.md, rDPO / cDPO
    ("robust", {"beta": 0.1, "label_smoothing": 0.1}, COMMON, 0.463015, wl(-0.052631, 0.052631)),
    ("dpo", {"beta": 0.1, "label_smoothing": 0.1}, COMMON, 0.553015, wl(-0.030131, 0.030131)),
    # general.md, head: plain DPO on T0
    ("dpo", {"beta": 0.1}, T0, 0.620957, wl(-0.046257, 0.046257)),
    # general.md, brain: K=2, one-hot target
    ("dpo", {"beta": 1.0}, T0, 0.201413, {}),
    # general.md, f-dpo
    ("f_dpo", {"divergence": "reverse_kl"}, T0, 0.620957, wl(-0.046257, 0.046257)),
    ("f_dpo", {"divergence": "forward_kl"}, T0, 0.631154, wl(-0.017218, 0.077164)),
    ("f_dpo", {"divergence": "js"}, T0, 0.660652, wl(-0.013003, 0.030095)),
    ("f_dpo", {"divergence": "alpha", "alpha": 0.5}, T0, 0.627691, wl(-0.028275, 0.059858)),
    ("f_dpo", {"divergence": "alpha", "alpha": 0.3}, T0, 0.625438, wl(-0.034446, 0.054022)),
    ("f_dpo", {"divergence": "jeffreys"}, T0, 0.563740, wl(-0.058945, 0.114140)),
    # general.md, mcts-dpo: a soft label from visit counts (10, 3)
    ("dpo", {"beta": 0.1, "label_smoothing": 3 / 13}, T0, 0.655572, wl(-0.023180, 0.023180)),
    # general.md, dno: ζ = 0.622459
    ("dpo", {"beta": 0.1, "label_smoothing": 1 - 0.622459}, T0, 0.677588, wl(-0.008503, 0.008503)),
    # general.md, rso: sigmoid-norm and hinge-norm
    ("dpo", {"beta": 0.05}, T0, 0.656350, {}),
    ("hinge", {"beta": 0.05}, T0, 0.925, wl(-0.05, 0.05)),
    ("hinge", {"beta": 0.1}, T0, 0.85, wl(-0.1, 0.1)),
    # general.md, upo: soft labels on either side of one half
    ("dpo", {"beta": 0.1, "label_smoothing": 0.786041}, T0, 0.738863, {}),
    ("dpo", {"beta": 0.1, "label_smoothing": 0.1}, T0, 0.635957, {}),
    ("dpo", {"beta": 0.1, "label_smoothing": 0.035076}, T0, 0.626218, {}),
    # general.md, daa-scaling: DPO and SLiC links at β = 0.5
    ("dpo", {"beta": 0.5}, T0, 0.386871, {}),
    ("hinge", {"beta": 0.5}, T0, 0.25, {}),
    # token_rl_data.md, the survey's table
    ("dpo", {"beta": 0.1}, SURVEY, 0.678260, {}),
    ("dpo", {"beta": 0.1, "label_smoothing": 0.1}, SURVEY, 0.681260, {}),
    ("robust", {"beta": 0.1, "label_smoothing": 0.1}, SURVEY, 0.674510, {}),
    ("hinge", {"beta": 0.1}, SURVEY, 0.97, {}),
    ("ipo", {"beta": 0.1, "average": False}, SURVEY, 22.09, {}),
    ("ipo", {"beta": 0.1, "average": True}, SURVEY, 24.255625, {}),
    ("dpo_norm", {"beta": 0.1}, SURVEY, 0.689404, {}),
    ("exo", {"beta": 0.1, "label_smoothing": 1e-3}, SURVEY, 2.709546, {}),
    ("nca", {"beta": 0.1}, SURVEY, 1.379288, {}),
    ("bco_pair", {"beta": 0.1, "delta": 0.0}, SURVEY, 1.371657, {}),
    ("sppo_hard", {"beta": 0.1}, SURVEY, 47.29, {}),
    ("apo_zero", {"beta": 0.1}, SURVEY, 0.992502, {}),
    ("apo_down", {"beta": 0.1}, SURVEY, 1.004998, {}),
    ("discopop", {"beta": 0.1, "tau": 0.05}, SURVEY, 0.866911, {}),
    ("f_dpo", {"divergence": "forward_kl"}, SURVEY, 0.682593, {}),
    ("f_dpo", {"divergence": "js"}, SURVEY, 0.686963, {}),
    ("cpo", {"beta": 0.1, "nll": "token_mean"}, SURVEY, 1.644397, {}),
    ("simpo", {"beta": 2.0, "gamma": 1.0}, SURVEY, 1.701413, {}),
    ("orpo", {"beta": 0.1}, SURVEY, 1.093149, {}),
    # libraries.md 1.1.2: TRL 1.16 on F1
    ("dpo", {"beta": 0.1}, F1, 0.632677, wl(-0.023129, -0.023751, 0.023129, 0.023751)),
    ("dpo", {"beta": 0.5}, F1, 0.430474, {}),
    ("dpo_norm", {"beta": 0.1}, F1, 0.678672, wl(-0.008194, -0.006172, 0.004917, 0.012344)),
    ("dpo_norm", {"beta": 0.5}, F1, 0.622941, {}),
    ("hinge", {"beta": 0.1}, F1, 0.875, wl(-0.05, -0.05, 0.05, 0.05)),
    ("hinge", {"beta": 0.5}, F1, 0.375, {}),
    ("ipo", {"beta": 0.1, "average": True}, F1, 22.170139, wl(-1.555555, -1.1875, 0.933333, 2.375)),
    ("ipo", {"beta": 0.5, "average": True}, F1, 0.503472, {}),
    ("exo", {"beta": 0.1, "label_smoothing": 1e-3}, F1, 2.547735, wl(-0.083986, -0.084872, 0.083986, 0.084872)),
    ("exo", {"beta": 0.5, "label_smoothing": 1e-3}, F1, 1.767541, {}),
    ("exo", {"beta": 0.1, "label_smoothing": 0.1}, F1, 0.444289, wl(-0.025447, -0.026150, 0.025447, 0.026150)),
    ("exo", {"beta": 0.5, "label_smoothing": 0.1}, F1, 0.227422, {}),
    ("nca", {"beta": 0.1}, F1, 1.356528, wl(-0.012031, -0.010627, 0.011720, 0.0125)),
    ("nca", {"beta": 0.5}, F1, 1.266719, {}),
    ("robust", {"beta": 0.1, "label_smoothing": 0.1}, F1, 0.617052, wl(-0.029379, -0.030001, 0.029379, 0.030001)),
    ("robust", {"beta": 0.5, "label_smoothing": 0.1}, F1, 0.352349, {}),
    ("bco_pair", {"beta": 0.1}, F1, 1.325434, wl(-0.024688, -0.023751, 0.023440, 0.025)),
    ("bco_pair", {"beta": 0.5}, F1, 1.114262, {}),
    ("sppo_hard", {"beta": 0.1}, F1, 38.8125, wl(-4.75, -4.0, 3.75, 5.0)),
    ("sppo_hard", {"beta": 0.5}, F1, 0.8125, {}),
    ("aot", {"beta": 0.1}, F1, 0.632677, wl(-0.023129, -0.023751, 0.023129, 0.023751)),
    ("aot", {"beta": 0.5}, F1, 0.430474, {}),
    ("aot", {"beta": 0.1, "label_smoothing": 0.1}, F1, 0.645177, wl(-0.018129, -0.018751, 0.018129, 0.018751)),
    ("aot", {"beta": 0.5, "label_smoothing": 0.1}, F1, 0.492974, {}),
    ("aot_unpaired", {"beta": 0.1}, F1, 0.632677, wl(-0.023129, -0.023751, 0.023129, 0.023751)),
    ("aot_unpaired", {"beta": 0.5}, F1, 0.430474, {}),
    ("apo_zero", {"beta": 0.1}, F1, 0.968781, wl(-0.012498, -0.012469, 0.012451, 0.0125)),
    ("apo_zero", {"beta": 0.5}, F1, 0.847488, {}),
    ("apo_down", {"beta": 0.1}, F1, 0.984410, wl(0.000068, 0.000000, 0.012430, 0.012469)),
    ("apo_down", {"beta": 0.5}, F1, 0.926015, {}),
    ("discopop", {"beta": 0.1, "tau": 0.05}, F1, 0.861565, wl(-0.031260, -0.015335, 0.031260, 0.015335)),
    ("discopop", {"beta": 0.5, "tau": 0.05}, F1, 0.539446, {}),
    ("discopop", {"beta": 0.1, "tau": 1.0}, F1, 0.765465, wl(-0.030847, -0.031786, 0.030847, 0.031786)),
    ("discopop", {"beta": 0.5, "tau": 1.0}, F1, 0.500731, {}),
    ("sft", {}, F1, 1.0, wl(-0.142857, -0.142857, 0.0, 0.0)),
    # libraries.md 1.1.2: TRL 1.16 on F1b, where sorting matters
    ("dpo", {"beta": 0.1}, F1B, 0.688452, {"chosen_logps": [-0.017914, -0.014594, -0.017083]}),
    ("dpo", {"beta": 0.5}, F1B, 0.738246, {}),
    ("aot", {"beta": 0.1}, F1B, 0.685335, wl(-0.016667, -0.015834, -0.017083, 0.016667, 0.015834, 0.017083)),
    ("aot", {"beta": 0.5}, F1B, 0.664388, {}),
    ("aot", {"beta": 0.1, "label_smoothing": 0.1}, F1B, 0.687001, {}),
    ("aot", {"beta": 0.5, "label_smoothing": 0.1}, F1B, 0.672721, {}),
    ("aot_unpaired", {"beta": 0.1}, F1B, 0.685751, wl(-0.016250, -0.017499, -0.015834, 0.017499, 0.015834, 0.016250)),
    ("aot_unpaired", {"beta": 0.5}, F1B, 0.674698, {}),
    ("aot_unpaired", {"beta": 0.1, "label_smoothing": 0.1}, F1B, 0.687418, {}),
    ("aot_unpaired", {"beta": 0.5, "label_smoothing": 0.1}, F1B, 0.683031, {}),
    # libraries.md 1.1.3: f-divergences, TRL 1.16 on F1 (its coefficient is 1 - α)
    ("f_dpo", {"divergence": "forward_kl"}, F1, 0.614387, wl(-0.016846, -0.008906, 0.075500, 0.024210)),
    ("f_dpo", {"divergence": "forward_kl", "beta": 0.5}, F1, 0.388438, {}),
    ("f_dpo", {"divergence": "js"}, F1, 0.661126, wl(-0.010439, -0.006596, 0.018533, 0.012263)),
    ("f_dpo", {"divergence": "js", "beta": 0.5}, F1, 0.545444, {}),
    ("f_dpo", {"divergence": "alpha"}, F1, 0.626999, wl(-0.019895, -0.014567, 0.042117, 0.024017)),
    ("f_dpo", {"divergence": "alpha", "beta": 0.5}, F1, 0.416378, {}),
    ("f_dpo", {"divergence": "alpha", "alpha": 1.0}, F1, 0.614387, {}),
    # libraries.md 1.2 and 1.7: TRL 0.24, the original DPO code, OpenRLHF, HALOs, open-instruct, NeMo-RL, SPPO
    ("dpo", {"beta": 0.1, "label_smoothing": 0.1}, F1, 0.645177, {}),
    ("dpo", {"beta": 0.5, "label_smoothing": 0.1}, F1, 0.492974, {}),
    ("ipo", {"beta": 0.1, "average": False}, F1, 14.125, {}),
    ("ipo", {"beta": 0.5, "average": False}, F1, 0.125, {}),
    ("dpo", {"beta": 0.1, "label_smoothing": 0.2}, F1, 0.657677, {}),
    ("simpo", {"beta": 10.0, "gamma_beta_ratio": 0.3}, F1, 0.938858, {}),
    ("dpo_norm", {"beta": 5.0}, F1, 0.212469, {}),
    ("simpo", {"beta": 5.0, "gamma_beta_ratio": 0.3}, F1, 0.686981, {}),
    ("dpo", {"beta": 0.05}, F1, 0.662405, {}),
    ("dpo_norm", {"beta": 0.05}, F1, 0.685883, {}),
    ("sppo", {"beta": 0.1}, F1_WIN_RATES, 4.593750, {}),
    # libraries.md 1.3: KTO
    ("kto", {"beta": 0.1, "kl": 0.0}, F1_POINTS, 0.484390, {}),
    ("kto", {"beta": 0.5, "kl": 0.0}, F1_POINTS, 0.423744, {}),
    ("kto", {"beta": 0.1, "kl": 0.5}, F1_POINTS, 0.484404, {}),
    ("kto", {"beta": 0.5, "kl": 0.5}, F1_POINTS, 0.425268, {}),
    ("kto", {"beta": 0.1, "kl": 0.0, "desirable_weight": 4 / 3}, F1_POINTS, 0.565121, {}),
    ("kto", {"beta": 0.1, "kl": 1.125}, F1_POINTS, 0.484448, {}),
    ("kto", {"beta": 0.1}, F2_POINTS_KL, 0.5003857, {}),
    ("kto", {"beta": 0.5}, F2_POINTS_KL, 0.5017799, {}),
    ("kto", {"beta": 0.1, "desirable_weight": 1.5, "undesirable_weight": 0.5}, F2_POINTS_KL, 0.5265085, {}),
    ("kto", {"beta": 0.1, "kl": -0.25}, F2_POINTS, 0.5003864, {}),
    ("apo_zero_unpaired", {"beta": 0.1}, F2_POINTS, 0.5003864, {}),
    ("kto", {"beta": 0.1, "kl": 0.3}, F2_POINTS, 0.500386, {}),
    # libraries.md 1.4: CPO, SimPO and ORPO on F1 and F2
    ("cpo", {"beta": 0.1, "alpha": 0.0}, F1, 0.636407, {}),
    ("cpo", {"beta": 0.1, "nll": "token_mean"}, F1, 1.636407, {}),
    ("simpo", {"beta": 0.1, "gamma": 0.5}, F1, 0.950716, {}),
    ("simpo", {"beta": 2.0, "gamma": 0.5}, F1, 0.601737, {}),
    ("simpo", {"beta": 2.5, "gamma": 1.375}, F1, 0.973839, {}),
    ("orpo", {"beta": 0.1}, F1, 1.047060, {}),
    ("orpo", {"beta": 0.1, "nll": "response_mean"}, F1, 1.067893, {}),
    ("cpo", {"beta": 0.1, "alpha": 0.0}, F2, 0.844296, {}),
    ("cpo", {"beta": 0.1, "alpha": 0.0, "label_smoothing": 0.1}, F2, 0.816094, {}),
    ("simpo", {"beta": 0.1, "gamma": 0.5}, F2, 0.993034, {}),
    ("simpo", {"beta": 2.0, "gamma": 0.5}, F2, 1.398420, {}),
    ("orpo", {"beta": 0.1}, F2, 2.189902, {}),
    # libraries.md 1.5: BCO with the batch's own mean as δ; sums in online DPO's IPO
    ("bco", {"beta": 0.1}, F2_POINTS, 0.694384, {}),
    ("ipo", {"beta": 0.1, "average": False}, F2, 25.312344, {}),
    # libraries.md 1.6: Liger on F2
    ("dpo", {"beta": 0.1}, F2, 0.694698, {}),
    ("hinge", {"beta": 0.1}, F2, 1.003094, {}),
    ("exo", {"beta": 0.1, "label_smoothing": 1e-3}, F2, 2.766577, {}),
    ("nca", {"beta": 0.1}, F2, 1.395995, {}),
    ("robust", {"beta": 0.1, "label_smoothing": 0.1}, F2, 0.695085, {}),
    ("bco_pair", {"beta": 0.1, "delta": 0.0}, F2, 1.396733, {}),
    ("sppo_hard", {"beta": 0.1}, F2, 57.436989, {}),
    ("apo_zero", {"beta": 0.1}, F2, 1.000773, {}),
    ("apo_down", {"beta": 0.1}, F2, 0.955873, {}),
    ("discopop", {"beta": 0.1, "tau": 0.05}, F2, 0.844094, {}),
    ("dpo_norm", {"beta": 0.1}, F2, 0.681227, {}),
    ("cpo", {"beta": 0.1, "nll": "token_mean"}, F2, 2.945695, {}),
    ("cpo", {"beta": 0.1, "label_smoothing": 0.1, "alpha": 0.5, "nll": "token_mean"}, F2, 1.866793, {}),
]

# libraries.md 1.1.2, end: the losses at policy = reference, on any batch
AT_THE_REFERENCE = {
    "dpo": 0.693147,
    "dpo_norm": 0.693147,
    "robust": 0.693147,
    "aot": 0.693147,
    "aot_unpaired": 0.693147,
    "f_dpo": 0.693147,
    "hinge": 1.0,
    "nca": 1.386294,
    "bco_pair": 1.386294,
    "bpo": 1.386294,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": 0.846574,
    "exo": 2.761231,
    "ipo": 25.0,
}
