"""What libraries and authors' code mean by an objective's name, by the name of the library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from prefuse import objectives
from prefuse.language import LanguageError, pair_objective

from .numbers import VARIANTS
from .numbers.batches import F1

DECLARED = [(name, variant) for name in objectives.names() for variant in objectives.get(name).variants]


@pytest.mark.evidence("numbers")
@pytest.mark.parametrize(("name", "as_in", "parameters", "columns", "loss"), VARIANTS)
def test_worked_number(name, as_in, parameters, columns, loss):
    objective = objectives.get(name)(variant=as_in, **parameters)
    taken = {column: columns[column] for column in objective.columns}
    assert_allclose(objective(**taken).loss, loss, rtol=3e-7, atol=1e-6)


@pytest.mark.parametrize(("name", "as_in"), DECLARED)
def test_a_variant_is_its_hyper_parameters(name, as_in):
    objective = objectives.get(name)
    settings = objective.variants[as_in]
    assert objective(variant=as_in).parameters == objective(**settings).parameters
    assert objective(variant=as_in).columns
    assert objective(variant="paper").parameters == objective.parameters


def test_numbers_are_defaults_and_words_are_fixed():
    bound = objectives.simpo(variant="liger", gamma=0.3)
    assert (bound.parameters["beta"], bound.parameters["gamma"], bound.parameters["alpha"]) == (0.1, 0.3, 1.0)
    assert objectives.simpo(gamma=0.3)(variant="liger").parameters == bound.parameters
    assert objectives.simpo(variant="liger")(gamma=0.3).parameters == bound.parameters
    for refused in (
        lambda: objectives.simpo(variant="liger", gamma_beta_ratio=0.3),
        lambda: objectives.simpo(gamma_beta_ratio=0.3)(variant="liger"),
        lambda: objectives.simpo(variant="liger")(gamma_beta_ratio=0.3),
    ):
        with pytest.raises(ValueError, match=r"gamma_beta_ratio: simpo's variant 'liger' has gamma_beta_ratio=None"):
            refused()
    with pytest.raises(ValueError, match=r"label_smoothing: dpo's variant 'trl-1.16'"):
        objectives.dpo(variant="trl-1.16", label_smoothing=np.full(2, 0.1))
    assert objectives.wpo(variant="trl-1.16", limited=False).parameters["limited"] is False


def test_one_variant_follows_another():
    liger = objectives.simpo(variant="liger", beta=0.7)
    assert liger(variant="halos").parameters == objectives.simpo(variant="halos", beta=0.7).parameters
    assert liger(variant="paper").parameters == objectives.simpo(beta=0.7).parameters


def test_names_are_checked():
    with pytest.raises(ValueError, match=r"variant: ipo has 'paper', 'trl-1.16', .*; got 'trl'"):
        objectives.ipo(variant="trl")
    with pytest.raises(ValueError, match="variant: dpo_d has none, as all agree; got 'original'"):
        objectives.dpo_d(variant="original")


def test_a_call_takes_columns_and_a_variant():
    averaged = objectives.ipo(**F1, variant="trl-1.16", beta=0.1)
    assert_allclose(averaged.loss, 22.170139, rtol=1e-6)
    columns = {name: torch.tensor(value) for name, value in F1.items() if "lengths" not in name}
    compiled = torch.compile(lambda: objectives.ipo(**columns, variant="dpo-original").loss, backend="eager")
    assert_allclose(float(compiled()), 14.125, rtol=1e-6)


def test_declarations_are_checked():
    with pytest.raises(LanguageError, match="variant 'other' sets gamma, which it does not take"):
        pair_objective(variants={"other": {"gamma": 1.0}})(lambda pair, *, beta=0.1: pair.chosen.logp)
    with pytest.raises(TypeError, match="beta: expected a number"):
        pair_objective(variants={"other": {"beta": "large"}})(lambda pair, *, beta=0.1: pair.chosen.logp)
    with pytest.raises(LanguageError, match="'variant' already says"):
        _ = pair_objective(lambda pair: pair["variant"]).columns
