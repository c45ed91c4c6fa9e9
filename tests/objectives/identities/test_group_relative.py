"""Relations that objectives of `prefuse.objectives.group_relative` hold exactly, whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.objectives.identities.shared import ROLES, list_gradients, list_losses
from tests.objectives.lists_and_tokens import GROUPS, MASK
from tests.objectives.lists_and_tokens import evaluate as evaluate_lists
from tests.objectives.lists_and_tokens import random_columns as random_lists

pytestmark = pytest.mark.evidence("identities")


def test_the_old_policy_takes_no_gradient():
    """Even where the caller gives the policy's own log-probabilities as the old ones."""
    columns = random_lists("grpo", {}, seed=49)
    found = list_gradients("grpo", columns)
    assert "old_logps" not in found or not np.nan_to_num(found["old_logps"]).any()


def test_gspo_of_one_token_is_grpo():
    columns = random_lists("gspo", {}, seed=52)
    columns["mask"] = columns["mask"] & (np.arange(MASK.shape[1]) == 0)
    clips = {"clip": 0.1, "clip_high": 0.2}
    assert_allclose(
        list_losses("gspo", columns, **clips), list_losses("grpo", columns, divergence="none", **clips), rtol=1e-13
    )
    assert_allclose(list_losses("luspo", columns, **clips), list_losses("gspo", columns, **clips), rtol=1e-13)


def test_members_of_the_family_are_grpo_with_options():
    columns = random_lists("dapo", {}, seed=53)
    options = {"clip": 0.2, "clip_high": 0.28, "divergence": "none", "average": "tokens"}
    assert_allclose(list_losses("dapo", columns), list_losses("grpo", columns, **options), rtol=1e-14)
    options = {"estimator": "mean", "divergence": "none", "average": "constant", "max_tokens": 9.0}
    assert_allclose(
        list_losses("dr_grpo", columns, max_tokens=9.0), list_losses("grpo", columns, **options), rtol=1e-14
    )


def test_humanline_grpo_without_limits_is_grpo_whose_old_policy_is_the_reference():
    columns = random_lists("humanline_grpo", {}, seed=55)
    old = columns | {"old_logps": columns["ref_logps"]}
    options = {"beta": 0.1, "clip": 0.3}
    found = list_losses("humanline_grpo", columns, low=-50.0, high=50.0, **options)
    assert_allclose(found, list_losses("grpo", old, average="tokens", **options), rtol=1e-13)


def test_a_constant_added_to_a_prompt_changes_nothing():
    by_prompt = np.unique(GROUPS, return_inverse=True)[1] * 1.5
    for name in ("grpo", "rloo"):
        columns = random_lists(name, {}, seed=54)
        shifted = columns | {"reward": columns["reward"] + by_prompt}
        assert_allclose(list_losses(name, shifted), list_losses(name, columns), rtol=1e-10, atol=1e-13)
    columns = random_lists("p3o", {}, seed=54)
    shifted = columns | {f"{role}_reward": columns[f"{role}_reward"] + 2.0 for role in ROLES}
    for clipping in ("joint", "separate"):
        found = list_losses("p3o", shifted, clipping=clipping)
        assert_allclose(found, list_losses("p3o", columns, clipping=clipping), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", ["cispo", "sapo", "vespo"])
def test_soft_gates_are_open_at_the_old_policy(name):
    columns = random_lists(name, {"estimator": "given"}, seed=61)
    columns["old_logps"] = columns["logps"]
    per_token = np.broadcast_to(columns["advantage"][:, None], MASK.shape)[MASK]
    share = MASK.sum() if name != "sapo" else (len(GROUPS) * MASK.sum(1, keepdims=True) * MASK)[MASK]
    found = list_gradients(name, columns, estimator="given")["logps"][MASK]
    assert_allclose(found, -per_token / share, rtol=1e-12)


def test_gspo_by_token_with_one_advantage_is_gspo():
    columns = random_lists("gspo", {"estimator": "given"}, seed=61)
    clips = {"clip": 0.05, "clip_high": 0.1}
    spread = columns | {"advantage": np.where(MASK, columns["advantage"][:, None], np.nan)}
    by_token, whole = (
        list_losses("gspo_token", spread, **clips),
        list_losses("gspo", columns, estimator="given", **clips),
    )
    assert_allclose(by_token, whole, rtol=1e-13)
    ours = list_gradients("gspo_token", spread, **clips)["logps"]
    assert_allclose(ours, list_gradients("gspo", columns, estimator="given", **clips)["logps"], rtol=1e-12, atol=1e-16)


SAMPLERS = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")

CORRECTED = [(name, sampler) for name in ("cispo", "sapo", "dapo", "dr_grpo") for sampler in SAMPLERS]
CORRECTED += [("vespo", sampler) for sampler in SAMPLERS[:2]]


@pytest.mark.parametrize(("name", "sampler"), CORRECTED)
def test_an_engine_that_agrees_changes_nothing(name, sampler):
    columns = random_lists(name, {"sampler": sampler}, seed=62)
    columns |= {"sampler_logps": columns["old_logps"]}
    plain = {column: value for column, value in columns.items() if column != "sampler_logps"}
    assert_allclose(list_losses(name, columns, sampler=sampler), list_losses(name, plain), rtol=1e-14)


def test_a_response_out_of_bounds_is_masked():
    columns = random_lists("grpo", {"divergence": "none", "sampler": "sequence_mask"}, seed=63)
    columns |= {"sampler_logps": columns["old_logps"] - np.where(np.arange(len(MASK)) == 2, 5.0, 0.0)[:, None]}
    score = evaluate_lists("grpo", {"divergence": "none", "sampler": "sequence_mask"}, columns)
    assert score.losses[2] == 0.0 and not score.gradients["logps"][2].any()
    assert score.losses[0] != 0.0


def test_far_responses_of_negative_advantage_are_dropped():
    options = {"divergence": "none", "estimator": "given"}
    columns = random_lists("grpo", options, seed=64)
    near, far = (list_losses("grpo", columns, **options, off_policy=bound) for bound in (1e9, -1e9))
    assert_allclose(near, list_losses("grpo", columns, **options), rtol=0)
    assert_allclose(far, np.where(columns["advantage"] >= 0, near, 0.0), rtol=0)
