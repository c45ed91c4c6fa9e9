"""Worked numbers of the objectives of lists and tokens, six decimals.

One row per number: objective, hyper-parameters, columns, loss, gradients of the mean loss by argument name. The numbers
were computed from the papers' formulas or by running the authors' or the libraries' code; comments name the entry.
"""

from __future__ import annotations

import math

import numpy as np

from .fixtures import Columns

Row = tuple[str, dict[str, object], Columns, float, dict[str, object]]


def one_list(s, **extra) -> Columns:
    """One prompt whose responses have these log-ratios."""
    return {"logps": s, "ref_logps": [0.0] * len(s), "groups": [0] * len(s)} | extra


def one_pair(w, l, ref_w=0.0, ref_l=0.0, **extra) -> Columns:  # noqa: E741
    logps = {"chosen_logps": [w], "rejected_logps": [l], "ref_chosen_logps": [ref_w], "ref_rejected_logps": [ref_l]}
    return logps | {name: [value] for name, value in extra.items()}


def one_response(**columns) -> Columns:
    """One response; lists are token columns, numbers the response's own."""
    width = max(len(value) for value in columns.values() if isinstance(value, list))
    return {"mask": [[True] * width]} | {name: [value] for name, value in columns.items()}


def pad(rows, width) -> np.ndarray:
    return np.array([[*row, *[np.nan] * (width - len(row))] for row in rows], dtype=np.float64)


def token_pairs(chosen, rejected, **token_columns) -> Columns:
    """Token columns of a batch of pairs from ragged lists of log-ratios, padded with NaN."""
    columns = {}
    for role, rows in (("chosen", chosen), ("rejected", rejected)):
        lengths, width = np.array([len(row) for row in rows]), max(map(len, rows))
        columns[f"{role}_mask"] = np.arange(width)[None, :] < lengths[:, None]
        columns[f"{role}_token_logps"] = pad(rows, width)
        columns[f"ref_{role}_token_logps"] = pad([[0.0] * len(row) for row in rows], width)
        for name, by_role in token_columns.items():
            columns[f"{role}_token_{name}"] = pad(by_role[role == "rejected"], width)
    return columns


FIRST, SECOND = (
    one_list([2.0, 1.0, 3.0], label=[1.0, 0.0, 0.0]),
    one_list([0.05, -0.1, 0.2, 0.0], label=[0.9, 0.6, 0.3, 0.1]),
)


def lipo_rows():  # general.md, lipo
    numbers = {
        "mse": (11.0, 1.2325),
        "sigmoid": (4.488777, 2.809142),
        "logistic": (1.626523, 4.257265),
        "hinge": (2.0, 6.15),
        "list_mle": (3.534534, 3.217686),
        "softmax": (1.407606, 1.406031),
        "lambda": (0.758426, 0.725288),
    }
    for loss, (first, second) in numbers.items():
        yield "lipo", {"loss": loss, "beta": 1.0}, FIRST, first, {}
        yield "lipo", {"loss": loss, "beta": 1.0}, SECOND, second, {}
    binary = {"loss": "lambda", "beta": 1.0, "base": 2.0}
    yield "lipo", binary, FIRST, 0.525701, {"logps": [-0.305024, 0.035212, 0.269812]}
    yield "lipo", binary, SECOND, 0.502731, {}
    rax = {"variant": "rax", "beta": 1.0}
    yield "lipo", rax, FIRST, 0.788552, {}
    yield "lipo", rax, SECOND, 0.335154, {}
    yield "lipo", rax | {"loss": "softmax"}, SECOND, 2.671460, {}


PROPOSALS = {
    "logps": [-12.0, -15.0, -13.0],
    "ref_logps": [-13.0, -14.5, -12.5],
    "proposal_logps": [-12.5, -14.8, -12.9],
    "score": [1.0, 0.0, -0.5],
    "groups": [0, 0, 0],
}
BEST_OF_TWO = {"logps": [-12.0, -15.0], "ref_logps": [-13.0, -14.5], "groups": [0, 0]}
FOUR = one_list([0.25, -1.25, 1.0, 0.0], score=[1.0, 0.0, 0.5, -1.0])
FRONT = {"first": [1.0, 0.0, 0.0], "second": [0.0, -1.0, 1.0]}
EMBEDDINGS = {"chosen_even": [[1.2, -0.3]], "chosen_odd": [[0.5, 0.8]]}
EMBEDDINGS |= {"rejected_even": [[0.3, 0.6]], "rejected_odd": [[-0.4, 0.1]]}
ONE_BLOCK = {name: [value[0][:1]] for name, value in EMBEDDINGS.items()}

