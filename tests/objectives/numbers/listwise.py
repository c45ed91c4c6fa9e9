"""Worked numbers of `prefuse.objectives.listwise`."""

from __future__ import annotations

import math

from tests.objectives.numbers.shared import Row, one_list

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

STEPS = {  # step means .3, -.1, .2 with weights 2, 1.6, 1.1: a score of 0.140426
    "token_logps": [[0.1, 0.5, -0.1, 0.6, -0.2, 0.2], [0.0] * 6],
    "ref_token_logps": [[0.0] * 6] * 2,
    "mask": [[True] * 6] * 2,
    "token_step_start": [[True, False, True, True, False, False]] * 2,
    "token_weight": [[2.0, 9.0, 1.6, 1.1, 9.0, 9.0]] * 2,
    "label": [1.0, 0.0],
    "groups": [0, 0],
}

RANKED = {"logps": [-2.0, -4.5, -10.0], "lengths": [2, 3, 5], "score": [1.0, 0.4, 0.0], "groups": [0, 0, 0]}

THREE = one_list([1.0, 0.2, -0.4])

ROWS: list[Row] = [
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
    # token_rl_data.md, the survey's table
    ("rrhf", {}, {"logps": [-5.0, -6.0], "lengths": [5, 8], "score": [1.0, 0.0], "groups": [0, 0]}, 5.25, {}),
    (
        "lire",
        {"variant": "original"},
        {"logps": [-5.0, -6.0, -5.5], "score": [1.0, 0.0, 0.5], "groups": [0, 0, 0]},
        -0.360007,
        {"logps": [-0.030703, 0.022082, 0.008621]},
    ),
    (
        "lire",
        {"temperature": 2.0},
        {"logps": [-5.0, -6.0, -5.5], "score": [1.0, 0.2, 0.6], "groups": [0, 0, 0]},
        -0.665981,
        {"logps": [-0.070015, 0.059244, 0.010771]},
    ),
    (
        "multi_dpo",
        {},
        one_list([1.0, 0.4, -0.5, 0.1], label=[1.0, 1.0, 0.0, 0.0]),
        0.649159,
        {"logps": [-0.023876] * 2 + [0.023876] * 2},
    ),
    ("multi_dpo", {"link": "ipo"}, one_list([1.0, 0.4, -0.5, 0.1], label=[1.0, 1.0, 0.0, 0.0]), 16.81, {}),
    (
        "d2o",
        {"alpha": 0.05},
        one_list([1.0, 0.4, -0.5, 0.1], label=[1.0, 1.0, 0.0, 0.0]),
        0.653947,
        {"logps": [-0.024001] * 2 + [0.012000] * 2},
    ),
    (
        "d2o",
        {"alpha": 0.2},
        one_list([1.0, 0.4, -0.5, 0.1], label=[1.0, 1.0, 0.0, 0.0]),
        0.639659,
        {"logps": [-0.023626] * 2 + [0.047253] * 2},
    ),
]
