"""Worked numbers of links, of library variants, and of entries of the survey's table that no library has.

Rows as in `worked_numbers`, in six decimals. Where a comment names libraries.md, the number is what the library's code
gave. The others were computed from the printed formula by mpmath with 50 digits, apart from this package.
"""

from __future__ import annotations

import numpy as np

from .family_numbers import column, point
from .fixtures import COMMON, F1, F2, F2_POINTS, SURVEY, T0, Columns, tokens
from .worked_lists_and_tokens import one_list, one_response, pad
from .worked_numbers import Row, wl

F2_GOLD = F2 | {"gold_logps": np.array([-3.81069, -3.81069]), "gold_lengths": np.array([2, 3])}
"""Two gold rows whose mean negative log-likelihood over five tokens is the 1.524276 of libraries.md 1.4."""

# The first token of F2's chosen rows, its prompt: classes 0 and 2 under the softmax of W X (libraries.md 0.1).
W = np.array([[1, 0, -1], [0, 1, 0.5], [-1, 0.5, 0], [0.5, -0.5, 1], [0, 0, 0.25]])
X = np.array([[(((7 * b + 5 * k) % 8) - 3.5) / 2 for k in range(3)] for b in range(2)])
LOGITS = X @ W.T
PROMPTS = LOGITS[[0, 1], [0, 2]] - np.log(np.exp(LOGITS).sum(1))
F2_PROMPTS = F2 | {"chosen_prompt_logps": PROMPTS, "chosen_prompt_tokens": np.ones(2)}

TURNS = tokens("chosen", [[0.4, -0.1, 0.2, 0.3]], [[0.0] * 4], turn=[[0, 1, 2, 3]])
TURNS |= tokens("rejected", [[-0.2, 0.5]], [[0.0] * 2], turn=[[0, 1]])
AFTER_A_PREFIX = tokens("chosen", [[0.5, 0.2, -0.1]], [[0.0] * 3]) | tokens("rejected", [[0.4, -0.6]], [[0.0] * 2])
AFTER_A_PREFIX |= {"chosen_start": np.array([1]), "rejected_start": np.array([1])}
VISITS = {"chosen_visits": np.array([10.0]), "rejected_visits": np.array([3.0])}
DAMAGED = {"chosen_damaged_logps": np.array([-20.0]), "ref_chosen_damaged_logps": np.array([-20.5])}


def divergence(link: str, name: str, beta: float, loss: float, **options: object) -> Row:
    return ("f_dpo", {"link": link, "divergence": name, "beta": beta} | options, F1, loss, {})


def unsafe(chosen: bool, rejected: bool) -> Columns:
    return column(T0, chosen_unsafe=chosen, rejected_unsafe=rejected)