STEPS = {  # step means .3, -.1, .2 with weights 2, 1.6, 1.1: a score of 0.140426
    "token_logps": [[0.1, 0.5, -0.1, 0.6, -0.2, 0.2], [0.0] * 6],
    "ref_token_logps": [[0.0] * 6] * 2,
    "mask": [[True] * 6] * 2,
    "token_step_start": [[True, False, True, True, False, False]] * 2,
    "token_weight": [[2.0, 9.0, 1.6, 1.1, 9.0, 9.0]] * 2,
    "label": [1.0, 0.0],
    "groups": [0, 0],
}

JUDGED = {
    "logps": [-5.0, -8.0, -6.0],
    "reward": [2.0, 0.5, 1.0],
    "base_reward": [0.8] * 3,
    "judge": [1.0, 1.0, 0.0],
    "kl": [1.0, 6.0, 2.0],
}
RANKED_BY_REWARD = {
    "logps": [-5.0, -8.0, -6.0],
    "ref_logps": [-6.0, -14.0, -8.0],
    "reward": [2.0, 0.5, 1.0],
    "judge": [1.0, 1.0, 0.0],
    "base_reward": [0.8],
    "groups": [0, 0, 0],
}
RANKED = {"logps": [-2.0, -4.5, -10.0], "lengths": [2, 3, 5], "score": [1.0, 0.4, 0.0], "groups": [0, 0, 0]}

