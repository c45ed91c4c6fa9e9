"""Each objective of lists and tokens against plain PyTorch, against finite differences, and on extreme inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from prefuse import objectives

from . import detached, numbers
from .lists_and_tokens import VARIANTS, autograd, evaluate, random_columns, reference_of
from .pairs_and_points import variant_id

NAMES = {name for name, _ in VARIANTS}
ROWS = [row for row in numbers.ROWS if row[0] in NAMES]
DETACHED = [(name, options) for name, options in VARIANTS if detached.detaches(objectives.get(name)(**options))]


@pytest.mark.evidence("pytorch")
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
@pytest.mark.parametrize("seed", [1, 2])
def test_equals_pytorch(variant, seed):
    name, parameters = variant
    columns = random_columns(name, parameters, seed)
    score = evaluate(name, parameters, columns)
    losses, gradients = autograd(name, parameters, columns)
    assert_allclose(score.losses, losses, rtol=1e-9, atol=1e-12)
    assert_allclose(score.loss, losses.mean(), rtol=1e-9, atol=1e-12)
    for column, expected in gradients.items():
        actual = score.gradients.get(column, np.zeros_like(columns[column]))
        expected = np.zeros_like(actual) if expected is None else expected
        assert_allclose(actual, expected, rtol=1e-8, atol=1e-12, err_msg=column)


@pytest.mark.evidence("slopes")
@pytest.mark.parametrize("variant", [v for v in VARIANTS if v not in DETACHED], ids=variant_id)
def test_gradients_are_finite_differences(variant):
    """Where no gradient passes by design, none may come out; elsewhere it is the slope."""
    name, parameters = variant
    columns = random_columns(name, parameters, seed=3)
    _, expected = autograd(name, parameters, columns)
    gradients, compared = evaluate(name, parameters, columns).gradients, 0
    for column, reference in expected.items():
        if reference is None:
            continue
        numeric = slopes(name, parameters, columns, column)
        assert_allclose(gradients[column].flatten(), numeric, rtol=1e-5, atol=1e-7, err_msg=column)
        compared += 1
    assert compared


@pytest.mark.evidence("slopes")
@pytest.mark.parametrize("variant", DETACHED, ids=variant_id)
def test_gradients_are_finite_differences_with_constants_held(variant):
    name, parameters = variant
    columns = random_columns(name, parameters, seed=3)
    gradients = evaluate(name, parameters, columns).gradients
    for column in gradients:
        numeric = detached.slopes(lambda c: reference_of(name)(**c, **parameters).mean(), columns, column)
        assert_allclose(gradients[column], numeric, rtol=1e-5, atol=1e-7, err_msg=column)


def slopes(name, parameters, columns, column, step=1e-6):
    values = columns[column]
    found = np.zeros(values.size)
    for k in np.flatnonzero(np.isfinite(values)):
        shifted = [values.copy(), values.copy()]
        shifted[0].flat[k] += step
        shifted[1].flat[k] -= step
        up, down = (evaluate(name, parameters, columns | {column: value}).loss for value in shifted)
        found[k] = (up - down) / (2 * step)
    return found


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_torch_tensors_give_the_same(variant):
    name, parameters = variant
    columns = random_columns(name, parameters, seed=4)
    expected = evaluate(name, parameters, columns)
    tensors = {c: torch.tensor(v, requires_grad=v.dtype.kind == "f") for c, v in columns.items()}
    score = objectives.get(name)(**parameters)(**tensors)
    assert_array_equal(score.losses.detach().numpy(), expected.losses)
    score.loss.backward()
    for column, gradient in expected.gradients.items():
        mine = tensors[column].grad
        assert_allclose(np.zeros_like(gradient) if mine is None else mine.numpy(), gradient, rtol=1e-13, atol=0.0)


def extreme(columns, seed):
    """Log-probabilities and what is like them scattered over ±1e4, lengths of 1 and 1e5."""
    rng = np.random.default_rng(seed)
    far = {}
    for column, values in columns.items():
        if column.endswith("logps") and values.dtype.kind == "f":
            far[column] = np.where(np.isfinite(values), rng.choice([0.0, -1.0, -1e4], values.shape), np.nan)
        elif column.endswith("lengths"):
            far[column] = rng.choice([1, 100_000], values.shape)
    return columns | far


@pytest.mark.evidence("extremes")
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_finite_at_enormous_log_ratios(variant, seed):
    name, parameters = variant
    check_finite(evaluate(name, parameters, extreme(random_columns(name, parameters, 5), seed)), parameters)


@pytest.mark.evidence("extremes")
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_finite_without_tokens(variant):
    """A batch in which some responses have no tokens at all, and one in which none has."""
    name, parameters = variant
    columns = random_columns(name, parameters, seed=6)
    masks = [column for column in columns if column.endswith("mask")]
    for kept in (slice(2), slice(None)):
        emptied = {mask: columns[mask].copy() for mask in masks}
        for mask in emptied.values():
            mask[kept] = False
        if not masks:
            emptied = {c: 0 * v for c, v in columns.items() if c.endswith("lengths")}
        check_finite(evaluate(name, parameters, columns | emptied), parameters)


def check_finite(score, parameters):
    assert np.all(np.isfinite(score.losses))
    for column, gradient in score.gradients.items():
        assert np.all(np.isfinite(gradient)), (column, parameters)


@pytest.mark.parametrize(("name", "parameters"), VARIANTS, ids=map(variant_id, VARIANTS))
def test_formulas_can_be_written(name, parameters):
    objective = objectives.get(name)(**parameters)
    assert objective.latex()
    assert objective.name in repr(objective)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("lipo", {"loss": "ndcg"}, "ndcg"),
        ("lipo", {"variant": "tf-ranking"}, "tf-ranking"),
        ("multi_dpo", {"link": "hinge"}, "link"),
        ("grpo", {"sampler": "tis"}, "sampler must be"),
        ("vespo", {"sampler": "sequence_mask"}, "sampler must be"),
        ("seppo", {"anchor": "both"}, "anchor"),
        ("op_gfn_pareto", {"scores": " "}, "scores"),
        ("reinforce", {"baseline": "critic"}, "critic"),
        ("reinforce", {"average": "tokens"}, "tokens"),
        ("grpo", {"estimator": "z"}, "estimator must be"),
        ("grpo", {"divergence": "kl"}, "divergence must be"),
        ("grpo", {"average": "mean"}, "average must be"),
        ("grpo", {"average": "constant"}, "max_tokens"),
        ("dr_po", {"variant": "code"}, "code"),
        ("mdpo", {"divergence": "k2"}, "k2"),
        ("pf_ppo_weight", {"rule": "worst"}, "worst"),
        ("p3o", {"clipping": "both"}, "both"),
        ("oreo", {"level": "turn"}, "turn"),
        ("oreo", {"divergence": "js"}, "js"),
        ("tis_dpo", {"weights": "none"}, "none"),
    ],
)
def test_structural_options_are_checked(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        _ = objectives.get(name)(**parameters).columns


@pytest.mark.parametrize("name", sorted({name for name, _ in VARIANTS}))
def test_numbers_out_of_range_are_refused(name):
    objective = objectives.get(name)
    for parameter, bounds in objective._definition.bounds.items():
        with pytest.raises(ValueError, match=parameter):
            objective(**{parameter: 1.0 if bounds._contains(-1.0) else -1.0})
        assert bounds.interval


def as_arrays(columns):
    """Worked numbers are written as lists; floats become float64, masks and groups stay what they are."""
    return {name: np.asarray(value) for name, value in columns.items()}


@pytest.mark.evidence("numbers")
@pytest.mark.parametrize(("name", "parameters", "columns", "loss", "gradients"), ROWS, ids=lambda value: "")
def test_worked_number(name, parameters, columns, loss, gradients):
    given = as_arrays(columns)
    if name == "gpm" or "groups" not in objectives.get(name)(**parameters).columns:
        given.pop("groups", None)
    score = evaluate(name, parameters, given)
    assert_allclose(score.loss, loss, rtol=3e-7, atol=1e-6)
    for column, expected in gradients.items():
        assert_allclose(score.gradients[column], expected, rtol=3e-7, atol=1e-6, err_msg=column)


@pytest.mark.evidence("numbers")
@pytest.mark.parametrize(("name", "parameters", "columns", "expected"), numbers.WEIGHTS, ids=lambda value: "")
def test_worked_weights(name, parameters, columns, expected):
    assert_allclose(evaluate(name, parameters, as_arrays(columns)).losses, expected, rtol=1e-12)