PAIRS: list[Row] = [
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
    # libraries.md 1.4: hinge and IPO of CPO and TPO
    ("cpo", {"alpha": 0.0, "link": "hinge"}, F1, 0.875, {}),
    ("cpo", {"alpha": 0.0, "link": "ipo"}, F1, 21.412537, {}),
    ("cpo", {"alpha": 0.0, "link": "hinge"}, F2, 1.282022, {}),
    ("cpo", {"alpha": 0.0, "link": "ipo"}, F2, 28.135857, {}),
    ("tpo", {}, F2_GOLD, 2.231626, {}),
    ("tpo", {"beta": 0.1, "label_smoothing": 0.1}, F2_GOLD, 2.340369, {}),
    ("tpo", {"beta": 0.1, "link": "hinge"}, F2_GOLD, 2.806297, {}),
    ("tpo", {"beta": 0.1, "link": "ipo"}, F2_GOLD, 29.660128, {}),
    ("tpo_l", {"beta": 0.1, "gamma": 0.5, "alpha": 1.0}, F2_GOLD, 2.517309, {}),
    ("simpo", {"beta": 0.5, "gamma": 0.3, "link": "hinge"}, F1, 1.110417, {}),
    # libraries.md 1.7.1: cDPO
    ("cdpo", {}, SURVEY, 0.681260, {}),
    ("cdpo", {}, F1, 0.645177, {}),
    # general.md, overopt-metrics: averages are equal, the chosen log-ratio is 1
    ("average_hinge", {}, T0, 1.069315, {}),
    ("average_hinge", {"weight": 0.0}, T0, 1.0, wl(-1 / 8, 1 / 10)),
    # general.md, mcts-dpo, from a position on; with the length to the power 1
    (
        "mcts_dpo",
        {"suffix": True},
        AFTER_A_PREFIX | VISITS,
        0.674913,
        {"chosen_token_logps": [[0, -0.025174, -0.025174]]},
    ),
    ("mcts_dpo", {"link": "ipo", "length_power": 1.0}, T0, 23.280625, {}),
    # token_rl_data.md, the survey's table
    ("dmpo", {}, TURNS, 0.671128, {"chosen_token_logps": [[-0.048887, -0.034671, -0.021878, -0.010363]]}),
    ("dmpo", {}, TURNS, 0.671128, {"rejected_token_logps": [[0.048887, 0.023157]]}),
    ("safe_dpo", {"delta": 0.5}, unsafe(False, True), 0.883382, wl(-0.058662, 0.058662)),
    ("safe_dpo", {"delta": 0.5}, unsafe(True, False), 1.070055, wl(0.065701, -0.065701)),
    ("safe_dpo", {"delta": 0.5}, unsafe(True, True), 0.0, wl(0.0, 0.0)),
    ("safe_dpo", {"delta": 0.5, "both_unsafe": "kept"}, unsafe(True, True), 0.620957, wl(-0.046257, 0.046257)),
    ("c_dpo", {}, column(T0, chosen_score=1.0, rejected_score=0.2, chosen_cost=0.9, rejected_cost=0.0), 0.770957, {}),
    (
        "c_dpo",
        {"multiplier": 0.5},
        column(T0, chosen_score=1.0, rejected_score=0.2, chosen_cost=0.9, rejected_cost=0.0),
        0.620957,
        {},
    ),
    ("dpo_rc", {}, column(T0, chosen_score=1.0, rejected_score=0.2), 0.496766, wl(-0.037006, 0.037006)),
    ("dpo_rc", {}, column(T0, chosen_score=0.2, rejected_score=1.0), 0.0, wl(0.0, 0.0)),
    ("group_robust_dpo", {}, column(T0, group_weight=1.6), 0.993531, wl(-0.074011, 0.074011)),
    ("em_dpo", {}, column(T0, responsibility=0.35), 0.217335, wl(-0.016190, 0.016190)),
    (
        "multimodal_dpo",
        {"delta": 0.1},
        COMMON | DAMAGED,
        1.778369,
        wl(-0.133890, 0.040131) | {"chosen_damaged_logps": [0.046257]},
    ),
    ("ulma", {}, point(-5.0, -5.5, label=False, demonstration=True), 5.0, {"logps": [-1.0]}),
    ("ulma", {}, point(-5.0, -5.5, label=True, demonstration=False), 0.668460, {}),
    ("ulma", {}, point(-5.0, -5.5, label=False, demonstration=False), 0.718460, {"logps": [0.051250]}),
]

VARIANTS: list[tuple[str, str, dict[str, object], Columns, float]] = [
    # libraries.md 1.1.2 and 1.3: TRL 1.16
    ("dpo", "trl-1.16", {"beta": 0.1}, F1, 0.632677),
    ("ipo", "trl-1.16", {"beta": 0.1}, F1, 22.170139),
    ("ipo", "dpo-original", {"beta": 0.1}, F1, 14.125),
    ("ipo", "openrlhf", {"beta": 0.5}, F1, 0.125),
    ("robust", "trl-1.16", {}, F1, 0.632677),
    ("sppo", "trl-1.16", {}, F1, 38.8125),
    ("sppo", "trl-1.16", {"beta": 0.5}, F1, 0.8125),
    ("sppo_hard", "liger", {}, F2, 57.436989),
    ("bco_pair", "trl-1.16", {}, F2, 1.396733),
    # libraries.md 1.5: the four losses of BCO's running mean, by pairs
    ("bco_pair", "trl-0.24", {}, F2, 1.388768),
    ("bco", "trl-0.24", {}, F2_POINTS, 0.694384),
    # libraries.md 1.2 and 1.7.1: label smoothing where it still counts
    ("dpo", "trl-0.24", {"label_smoothing": 0.1}, F1, 0.645177),
    ("dpo", "openrlhf", {"label_smoothing": 0.1}, F1, 0.645177),
    ("cdpo", "halos", {}, F1, 0.657677),
    ("dpo_norm", "open-instruct", {}, F1, 0.212469),
    # libraries.md 1.4, 1.6 and 1.7.6: SimPO, CPO and ORPO as TRL, Liger and LLaMA-Factory have them
    ("simpo", "liger", {}, F2, 3.094434),
    ("simpo", "trl-1.16", {"alpha": 0.0}, F2, 0.993034),
    ("simpo", "llamafactory", {}, F1, 0.950716),
    ("simpo", "halos", {}, F1, 0.938858),
    ("cpo", "liger", {}, F2, 2.945695),
    ("cpo", "trl-1.16", {}, F1, 1.636407),
    ("orpo", "trl-1.16", {}, F2_PROMPTS, 2.627623),
    ("orpo", "liger", {}, F2, 2.189902),
    ("orpo", "llamafactory", {}, F1, 1.067893),
    ("tpo", "trl-1.16", {"beta": 0.1, "link": "hinge"}, F2_GOLD, 2.806297),
    ("tpo_l", "trl-1.16", {"beta": 0.1}, F2_GOLD, 2.517309),
    ("alphapo", "trl-1.16", {}, F2, 1.005976),
    # libraries.md 1.7.2, 1.7.6, 1.7.18: likelihood terms
    ("rpo", "trl-0.24", {}, F1, 1.632677),
    ("rpo", "openrlhf", {"alpha": 0.2}, F1, 0.836843),
    ("rpo", "llamafactory", {"alpha": 0.5}, F1, 1.143093),
    ("cal_dpo", "original", {}, F1, 19.663588),
    ("slic", "halos", {}, F1, 1.10),
    ("sft", "trl-1.16", {}, F1, 1.0),
    # libraries.md 1.1.3: one score, three conventions that agree on pairs
    ("f_dpo", "trl-1.16", {"divergence": "alpha", "coefficient": 0.0}, F1, 0.614387),
    ("f_dpo", "trl-1.10", {"divergence": "forward_kl"}, F1, 0.614387),
    ("f_dpo", "trl-0.24", {"divergence": "alpha", "alpha": 1.0}, F1, 0.614387),
]


