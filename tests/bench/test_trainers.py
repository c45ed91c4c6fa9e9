"""The ways of training frameworks that `make bench trainers` compares give the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from prefuse.bench import trainers
from prefuse.linear.operands import mean_row
from tests.devices import normal

SIZES = {"tokens": 24, "features": 8, "classes": 40, "dtype": "float32"}
PAIRS = {name: way.against for name, way in trainers.PATHS.items() if way.against is not None}


@pytest.mark.parametrize("name", PAIRS)
def test_prefuse_beside_the_framework(name):
    ours, theirs = trainers.step(name, **SIZES)(), trainers.step(PAIRS[name], **SIZES)()
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name, way in trainers.PATHS.items() if way.shifts])
def test_a_way_beside_cross_entropy(name):
    hidden, weight = normal(3, 5, 8, seed=1), normal(20, 8, seed=2)
    labels = torch.arange(15).view(3, 5).index_fill(1, torch.tensor([0]), -100)
    expected = -F.cross_entropy(
        F.linear(hidden, weight)[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
    )
    torch.testing.assert_close(trainers.PATHS[name].run(hidden, weight, labels).sum(), expected)


@pytest.mark.parametrize("name", PAIRS)
def test_prefuse_beside_the_framework_in_16_bits(name):
    sizes = SIZES | {"features": 16, "classes": 101, "dtype": "bfloat16"}
    for ours, theirs in zip(trainers.step(name, **sizes)(), trainers.step(PAIRS[name], **sizes)(), strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert (ours.float() - theirs.float()).norm() <= 0.02 * theirs.float().norm()


def test_every_framework_has_both_ways():
    own = {way.framework for way in trainers.PATHS.values() if way.against is None}
    assert own == {way.framework for way in trainers.PATHS.values() if way.against} and len(own) == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 3), (7, 1 << 17), (70_000, 9)])
def test_mean_of_rows(shape, dtype):
    matrix = normal(*shape, seed=4).to(dtype)
    found = mean_row(matrix)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, matrix.double().mean(0).float(), atol=1e-6, rtol=1e-5)