LISTS: list[Row] = [
    *lipo_rows(),
    # token_rl_data.md, TPO-tree: its ranking term
    (
        "lipo",
        {"beta": 0.5},
        one_list([1.0, 0.2, -0.4], label=[1.0, 0.6, 0.1]),
        0.448735,
        {"logps": [0.5 * -0.325655, 0.5 * 0.067796, 0.5 * 0.257859]},
    ),
    ("lipo", {"beta": 0.5}, one_list([-0.4, 1.0, 0.2], label=[1.0, 0.6, 0.1]), 0.656448, {}),
    # token_rl_data.md, TPO-tree: the step score of the authors' code, its weight Δ = 1/log 2 - 1/log 3 in a list of two
    (
        "tpo_tree",
        {"beta": 0.5, "average": True},
        STEPS,
        (1 / math.log(2) - 1 / math.log(3)) * math.log1p(math.exp(-0.5 * 0.140426)),
        {},
    ),
    # the paper's sum over steps
    (
        "tpo_tree",
        {"beta": 0.5},
        STEPS,
        0.189482,
        {
            "token_logps": [
                [-0.159435, -0.159435, -0.127548, *[-0.087689] * 3],
                [0.159435, 0.159435, 0.127548, *[0.087689] * 3],
            ]
        },
    ),
    # general.md, brain
    ("brain", {"gamma": 0.5}, PROPOSALS, 0.915297, {"logps": [-0.213517, 0.031217, 0.182300]}),
    ("brain", {"gamma": 0.5}, BEST_OF_TWO | {"proposal_logps": [-13.0, -14.5], "score": [1.0, 0.0]}, 0.380218, {}),
    # libraries.md 1.7.16: EXO's list and InfoNCA
    ("exo_list", {"beta": 0.1}, FOUR, 0.219463, {}),
    ("exo_list", {"beta": 0.5}, FOUR, 0.208453, {}),
    ("info_nca", {"beta": 0.1}, FOUR, 1.370733, {}),
    ("info_nca", {"beta": 0.5}, FOUR, 1.368580, {}),
    # general.md, op-gfn
    ("op_gfn", {}, {"logps": [-12.0, -15.0], "label": [1.0, 0.0], "groups": [0, 0]}, 0.048587, {}),
    ("op_gfn", {}, {"logps": [-12.0, -15.0], "label": [1.0, 1.0], "groups": [0, 0]}, 1.548587, {}),
    (
        "op_gfn_pareto",
        {"scores": "first second"},
        {"logps": [-12.0, -15.0, -13.0], "groups": [0, 0, 0]} | FRONT,
        0.849012,
        {},
    ),
    # general.md, gpm: s = -0.63 with one block, -1.14 with two, -1.176 gated
    ("gpm", {"temperature": 0.1}, ONE_BLOCK, 6.301835, {}),
    ("gpm", {"temperature": 1.0}, ONE_BLOCK, 1.056960, {}),
    ("gpm", {"temperature": 1.0}, EMBEDDINGS, math.log1p(math.exp(1.14)), {}),
    ("gpm", {"temperature": 1.0, "gated": True}, EMBEDDINGS | {"gate": [[1.3, 0.7]]}, math.log1p(math.exp(1.176)), {}),
    # token_rl_data.md, CGPO
    (
        "crpg",
        {"average": "tokens"},
        JUDGED | {"lengths": [5, 8, 6]},
        -0.033607,
        {"logps": [-0.021283, 0.006162, 0.015121]},
    ),
    ("crpg", {}, JUDGED, -0.212842, {"logps": [-0.134791, 0.039025, 0.095766]}),
    (
        "crraft_list",
        {"kl_max": 5.0, "average": "response"},
        RANKED_BY_REWARD | {"lengths": [5, 8, 6]},
        0.768525,
        {"logps": [-0.768525 / 5, 0.0, 0.0]},
    ),
    ("crraft_list", {"kl_max": 5.0}, RANKED_BY_REWARD, 3.842624, {"logps": [-0.768525, 0.0, 0.0]}),
    # token_rl_data.md, DomainRM and the survey: Bradley-Terry with Δ = 0.7
    ("bradley_terry", {}, {"chosen_reward": [1.0], "rejected_reward": [0.3]}, 0.403186, {}),
    # token_rl_data.md, D3PO, Diffusion-DPO (β = 10 with the code's factor ½), SePPO
    ("d3po", {"beta": 0.1, "clip": 0.1}, one_pair(0.03, -0.25), 0.686402, {"rejected_logps": [0.0]}),
    (
        "diffusion_dpo",
        {"beta": 5.0},
        {"chosen_error": [0.10], "chosen_ref_error": [0.12], "rejected_error": [0.15], "rejected_ref_error": [0.14]},
        0.620957,
        {},
    ),
    (
        "seppo",
        {"beta": 100.0},
        {"chosen_error": [0.0], "chosen_ref_error": [0.02], "rejected_error": [0.01], "rejected_ref_error": [0.0]},
        0.048587,
        {},
    ),
]

P3O = one_pair(-12.0, -15.0, chosen_old_logps=-12.05, rejected_old_logps=-14.95, chosen_reward=0.8, rejected_reward=0.0)
BOTH_WAYS = {"chosen_logps": [-0.4], "rejected_logps": [0.4]}

CLIPPED = one_response(old_logps=[-1.0, -2.0], logps=[-0.7, -1.6], advantage=[1.0, -0.5])
CRITIC = {"value": [[0.9, 0.1]], "old_value": [[0.5, 0.2]], "return": [[1.0, 0.0]]}
RTO = one_response(
    ref_logps=[-1.0, -2.0, -1.5],
    old_logps=[-0.9, -2.2, -1.2],
    dpo_logps=[-0.6, -4.0, -1.4],
    logps=[-0.6, -2.5, -1.15],
    value=[0.5, 0.6, 0.7],
    score=1.5,
)
OREO = one_response(ref_logps=[0.0] * 3, logps=[0.5, -0.2, 0.3], value=[0.4, 0.6, 0.9], reward=1.0)
SPARSE = token_pairs(
    [[0.5, -0.2, 0.9]],
    [[-0.1, 0.4]],
    rkl=([[0.05, 0.2, 0.1]], [[0.3, 0.15]]),
    reward_weight=([[1.0, 0.0, 0.5]], [[0.2, 1.0]]),
    kl_weight=([[0.5, 0.5, 0.0]], [[1.0, 0.25]]),
)
COMMON_MASK = {f"{role}_token_kl_weight": SPARSE[f"{role}_token_reward_weight"] for role in ("chosen", "rejected")}
TDPO = token_pairs([[1.0, 0.2]], [[-0.5, 0.25, -0.25]], rkl=([[0.5, 0.3]], [[0.5, 0.5, 0.5]]))
F2_TDPO = token_pairs(
    [[-2.388509], [-1.216280]], [[-2.401820], [-1.141082]], rkl=([[5.924103], [5.263302]], [[1.781328], [4.390307]])
)
F2_TOKENS = [
    [-0.423358, -4.201231, -2.472275],
    [-3.595217, -0.244511, -2.037348, -1.735858],
    [-0.534775, -3.310146],
    [-2.599848, -2.548358, -0.076231],
]
F2_REFERENCE = [
    [-1.993148, -0.575343, -2.139865],
    [-1.090285, -2.387491, -0.800731, -2.118148],
    [-0.606141, -0.836959],
    [-2.118148, -1.325343, -0.639865],
]


