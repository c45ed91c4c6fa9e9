"""Worked numbers of `prefuse.objectives.group_relative`."""

from __future__ import annotations

from tests.objectives.numbers.shared import F2_GIVEN, STEPPED, Row, one_response

UP, DOWN = one_response(**STEPPED, advantage=0.8), one_response(**STEPPED, advantage=-0.5)

GIVEN = {"estimator": "given"}

ENGINE = {"logps": [-1.0, -2.0], "old_logps": [-1.2, -1.9], "sampler_logps": [-1.5, -1.8], "advantage": 1.0}

FREE = {"divergence": "none", "estimator": "given"}

ROWS: list[Row] = [
    # libraries.md 1.6: Liger's GRPO with β 0.04: grpo, bnpo and dapo, dr_grpo
    ("grpo", {"estimator": "given"}, F2_GIVEN, 0.204779, {}),
    ("grpo", {"estimator": "given", "average": "tokens"}, F2_GIVEN, 0.095720, {}),
    ("grpo", {"estimator": "given", "average": "constant", "max_tokens": 5.0}, F2_GIVEN, 0.057432, {}),
    # general.md, lipo: list-mle
    ("dapo", GIVEN, UP, -0.819224, {"logps": [[0.0, -0.197552, -0.280339]]}),
    ("dr_grpo", GIVEN | {"max_tokens": 4.0}, UP, -0.598418, {"logps": [[0.0, -0.148164, -0.210254]]}),
    ("gspo", GIVEN, DOWN, 0.508403, {"logps": [[0.169468] * 3]}),
    ("gspo", GIVEN, UP, -0.80032, {"logps": [[0.0] * 3]}),
    ("luspo", GIVEN, DOWN, 1.525209, {"logps": [[0.508403] * 3]}),
    ("cispo", GIVEN | {"cap": 1.2}, UP, 1.084860, {"logps": [[-0.32, -0.197552, -0.280339]]}),
    ("sapo", GIVEN, UP, -1.637294, {"logps": [[-0.349168, -0.194271, -0.280155]]}),
    ("vespo", GIVEN, UP, 1.124496, {"logps": [[-0.252696] * 3]}),
    ("vespo", GIVEN, DOWN, -0.777713, {"logps": [[0.174767] * 3]}),
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
    # From the formula: log-ratios 0.3 and -0.3 count as 0.15 and -0.2, of which e^0.15 is clipped to 1.1.
    (
        "humanline_grpo",
        {"estimator": "given", "beta": 0.1, "clip": 0.1, "low": -0.2, "high": 0.15},
        one_response(logps=[-1.0, -2.0], ref_logps=[-1.3, -1.7], advantage=1.0),
        -0.954832,
        {"logps": [[0.012959, -0.017493]]},
    ),
    # the KL estimate weighed by π/π_old
    (
        "grpo",
        {"divergence": "k3_unbiased", "estimator": "given", "beta": 0.1},
        one_response(logps=[-1.0, -2.0], old_logps=[-1.2, -1.9], ref_logps=[-1.3, -1.7], advantage=1.0),
        -1.047670,
        {},
    ),
]
