"""Inputs no training run should produce, and some will: losses and gradients stay finite."""

from __future__ import annotations

import numpy as np
import pytest

from prefuse import objectives

from . import lists_and_tokens, pairs_and_points
from .pairs_and_points import VARIANTS, column_names, evaluate, random_columns, variant_id

LOG_RATIOS = np.array([1e4, -1e4, 0.0])


def extreme_columns():
    """All combinations of log-ratios ±1e4 and 0 on every role, with lengths 1 and 1e5."""
    grid = np.array(np.meshgrid(LOG_RATIOS, LOG_RATIOS, LOG_RATIOS)).reshape(3, -1)
    columns = random_columns(grid.shape[1], seed=2)
    for role, log_ratio in zip(("chosen_", "rejected_", "blind_"), grid, strict=True):
        columns[f"{role}logps"] = np.minimum(-1.0 + log_ratio, 0.0) - 1.0
        columns[f"ref_{role}logps"] = columns[f"{role}logps"] - log_ratio
        columns[f"{role}lengths"] = np.where(np.arange(grid.shape[1]) % 2, 1, 100_000)
    columns["logps"], columns["ref_logps"] = columns["chosen_logps"], columns["ref_chosen_logps"]
    return columns | extreme_family_columns(columns)


def extreme_family_columns(columns):
    """Further responses likewise: as far from the reference as the chosen one, in sums and in tokens."""
    chosen, ref_chosen = columns["chosen_logps"], columns["ref_chosen_logps"]
    found = {f"{role}_logps": chosen for role in pairs_and_points.ROLES}
    found |= {f"ref_{role}_logps": ref_chosen for role in pairs_and_points.ROLES}
    for role in pairs_and_points.TOKEN_ROLES:
        mask = columns[f"{role}_mask"]
        for ref in ("", "ref_"):
            total = columns[f"{ref}{role}_logps"] if role in ("chosen", "rejected") else found[f"{ref}{role}_logps"]
            found[f"{ref}{role}_token_logps"] = mask * (total / mask.sum(1))[:, None]
    return found


@pytest.mark.evidence("extremes")
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_finite_at_enormous_log_ratios(variant):
    name, parameters = variant
    score = evaluate(name, parameters, extreme_columns())
    assert np.all(np.isfinite(score.losses))
    assert np.isfinite(score.loss)
    for column, gradient in score.gradients.items():
        assert np.all(np.isfinite(gradient)), column


@pytest.mark.evidence("extremes")
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_finite_without_tokens(variant):
    """Responses of length zero: log-probabilities 0, averages 0."""
    name, parameters = variant
    columns = random_columns(3, seed=2)
    empty = lambda key: key.endswith(("logps", "lengths", "mask"))  # noqa: E731
    columns = {key: np.zeros_like(value) if empty(key) else value for key, value in columns.items()}
    score = evaluate(name, parameters, columns)
    assert np.all(np.isfinite(score.losses))
    for column, gradient in score.gradients.items():
        assert np.all(np.isfinite(gradient)), column


LONG = 100_000
BY_TOKEN = [
    (name, parameters)
    for name, parameters in [*VARIANTS, *lists_and_tokens.VARIANTS]
    if any(info.level.startswith("token") for info in objectives.get(name)(**parameters).columns.values())
]


def long_columns(objective, sign):
    """A response of one token and one of 1e5, packed; summed log-ratios, where there is a reference, of ±1e4."""
    rng = np.random.default_rng(12)
    shapes = {"(i, j)": 4, "group": 1, "response": 2, "pair": 2}
    base, columns = -rng.uniform(0.2, 1.0, 1 + LONG), {}
    for column, info in objective.columns.items():
        if column.endswith("mask"):
            columns[column.replace("mask", "cu_seqlens")] = np.array([0, 1, 1 + LONG])
        elif info.level.startswith("token"):
            stem = column.removeprefix("chosen_").removeprefix("rejected_").removeprefix("revised_")
            columns[column] = np.asarray(lists_and_tokens.draw(stem.removeprefix("damaged_"), (1 + LONG,), rng))
            if column.endswith("logps"):
                away = sign if "rejected" not in column else -sign
                columns[column] = base + 1e4 / LONG * away * (not column.startswith("ref_"))
        elif column == "groups":
            columns[column] = np.zeros(2, int)
        else:
            columns[column] = np.asarray(lists_and_tokens.draw(column, (shapes.get(info.level, 2),), rng))
    return columns


@pytest.mark.evidence("extremes")
@pytest.mark.parametrize("variant", BY_TOKEN, ids=variant_id)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_finite_with_one_token_and_with_a_hundred_thousand(variant, sign):
    name, parameters = variant
    objective = objectives.get(name)(**parameters)
    score = objective.value_and_grad(**long_columns(objective, sign))
    assert np.all(np.isfinite(score.losses))
    for column, gradient in score.gradients.items():
        assert np.all(np.isfinite(gradient)), column


@pytest.mark.parametrize("name", ["dpo", "bpo", "hinge", "simpo", "cpo", "dpo_norm", "bco_pair", "nca", "apo_zero"])
def test_an_impossible_rejected_response_costs_nothing_more(name):
    """Log-probability -inf (a banned token): the limit of the loss, and no gradient."""
    columns = random_columns(2, seed=6)
    parameters = {} if name == "bpo" else {"beta": 1.0}
    parameters |= {"delta": 0.0} if name == "bco_pair" else {}  # else the mean reward of the batch is -inf as well
    limit = evaluate(name, parameters, columns | {"rejected_logps": np.full(2, -1e6)})
    score = evaluate(name, parameters, columns | {"rejected_logps": np.full(2, -np.inf)})
    np.testing.assert_allclose(score.losses, limit.losses, rtol=1e-12, atol=1e-300)
    np.testing.assert_array_equal(score.gradients["rejected_logps"], 0.0)