def f2_samples() -> Columns:
    """F2 with old log-probs 0.1 t above the policy's, t counted from 0 at the ignored first position."""
    fill = lambda rows: np.array([[0.0, *row, *[0.0] * (4 - len(row))] for row in rows])  # noqa: E731
    lengths = np.array([3, 4, 2, 3])[:, None]
    place = np.arange(5)[None, :]
    columns = {"logps": fill(F2_TOKENS), "ref_logps": fill(F2_REFERENCE), "mask": (place > 0) & (place <= lengths)}
    return columns | {"old_logps": columns["logps"] + 0.1 * place, "advantage": np.array([1.0, 0.5, -1.0, -0.5])}


F2_GIVEN = f2_samples()
F2_FREE = {name: value for name, value in F2_GIVEN.items() if name != "ref_logps"}
REWARDS = {"reward": [0.2, 1.5, -0.3, 0.9, 1.1], "groups": [0] * 5}

TOKENS: list[Row] = [
    # libraries.md 1.6: Liger's GRPO with β 0.04: grpo, bnpo and dapo, dr_grpo
    ("grpo", {"estimator": "given"}, F2_GIVEN, 0.204779, {}),
    ("grpo", {"estimator": "given", "average": "tokens"}, F2_GIVEN, 0.095720, {}),
    ("grpo", {"estimator": "given", "average": "constant", "max_tokens": 5.0}, F2_GIVEN, 0.057432, {}),
    # token_rl_data.md, PPO-max; the value's factor ½ is inside ppo_max and outside ppo
    ("ppo", {}, CLIPPED, -0.227044, {"logps": [[0.0, 0.372956]]}),
    ("ppo", {"value_weight": 0.5, "value_clip": 0.2}, CLIPPED | CRITIC, -0.202044, {"value": [[0.0, 0.05]]}),
    ("ppo_max", {}, CLIPPED | CRITIC, -0.202044, {"logps": [[0.0, 0.372956]], "value": [[0.0, 0.05]]}),
    ("ppo_max", {"entropy_weight": 1.0}, CLIPPED | CRITIC | {"entropy": [[2.0, 2.6]]}, 32.7 - 0.202044, {}),
    # general.md, dr-po: the first token was rolled in
    (
        "dr_po",
        {},
        one_response(logps=[0.3, -0.3, 0.05, -0.4], old_logps=[0.0] * 4, advantage=[1.0, -0.5, 0.8, 2.0], roll_in=1),
        -0.593886,
        {"logps": [[0.0, 0.0, -0.8 * math.exp(0.05) / 3, -2 * math.exp(-0.4) / 3]]},
    ),
    # token_rl_data.md, RTO: advantages 0.892205, 0.813900, 0.802000
    ("rto", {"reward_clip": 0.05}, RTO, -0.838906, {"logps": [[0.0, -0.200984, -0.281040]]}),
    # token_rl_data.md, MDPO: off-policy, and κ = λ
    ("mdpo_off", {"temperature": 0.5}, one_response(logps=[-1.2], old_logps=[-1.0], q=[0.7]), -1.0, {"q": [[-1.0]]}),
    ("mdpo_off", {"temperature": 0.2}, one_response(logps=[-1.2], old_logps=[-1.0], q=[0.7]), -0.94, {}),
    # general.md, p3o; the reward of V1 is 0 where nothing is clipped
    ("p3o", {"beta": 0.0}, P3O, -1.2, BOTH_WAYS),
    ("p3o", {"beta": 0.0, "clipping": "separate"}, P3O, 0.0, BOTH_WAYS),
    (
        "p3o",
        {"beta": 0.0, "clipping": "separate"},
        P3O | {"chosen_old_logps": [-12.3]},
        0.057020,
        {"chosen_logps": [0.0], "rejected_logps": [0.513610]},
    ),
    # token_rl_data.md, OREO
    ("oreo_value", {}, OREO, 0.168205, {"value": [[-0.388, -0.264667, -0.060667]]}),
    ("oreo", {"divergence": "none"}, OREO, 0.168205, {"logps": [[-0.011640, -0.007940, -0.001820]]}),
    ("oreo", {"divergence": "none", "level": "response"}, OREO, 0.338724, {"logps": [[-0.034920] * 3]}),
    (
        "oreo",
        {"divergence": "none", "level": "step"},
        OREO | {"step_start": [[True, False, True]]},
        0.173502,
        {"logps": [[-0.01746, -0.01746, -0.00273]]},
    ),
    # token_rl_data.md, TDPO, each sum spread over several tokens; libraries.md 1.7.11 on F2
    (
        "tdpo1",
        {},
        TDPO,
        0.644397,
        {
            "chosen_token_logps": [[-0.047502] * 2],
            "rejected_token_logps": [[0.047502] * 3],
            "chosen_token_rkl": [[-0.047502] * 2],
            "rejected_token_rkl": [[0.047502] * 3],
        },
    ),
    (
        "tdpo2",
        {},
        TDPO,
        0.627924,
        {
            "chosen_token_logps": [[-0.046630] * 2],
            "rejected_token_logps": [[0.046630] * 3],
            "chosen_token_rkl": [[0.0] * 2],
            "rejected_token_rkl": [[0.023315] * 3],
        },
    ),
    ("tdpo1", {}, F2_TDPO, 0.580417, {}),
    ("tdpo1", {"beta": 0.5}, F2_TDPO, 0.315698, {}),
    (
        "tdpo2",
        {},
        F2_TDPO,
        0.634790,
        {"chosen_token_logps": [[-0.022404], [-0.024548]], "rejected_token_rkl": [[0.011202], [0.012274]]},
    ),
    ("tdpo2", {"beta": 0.5}, F2_TDPO, 0.454472, {}),
    # token_rl_data.md, SparsePO
    ("sparse_po", {}, SPARSE, 0.675432, {}),
    ("sparse_po", {"reward_penalty": 1e-3, "kl_penalty": 1e-3}, SPARSE, 0.680382, {}),
    ("sparse_po", {}, SPARSE | COMMON_MASK, 0.670412, {}),
]
# From the formulas, with gradients by differences in 30 digits.
H_W, H_L = [[0.5, -0.2, 0.9]], [[-0.1, 0.4]]
THREE = one_list([1.0, 0.2, -0.4])
STEPPED = {"logps": [-0.7, -2.3, -1.45], "old_logps": [-1.0, -2.0, -1.5]}
UP, DOWN = one_response(**STEPPED, advantage=0.8), one_response(**STEPPED, advantage=-0.5)
BY_TOKEN = one_response(**STEPPED, advantage=[0.8] * 3)
SAMPLES = {"logps": [-2.0, -3.0, -1.0], "reward": [1.0, 0.0, 0.5]}
GIVEN = {"estimator": "given"}
FORMULAS: list[Row] = [
    (
        "d2po",
        {"discount": 0.9},
        token_pairs(H_W, H_L),
        0.654475,
        {
            "chosen_token_logps": [[-0.048029, -0.043226, -0.038903]],
            "rejected_token_logps": [[0.048029, 0.043226]],
        },
    ),
    (
        "tis_dpo",
        {"shift": 0.1},
        token_pairs(H_W, H_L, contrast=([[0.3, -1.0, 2.0]], [[-0.2, 0.6]])),
        0.533806,
        {
            "chosen_token_logps": [[-0.055834, -0.025088, -0.185376]],
            "rejected_token_logps": [[0.050521, 0.022701]],
        },
    ),
    (
        "mapo",
        {},
        token_pairs(H_W, H_L, activation=([[0.2, 0.9, -0.4]], [[1.0, 0.0]]), rkl=([[0.05, 0.2, 0.1]], [[0.3, 0.15]])),
        0.690458,
        {"chosen_token_logps": [[-0.023015, -0.049865, 0.0]], "rejected_token_logps": [[0.049865, 0.0]]},
    ),
    # general.md, lipo: list-mle
    ("plackett_luce", {"beta": 1.0}, FIRST, 3.534534, {}),
    ("plackett_luce", {"beta": 1.0}, SECOND, 3.217686, {}),
    (
        "softmax_dpo",
        {"beta": 0.5},
        THREE | {"label": [1.0, 0.0, 0.0]},
        0.773300,
        {"logps": [-0.269256, 0.154672, 0.114584]},
    ),
    (
        "nca_list",
        {"beta": 0.5},
        THREE | {"score": [1.0, 0.5, 0.0]},
        1.358983,
        {"logps": [0.008135, 0.014534, 0.023804]},
    ),
    (
        "pro",
        {},
        RANKED,
        1.603591,
        {"logps": [-0.347821, 0.029355, 0.065764]},
    ),
    (
        "pro",
        {"nll": "response_mean"},
        RANKED,
        1.553591,
        {"logps": [-0.322821, 0.029355, 0.065764]},
    ),
    (
        "pro",
        {"variant": "original"},
        RANKED,
        1.903591,
        {"logps": [-0.497821, 0.029355, 0.065764]},
    ),
    (
        "pro",
        {},
        {"logps": [-1.0, -1.5, -2.0], "lengths": [1, 1, 1], "score": [1.0, 0.4, 0.0], "groups": [0, 0, 0]},
        1.553591,
        {"logps": [-0.645641, 0.088065, 0.328822]},
    ),
    ("rloo", {"reference": False}, SAMPLES | {"groups": [0, 0, 0]}, -0.25, {"logps": [-0.25, 0.25, 0.0]}),
    ("reinforce", {}, SAMPLES, -0.166667, {"logps": [-0.166667, 0.166667, 0.0]}),
    ("dapo", GIVEN, UP, -0.819224, {"logps": [[0.0, -0.197552, -0.280339]]}),
    ("dr_grpo", GIVEN | {"max_tokens": 4.0}, UP, -0.598418, {"logps": [[0.0, -0.148164, -0.210254]]}),
    ("gspo", GIVEN, DOWN, 0.508403, {"logps": [[0.169468] * 3]}),
    ("gspo", GIVEN, UP, -0.80032, {"logps": [[0.0] * 3]}),
    ("luspo", GIVEN, DOWN, 1.525209, {"logps": [[0.508403] * 3]}),
    ("cispo", GIVEN | {"cap": 1.2}, UP, 1.084860, {"logps": [[-0.32, -0.197552, -0.280339]]}),
    ("sapo", GIVEN, UP, -1.637294, {"logps": [[-0.349168, -0.194271, -0.280155]]}),
    ("vespo", GIVEN, UP, 1.124496, {"logps": [[-0.252696] * 3]}),
    ("vespo", GIVEN, DOWN, -0.777713, {"logps": [[0.174767] * 3]}),
    (
        "mdpo",
        {"step_size": 0.5},
        BY_TOKEN | {"kl": [[0.05, 0.1, 0.02]]},
        -0.724520,
        {"logps": [[-0.359962, -0.197552, -0.280339]]},
    ),
    (
        "mdpo",
        {"step_size": 0.5, "divergence": "k3"},
        BY_TOKEN,
        -0.776582,
        {"logps": [[-0.187175, -0.430791, -0.247825]]},
    ),
]
ROWS = [*LISTS, *TOKENS, *FORMULAS]

# What `.losses` are, for objectives whose value per item is the point.
WEIGHTS = [
    # token_rl_data.md, PF-PPO: .1 .4 .1 .1 .1 and 0 1 1 0 0, scaled to a mean of 1
    ("pf_ppo_weight", {"rule": "best_random"}, REWARDS, [0.625, 2.5, 0.625, 0.625, 0.625]),
    ("pf_ppo_weight", {"rule": "best_worst"}, REWARDS, [0.0, 2.5, 2.5, 0.0, 0.0]),
    ("pf_ppo_weight", {"rule": "best"}, REWARDS, [0.0, 5.0, 0.0, 0.0, 0.0]),
]
