"""Worked numbers of `prefuse.objectives.policy_gradient`."""

from __future__ import annotations

import math

from tests.objectives.numbers.shared import STEPPED, Row, one_pair, one_response

JUDGED_LIST = {
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

REWARDS = {"reward": [0.2, 1.5, -0.3, 0.9, 1.1], "groups": [0] * 5}

BY_TOKEN = one_response(**STEPPED, advantage=[0.8] * 3)

SAMPLES = {"logps": [-2.0, -3.0, -1.0], "reward": [1.0, 0.0, 0.5]}

ROWS: list[Row] = [
    # token_rl_data.md, CGPO
    (
        "crpg",
        {"average": "tokens"},
        JUDGED_LIST | {"lengths": [5, 8, 6]},
        -0.033607,
        {"logps": [-0.021283, 0.006162, 0.015121]},
    ),
    ("crpg", {}, JUDGED_LIST, -0.212842, {"logps": [-0.134791, 0.039025, 0.095766]}),
    (
        "crraft_list",
        {"kl_max": 5.0, "average": "response"},
        RANKED_BY_REWARD | {"lengths": [5, 8, 6]},
        0.768525,
        {"logps": [-0.768525 / 5, 0.0, 0.0]},
    ),
    ("crraft_list", {"kl_max": 5.0}, RANKED_BY_REWARD, 3.842624, {"logps": [-0.768525, 0.0, 0.0]}),
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
    # general.md, lipo: list-mle
    ("rloo", {"reference": False}, SAMPLES | {"groups": [0, 0, 0]}, -0.25, {"logps": [-0.25, 0.25, 0.0]}),
    ("reinforce", {}, SAMPLES, -0.166667, {"logps": [-0.166667, 0.166667, 0.0]}),
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

WEIGHTS = [
    # token_rl_data.md, PF-PPO: .1 .4 .1 .1 .1 and 0 1 1 0 0, scaled to a mean of 1
    ("pf_ppo_weight", {"rule": "best_random"}, REWARDS, [0.625, 2.5, 0.625, 0.625, 0.625]),
    ("pf_ppo_weight", {"rule": "best_worst"}, REWARDS, [0.0, 2.5, 2.5, 0.0, 0.0]),
    ("pf_ppo_weight", {"rule": "best"}, REWARDS, [0.0, 5.0, 0.0, 0.0, 0.0]),
]
