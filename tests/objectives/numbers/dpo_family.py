"""Worked numbers of `prefuse.objectives.dpo_family`."""

from __future__ import annotations

from tests.objectives.numbers.batches import COMMON, DENOISED, F1, F1B, F2, SURVEY, T0
from tests.objectives.numbers.shared import Row, wl


def divergence(link: str, name: str, beta: float, loss: float, **options: object) -> Row:
    return ("f_dpo", {"link": link, "divergence": name, "beta": beta} | options, F1, loss, {})


ROWS: list[Row] = [
    # pairwise.md, head: plain DPO on the common pair
    ("dpo", {"beta": 0.1}, COMMON, 0.513015, wl(-0.040131, 0.040131)),
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
    ("discopop", {"beta": 0.1, "tau": 0.05}, SURVEY, 0.866911, {}),
    ("f_dpo", {"divergence": "forward_kl"}, SURVEY, 0.682593, {}),
    ("f_dpo", {"divergence": "js"}, SURVEY, 0.686963, {}),
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
    ("robust", {"beta": 0.1, "label_smoothing": 0.1}, F1, 0.617052, wl(-0.029379, -0.030001, 0.029379, 0.030001)),
    ("robust", {"beta": 0.5, "label_smoothing": 0.1}, F1, 0.352349, {}),
    ("discopop", {"beta": 0.1, "tau": 0.05}, F1, 0.861565, wl(-0.031260, -0.015335, 0.031260, 0.015335)),
    ("discopop", {"beta": 0.5, "tau": 0.05}, F1, 0.539446, {}),
    ("discopop", {"beta": 0.1, "tau": 1.0}, F1, 0.765465, wl(-0.030847, -0.031786, 0.030847, 0.031786)),
    ("discopop", {"beta": 0.5, "tau": 1.0}, F1, 0.500731, {}),
    # libraries.md 1.1.2: TRL 1.16 on F1b, where sorting matters
    ("dpo", {"beta": 0.1}, F1B, 0.688452, {"chosen_logps": [-0.017914, -0.014594, -0.017083]}),
    ("dpo", {"beta": 0.5}, F1B, 0.738246, {}),
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
    ("dpo_norm", {"beta": 5.0}, F1, 0.212469, {}),
    ("dpo", {"beta": 0.05}, F1, 0.662405, {}),
    ("dpo_norm", {"beta": 0.05}, F1, 0.685883, {}),
    # libraries.md 1.5: BCO with the batch's own mean as δ; sums in online DPO's IPO
    ("ipo", {"beta": 0.1, "average": False}, F2, 25.312344, {}),
    # libraries.md 1.6: Liger on F2
    ("dpo", {"beta": 0.1}, F2, 0.694698, {}),
    ("hinge", {"beta": 0.1}, F2, 1.003094, {}),
    ("exo", {"beta": 0.1, "label_smoothing": 1e-3}, F2, 2.766577, {}),
    ("robust", {"beta": 0.1, "label_smoothing": 0.1}, F2, 0.695085, {}),
    ("discopop", {"beta": 0.1, "tau": 0.05}, F2, 0.844094, {}),
    ("dpo_norm", {"beta": 0.1}, F2, 0.681227, {}),
    # libraries.md 1.1.3: TRL's coefficient above 1
    ("f_dpo", {"divergence": "alpha", "coefficient": 2.0}, F1, 0.627717, wl(-0.030501, -0.062133, 0.006806, 0.022857)),
    # token_rl_data.md, Diffusion-DPO: denoising errors .10 and .15, the reference's .12 and .14, β = 10
    ("dpo", {"beta": 5.0}, DENOISED, 0.620957, {}),
    # libraries.md 1.1.3: links on f-divergences, TRL 1.16
    divergence("hinge", "forward_kl", 0.1, 0.832817),
    divergence("hinge", "forward_kl", 0.5, 0.341970),
    divergence("ipo", "js", 0.1, 23.545691, average=True),
    divergence("ipo", "js", 0.5, 0.728878, average=True),
    divergence("exo", "js", 0.1, 2.649176, label_smoothing=1e-3),
    divergence("exo", "js", 0.5, 2.220294, label_smoothing=1e-3),
    divergence("robust", "js", 0.1, 0.652964, label_smoothing=0.1),
    divergence("robust", "js", 0.5, 0.504635, label_smoothing=0.1),
    divergence("discopop", "js", 0.1, 0.873307),
    divergence("discopop", "js", 0.5, 0.725737),
    divergence("sigmoid", "forward_kl", 0.1, 0.675121, average=True),
    divergence("sigmoid", "forward_kl", 0.5, 0.607400, average=True),
    # libraries.md 1.7.1: cDPO
    ("cdpo", {}, SURVEY, 0.681260, {}),
    ("cdpo", {}, F1, 0.645177, {}),
]

VARIANTS = [
    # libraries.md 1.1.2 and 1.3: TRL 1.16
    ("dpo", "trl-1.16", {"beta": 0.1}, F1, 0.632677),
    ("ipo", "trl-1.16", {"beta": 0.1}, F1, 22.170139),
    ("ipo", "dpo-original", {"beta": 0.1}, F1, 14.125),
    ("ipo", "openrlhf", {"beta": 0.5}, F1, 0.125),
    ("robust", "trl-1.16", {}, F1, 0.632677),
    # libraries.md 1.2 and 1.7.1: label smoothing where it still counts
    ("dpo", "trl-0.24", {"label_smoothing": 0.1}, F1, 0.645177),
    ("dpo", "openrlhf", {"label_smoothing": 0.1}, F1, 0.645177),
    ("cdpo", "halos", {}, F1, 0.657677),
    ("dpo_norm", "open-instruct", {}, F1, 0.212469),
    # libraries.md 1.1.3: one score, three conventions that agree on pairs
    ("f_dpo", "trl-1.16", {"divergence": "alpha", "coefficient": 0.0}, F1, 0.614387),
    ("f_dpo", "trl-1.10", {"divergence": "forward_kl"}, F1, 0.614387),
    ("f_dpo", "trl-0.24", {"divergence": "alpha", "alpha": 1.0}, F1, 0.614387),
]