def errors(sign: float) -> Columns:
    """d(w) = -0.02 and d(l) = 0.01."""
    found = {"chosen_error": 0.08, "chosen_ref_error": 0.1, "rejected_error": 0.11, "rejected_ref_error": 0.1}
    return {name: [value] for name, value in (found | {"sign": sign}).items()}


ENGINE = {"logps": [-1.0, -2.0], "old_logps": [-1.2, -1.9], "sampler_logps": [-1.5, -1.8], "advantage": 1.0}
FREE = {"divergence": "none", "estimator": "given"}
WINS = [0.5, 0.7, 0.6, 0.3, 0.5, 0.4, 0.4, 0.6, 0.5]

TWO_TOKENS = {"logps": [[-1.0, -2.0]], "ref_logps": [[-1.2, -1.5]], "mask": [[True, True]], "preference": [0.7]}

LISTS: list[Row] = [
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
    # general.md, copg; pairwise.md, online IPO in its batch form
    (
        "copg_list",
        {"beta": 0.5},
        one_list([1.0, -0.5, 0.2], score=[2.5, 1.0, 0.0]),
        3.3975,
        {"logps": [-1.425, -0.3, 1.725]},
    ),
    (
        "online_ipo_list",
        {},
        one_list([1.0, -0.5, 0.2], win_prob=WINS),
        0.126667,
        {"logps": [-0.466667, 0.533333, -0.066667]},
    ),
    # pairwise.md, Nash-MD, the last by the formula; libraries.md 1.5
    ("nash_md", {"credit": "own"}, TWO_TOKENS, 0.68, {"logps": [[-0.18, -0.25]]}),
    ("nash_md", {"credit": "whole"}, TWO_TOKENS, 0.69, {"logps": [[-0.23, -0.23]]}),
    ("nash_md", {}, TWO_TOKENS, 0.73, {"logps": [[-0.23, -0.25]]}),
    (
        "nash_md",
        {"variant": "trl-1.10"},
        {
            "logps": pad([[-0.423358, -4.201231, -2.472275], [-3.595217, -0.244511, -2.037348, -1.735858]], 4),
            "ref_logps": pad([[-1.993148, -0.575343, -2.139865], [-1.090285, -2.387491, -0.800731, -2.118148]], 4),
            "mask": np.arange(4) < np.array([[3], [4]]),
            "preference": [0.7, 0.3],
        },
        1.234795,
        {},
    ),
    # GSPO-token: s is the geometric mean of the ratios e^0.2 and e^-0.1
    (
        "gspo_token",
        {"clip": 0.2, "clip_high": 0.2},
        one_response(logps=[-1.0, -2.0], old_logps=[-1.2, -1.9], advantage=[1.0, -0.5]),
        -0.262818,
        {"logps": [[-0.525636, 0.262818]]},
    ),
    # ratios of an inference engine, e^0.3 and e^-0.1 by token: truncated at 1.2, masked above it, one for the response
    ("grpo", FREE | {"sampler": "token_truncate", "sampler_high": 1.2}, one_response(**ENGINE), -1.129365, {}),
    ("grpo", FREE | {"sampler": "token_mask", "sampler_high": 1.2}, one_response(**ENGINE), -0.409365, {}),
    ("grpo", FREE | {"sampler": "sequence_truncate"}, one_response(**ENGINE), -1.285427, {}),
    # the KL estimate weighed by π/π_old
    (
        "grpo",
        {"divergence": "k3_unbiased", "estimator": "given", "beta": 0.1},
        one_response(logps=[-1.0, -2.0], old_logps=[-1.2, -1.9], ref_logps=[-1.3, -1.7], advantage=1.0),
        -1.047670,
        {},
    ),
    # token_rl_data.md, SePPO, with the sign it names
    ("seppo", {"beta": 100.0, "anchor": "given"}, errors(sign=-1.0), 0.313262, {}),
    ("seppo", {"beta": 100.0, "anchor": "given"}, errors(sign=1.0), 0.048587, {}),
]
