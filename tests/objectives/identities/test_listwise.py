"""Relations that objectives of `prefuse.objectives.listwise` hold exactly, whatever the numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tests.objectives import pairs_and_points
from tests.objectives.identities.shared import LIST, PAIRS, ROLES, as_lists, list_gradients, list_losses, pair_losses
from tests.objectives.lists_and_tokens import GROUPS, MASK
from tests.objectives.lists_and_tokens import evaluate as evaluate_lists
from tests.objectives.lists_and_tokens import random_columns as random_lists

pytestmark = pytest.mark.evidence("identities")


@pytest.mark.parametrize(
    ("name", "parameters", "column"),
    [
        ("plackett_luce", {}, "label"),
        ("softmax_dpo", {}, "label"),
        ("lipo", {"loss": "logistic"}, "label"),
        ("lipo", {"loss": "list_mle"}, "label"),
        ("lipo", {"loss": "logistic", "variant": "rax"}, "label"),
    ],
)
def test_two_responses_give_dpo(name, parameters, column):
    found = list_losses(name, as_lists(**{column: np.array([1.0, 0.0])}), beta=0.2, **parameters)
    expected = pair_losses("dpo", beta=0.2)
    pooled = parameters.get("variant") == "rax"  # one mean over all pairs of the batch
    assert_allclose(found, np.full(5, expected.mean()) if pooled else expected, rtol=1e-12)


def test_two_responses_give_the_pair_objectives():
    certain = as_lists(score=np.array([60.0, 0.0]))
    assert_allclose(list_losses("info_nca", certain, beta=0.2), pair_losses("dpo", beta=0.2), rtol=1e-12)
    assert_allclose(list_losses("nca_list", certain, beta=0.2), pair_losses("nca", beta=0.2), rtol=1e-12)
    labelled = as_lists(label=np.array([1.0, 0.0]))
    assert_allclose(list_losses("lipo", labelled, loss="hinge", beta=0.2), pair_losses("hinge", beta=0.2), rtol=1e-12)
    epsilon = 1.0 / (1.0 + math.exp(3.0))
    smoothed = as_lists(score=np.array([3.0, 0.0]))
    expected = pair_losses("exo", beta=0.2, label_smoothing=epsilon)
    assert_allclose(list_losses("exo_list", smoothed, beta=0.2), expected, rtol=1e-10)


def test_brain_with_the_reference_as_proposal():
    columns = as_lists(score=np.array([40.0, 0.0]))
    columns["proposal_logps"] = columns["ref_logps"]
    assert_allclose(list_losses("brain", columns, gamma=1.0), pair_losses("dpo", beta=1.0), rtol=1e-12)


def test_lipo_weighs_a_pair_of_two_the_same_whoever_leads():
    weight = 1 - 1 / math.log2(3)
    found = list_losses("lipo", as_lists(label=np.array([1.0, 0.0])), beta=0.2, base=2.0)
    assert_allclose(found, weight * pair_losses("dpo", beta=0.2), rtol=1e-12)


def test_pro_without_temperature_and_with_one_token_is_plackett_luce():
    columns = as_lists(score=np.array([1.0, 0.0]), lengths=np.array([1, 1]))
    reference_free = as_lists(label=np.array([1.0, 0.0])) | {"ref_logps": np.zeros((5, 2))}
    del columns["ref_logps"]
    found = list_losses("pro", columns, alpha=0.0, temperature=False)
    assert_allclose(found, list_losses("plackett_luce", reference_free, beta=1.0), rtol=1e-12)


@pytest.mark.parametrize("loss", ["lambda", "logistic", "hinge"])
def test_tied_labels_leave_no_pairs(loss):
    tied = LIST | {"label": np.ones(len(GROUPS))}
    score = evaluate_lists("lipo", {"loss": loss}, tied)
    np.testing.assert_array_equal(score.losses, 0.0)
    np.testing.assert_array_equal(score.gradients["logps"], 0.0)


def test_lipo_list_mle_is_plackett_luce():
    assert_allclose(
        list_losses("lipo", LIST, loss="list_mle", beta=0.3), list_losses("plackett_luce", LIST, beta=0.3), rtol=1e-14
    )


def test_brain_ignores_constants_and_its_gradient_is_the_estimator():
    columns = random_lists("brain", {}, seed=43)
    base = evaluate_lists("brain", {}, columns)
    for column in ("score", "proposal_logps"):
        shifted = evaluate_lists("brain", {}, columns | {column: columns[column] + 3.0})
        assert_allclose(shifted.losses, base.losses, rtol=1e-12)
    for group in np.unique(GROUPS):
        assert abs(base.gradients["logps"][group == GROUPS].sum()) < 1e-15
    uniform = columns | {"score": np.zeros(len(GROUPS)), "logps": columns["ref_logps"]}
    assert_allclose(list_gradients("brain", uniform)["logps"], 0.0, atol=1e-16)


def test_plackett_luce_survives_what_no_exponential_does():
    far = LIST | {"logps": np.where(np.arange(len(GROUPS)) % 2, -1e6, 0.0)}
    score = evaluate_lists("plackett_luce", {"beta": 1.0}, far)
    assert np.all(np.isfinite(score.losses))
    near = LIST | {"logps": np.zeros(len(GROUPS)), "ref_logps": np.zeros(len(GROUPS))}
    sizes = np.array([4, 4, 1])
    expected = [math.lgamma(size + 1) for size in sizes]
    assert_allclose(list_losses("plackett_luce", near), expected, rtol=1e-14)  # all orders alike: log K!


def test_order_of_two_is_dpo_without_a_reference():
    free = pairs_and_points.evaluate(
        "dpo", {"beta": 1.0}, PAIRS | {f"ref_{role}_logps": np.zeros(5) for role in ROLES}
    ).losses
    two = as_lists(label=np.array([1.0, 0.0]), score=np.array([1.0, 0.0]))
    del two["ref_logps"]
    assert_allclose(list_losses("op_gfn", {n: two[n] for n in ("logps", "label")}), free, rtol=1e-12)
    assert_allclose(list_losses("op_gfn_pareto", {n: two[n] for n in ("logps", "score")}), free, rtol=1e-12, atol=1e-14)


def test_a_tree_of_one_step_is_lipo():
    columns = random_lists("tpo_tree", {}, seed=63)
    start = np.zeros(MASK.shape, bool)
    start[:, 0] = True
    h = np.where(MASK, columns["token_logps"] - columns["ref_token_logps"], 0.0).sum(1)
    one_step = columns | {"token_step_start": start, "token_weight": np.where(MASK, 2.0, np.nan)}
    for average, score in ((False, 2.0 * h), (True, h / MASK.sum(1))):
        lists = {"logps": score, "ref_logps": 0 * h, "label": columns["label"], "groups": columns["groups"]}
        expected = list_losses("lipo", lists, loss="lambda", beta=0.7, base=2.0)
        found = list_losses("tpo_tree", one_step, beta=0.7, base=2.0, average=average)
        assert_allclose(found, expected, rtol=1e-11)


def test_a_shared_step_of_equal_weight_leaves_no_margin():
    """TPO, after eq. 10: where two responses share a step, it adds nothing to their margin."""
    first = {"token_logps": [[0.3, -0.2, 0.5], [0.3, -0.2, -0.4]], "token_weight": [[2.0, 2.0, 1.5]] * 2}
    other = {"token_logps": [[-0.6, 0.1, 0.5], [-0.6, 0.1, -0.4]], "token_weight": [[1.0, 1.0, 1.5]] * 2}
    shared = {"ref_token_logps": np.zeros((2, 3)), "token_step_start": [[True, False, True]] * 2}
    shared |= {"mask": np.ones((2, 3), bool), "label": [1.0, 0.0], "groups": [0, 0]}
    both = [{name: np.array(value) for name, value in (given | shared).items()} for given in (first, other)]
    assert_allclose(list_losses("tpo_tree", both[0]), list_losses("tpo_tree", both[1]), rtol=1e-12)


def test_rrhf_of_two_is_a_hinge_and_a_likelihood():
    ranked = {name: value for name, value in as_lists(score=np.array([1.0, 0.0])).items() if name != "ref_logps"}
    ranked |= {"lengths": np.ones((5, 2), int)}
    hinge, whole = list_losses("rrhf", ranked, alpha=0.0), list_losses("rrhf", ranked, alpha=0.5)
    assert_allclose(hinge, pair_losses("slic", delta=0.0, alpha=0.0), rtol=1e-12, atol=1e-12)
    assert_allclose(whole - hinge, 0.5 * pair_losses("sft", nll="sum"), rtol=1e-10)
    assert list_losses("rrhf", {name: value[:, ::-1] for name, value in ranked.items()}, alpha=0.0) == pytest.approx(
        hinge
    )