@pytest.mark.parametrize("margin", [-89.0, -200.0, -1e4, 1e4])
def test_discopop_where_the_usual_formula_is_nan(margin):
    columns = {"chosen_logps": margin, "rejected_logps": 0.0, "ref_chosen_logps": 0.0, "ref_rejected_logps": 0.0}
    columns = {name: np.array([value]) for name, value in columns.items()}
    score = evaluate("discopop", {"beta": 1.0}, columns)
    np.testing.assert_allclose(score.losses, [max(-margin, 0.0)], rtol=1e-12)
    np.testing.assert_allclose(score.gradients["chosen_logps"], [-1.0 if margin < 0 else 0.0], atol=1e-12)


@pytest.mark.parametrize("divergence", ["forward_kl", "alpha", "jeffreys"])
def test_f_dpo_caps_its_exponent(divergence):
    columns = {"chosen_logps": -200.0, "rejected_logps": 0.0, "ref_chosen_logps": 0.0, "ref_rejected_logps": 0.0}
    columns = {name: np.array([value]) for name, value in columns.items()}
    parameters = {"divergence": divergence} | ({"alpha": 1.0} if divergence == "alpha" else {})
    score = evaluate("f_dpo", parameters, columns)
    np.testing.assert_allclose(score.losses, 0.1 * np.exp(80.0), rtol=1e-10)
    capped = -0.1 if divergence == "jeffreys" else 0.0  # the linear part of Jeffreys is not capped
    np.testing.assert_allclose(score.gradients["chosen_logps"], [capped], atol=1e-12)


@pytest.mark.parametrize(("average", "alpha"), [(-1e4, 0.25), (-1e4, 5.0)])
def test_alphapo_caps_its_exponent(average, alpha):
    columns = {"chosen_logps": average, "rejected_logps": -1.0, "chosen_lengths": 1, "rejected_lengths": 1}
    columns = {name: np.array([value]) for name, value in columns.items()}
    score = evaluate("alphapo", {"beta": 1.0, "alpha": alpha, "gamma": 0.0}, columns)
    np.testing.assert_allclose(score.losses, np.exp(80.0) / alpha, rtol=1e-10)
    assert score.gradients["chosen_logps"][0] == 0.0


def test_orpo_with_a_certain_response():
    columns = {"chosen_logps": 0.0, "rejected_logps": 0.0, "chosen_lengths": 3, "rejected_lengths": 3}
    columns = {name: np.array([value]) for name, value in columns.items()}
    score = evaluate("orpo", {"beta": 0.1}, columns)
    np.testing.assert_allclose(score.losses, 0.1 * np.log(2), rtol=1e-12)
    doubtful = columns | {"chosen_logps": np.array([-3.0])}
    score = evaluate("orpo", {"beta": 0.1}, doubtful)
    assert np.isfinite(score.loss)
    assert score.gradients["rejected_logps"][0] == 0.0  # capped


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("simpo", {"gamma": 1.0, "gamma_beta_ratio": 0.5}, "not both"),
        ("alphapo", {"gamma": 1.0, "gamma_beta_ratio": 0.5}, "not both"),
        ("f_dpo", {"divergence": "alpha", "alpha": 0.3, "coefficient": 0.7}, "not both"),
        ("f_dpo", {"divergence": "js", "coefficient": 0.7}, "alpha"),
        ("cal_dpo", {"variant": "trl-1.16"}, "variant"),
        ("rationale_dpo", {"variant": "trl-1.16"}, "variant"),
        ("wpo", {"variant": "liger"}, "variant"),
        ("nbpo", {"form": "original"}, "form"),
        ("ld_dpo", {"scope": "reference"}, "scope"),
        ("beta_dpo", {"level": "token"}, "level"),
        ("modpo", {"link": "ipo"}, "link"),
        ("daa", {"link": "savage"}, "link"),
        ("psi_po", {"link": "probit"}, "link"),
        ("xpo", {"link": "hinge"}, "link"),
        ("vpo", {"mode": "both"}, "mode"),
        ("ofs_dpo", {"module": "middle"}, "module"),
        ("f_dpo", {"divergence": "total_variation"}, "total_variation"),
        ("f_dpo", {"divergence": "js", "alpha": 0.5}, "alpha"),
        ("bpo", {"combine": "max"}, "combine"),
        ("cpo", {"nll": "tokens"}, "nll"),
        ("cpo", {"link": "exo"}, "link"),
        ("cpo", {"link": "hinge", "label_smoothing": 0.1}, "label_smoothing"),
        ("tpo", {"link": "ipo", "label_smoothing": 0.1}, "label_smoothing"),
        ("simpo", {"link": "ipo"}, "link"),
        ("simpo", {"link": "hinge", "label_smoothing": 0.1}, "label_smoothing"),
        ("f_dpo", {"link": "nca"}, "link"),
        ("f_dpo", {"link": "exo"}, "label_smoothing"),
        ("f_dpo", {"link": "hinge", "label_smoothing": 0.1}, "label_smoothing"),
        ("sppo", {"labels": "mixed"}, "labels"),
        ("mcts_dpo", {"link": "hinge"}, "link"),
    ],
)
def test_structural_options_are_checked(name, parameters, message):
    taken = {column: random_columns(2, seed=1)[column] for column in column_names(name, {})}
    with pytest.raises(ValueError, match=message):
        objectives.get(name)(**parameters)(**taken)
