"""Each objective of pairs and of single responses against worked numbers, plain PyTorch and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from prefuse import objectives

from . import detached, numbers
from .numbers.batches import F1
from .pairs_and_points import VARIANTS, autograd, column_names, evaluate, random_columns, reference_of, variant_id

NAMES = {name for name, _ in VARIANTS}
ROWS = [row for row in numbers.ROWS if row[0] in NAMES]
DETACHED = [(name, options) for name, options in VARIANTS if detached.detaches(objectives.get(name)(**options))]

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


@pytest.mark.evidence("numbers")
@pytest.mark.parametrize(("name", "parameters", "columns", "loss", "gradients"), ROWS, ids=lambda value: "")
def test_worked_number(name, parameters, columns, loss, gradients):
    score = evaluate(name, parameters, columns)
    assert_allclose(score.loss, loss, rtol=3e-7, atol=1e-6)  # printed to six decimals, some computed in float32
    for column, expected in gradients.items():
        actual = score.gradients.get(column, np.zeros(np.shape(expected)))
        assert_allclose(actual, expected, rtol=3e-7, atol=1e-6, err_msg=column)


@pytest.mark.evidence("pytorch")
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
@pytest.mark.parametrize("size", [1, 17])
def test_equals_pytorch(variant, size):
    name, parameters = variant
    columns = random_columns(size, seed=size)
    score = evaluate(name, parameters, columns)
    losses, gradients, rewards = autograd(name, parameters, columns)
    assert_allclose(np.broadcast_to(score.losses, losses.shape), losses, rtol=1e-10, atol=1e-12)
    assert_allclose(score.loss, losses.mean(), rtol=1e-10, atol=1e-12)
    for column, expected in gradients.items():
        actual = score.gradients.get(column, np.zeros_like(expected))
        assert_allclose(actual, expected, rtol=1e-9, atol=1e-12, err_msg=column)
    check_rewards(score.rewards, rewards)


def check_rewards(actual, expected):
    if isinstance(expected, torch.Tensor):
        assert_allclose(actual, expected.detach().numpy(), rtol=1e-12, atol=1e-14)
    elif expected is not None:
        assert set(actual) == set(expected)
        for role, reward in expected.items():
            assert_allclose(actual[role], reward.detach().numpy(), rtol=1e-12, atol=1e-14, err_msg=role)


@pytest.mark.evidence("slopes")
@pytest.mark.parametrize("variant", DETACHED, ids=variant_id)
def test_gradients_are_finite_differences_with_constants_held(variant):
    name, parameters = variant
    columns = {column: random_columns(5, seed=3)[column] for column in column_names(name, parameters)}
    gradients = evaluate(name, parameters, columns).gradients
    formula, hyper = reference_of(name, parameters)
    for column, gradient in gradients.items():
        numeric = detached.slopes(lambda tensors: formula(**tensors, **hyper)[0].mean(), columns, column)
        assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-7, err_msg=column)


@pytest.mark.evidence("slopes")
@pytest.mark.parametrize("variant", [v for v in VARIANTS if v not in DETACHED], ids=variant_id)
def test_gradients_are_finite_differences(variant):
    name, parameters = variant
    columns = random_columns(5, seed=3)
    gradients = evaluate(name, parameters, columns).gradients
    step, compared = 1e-5, 0
    for column in column_names(name, parameters):
        if columns[column].dtype.kind != "f" or column not in gradients:
            continue
        numeric = np.empty(columns[column].shape)
        for k in np.ndindex(numeric.shape):
            one = np.zeros(numeric.shape)
            one[k] = step
            shifted = [columns | {column: columns[column] + sign * one} for sign in (1, -1)]
            up, down = (evaluate(name, parameters, c).loss for c in shifted)
            numeric[k] = (up - down) / (2 * step)
        assert_allclose(gradients[column], numeric, rtol=1e-5, atol=1e-7, err_msg=column)
        compared += 1
    assert compared


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_torch_tensors_give_the_same(variant):
    name, parameters = variant
    columns = {column: random_columns(4, seed=9)[column] for column in column_names(name, parameters)}
    tensors = {column: torch.tensor(value) for column, value in columns.items()}
    policy = [column for column in tensors if column.endswith("logps") and "ref_" not in column]
    for column in policy:
        tensors[column].requires_grad_()
    objective = objectives.get(name)(**parameters)
    score, expected = objective(**tensors), objective(**columns)
    (2.0 * score.loss).backward()
    assert_allclose(score.losses.detach().numpy(), expected.losses, rtol=1e-14)
    for column in policy:
        gradient = expected.gradients.get(column)
        if gradient is not None and tensors[column].grad is not None:
            assert_allclose(tensors[column].grad.numpy(), 2.0 * gradient, rtol=1e-13, err_msg=column)


@pytest.mark.parametrize("name", AT_THE_REFERENCE)
def test_value_where_the_policy_is_the_reference(name):
    columns = random_columns(6, seed=8)
    columns |= {column.removeprefix("ref_"): value for column, value in columns.items() if column.startswith("ref_")}
    parameters = {} if name in ("hinge", "apo_zero", "apo_down") else {"beta": 0.1}
    score = evaluate(name, parameters, columns)
    assert_allclose(np.broadcast_to(score.losses, (6,)), AT_THE_REFERENCE[name], atol=1e-6)
    if name == "dpo":
        assert np.all(score.losses == np.log(2.0))  # exactly


def test_compositions_reproduce_trl_and_liger():
    """libraries.md 1.1.2, 1.6 and 1.7.2: DPO + SFT (RPO), MPO, Liger's NLL, OpenRLHF's per-response NLL."""
    dpo, bco_pair, sft = objectives.dpo, objectives.bco_pair, objectives.sft
    cases = [
        (dpo(beta=0.1) + sft, 1.632677, [-0.165986, -0.166608]),
        (dpo(beta=0.5) + sft, 1.430474, None),
        (0.8 * dpo(beta=0.1) + 0.2 * bco_pair(beta=0.1) + sft, 1.771228, [-0.166297, -0.166608]),
        (0.8 * dpo(beta=0.5) + 0.2 * bco_pair(beta=0.5) + sft, 1.567232, None),
        (dpo(beta=0.1) + 0.2 * sft(nll="response_mean"), 0.836843, None),
    ]
    columns = {name: value for name, value in F1.items() if name != "rejected_lengths"}
    for objective, loss, gradient in cases:
        score = objective(**columns)
        assert_allclose(score.loss, loss, atol=1e-6)
        if gradient is not None:
            assert_allclose(score.gradients["chosen_logps"], gradient, atol=1e-6)
