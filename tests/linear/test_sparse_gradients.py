"""What lists and columns have in common: where next to nothing is left out, gradients are the dense ones."""

from __future__ import annotations

import pytest
import torch

from prefuse.linear import columns
from tests.devices import integers, normal, uniform
from tests.linear.gathering import gathering_columns
from tests.linear.oracle import problem
from tests.linear.test_sparse import gradients, leaves

NEXT_TO_NOTHING = 2.0**-40
F64 = torch.float64


@pytest.fixture(params=["lists", pytest.param("columns", marks=pytest.mark.needs("compiler"))])
def way(request, monkeypatch):
    """How sparse gradients are made: on the CPU, or as on a GPU, here in several strips and slices."""
    if request.param == "lists":
        yield request.param
        return
    monkeypatch.setattr(columns, "STRIP_ROWS", 8)
    monkeypatch.setattr(columns, "ALIGNED", 1)
    monkeypatch.setattr(columns, "SLICE_BYTES", 100)
    with gathering_columns():
        yield request.param


def agrees(wrt, given, names=("logp", "lse"), **options):
    """Gradients are the dense ones, statistics the same to the bit; returns what was made."""
    upstream = [normal(37, seed=10 + i, dtype=F64) for i in range(len(names))]
    dense, plain = gradients(given, wrt, upstream, names, **options)
    found, made = gradients(given, wrt, upstream, names, sparse=NEXT_TO_NOTHING, **options)
    assert all(torch.equal(plain[name], made[name]) for name in made)
    for one, other in zip(found, dense, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
    return made


@pytest.mark.parametrize("trained", [("hidden",), ("weight",), ("bias",), ("hidden", "weight", "bias")])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7, "scale": 1.3},
        {"temperature": 0.5 + uniform(37, seed=20, dtype=F64), "scale": 0.8},
        {"mask": integers(2, 37, seed=21).bool()},
        {"workspace_bytes": 4000},
    ],
    ids=["plain", "temperature", "temperatures", "mask", "tiles"],
)
def test_next_to_nothing_left_out(way, trained, options):
    given = problem()
    made = agrees(leaves(given, *trained), given, bias=given["bias"], **options)
    assert made.plan.name == way and made.plan.gemms == 1


@pytest.mark.parametrize("trained", [("hidden",), ("weight",), ("bias",), ("hidden", "weight", "bias")])
def test_a_soft_cap(trained):
    given = problem()
    temperature = 0.5 + uniform(37, seed=20, dtype=F64)
    agrees(leaves(given, *trained), given, bias=given["bias"], temperature=temperature, softcap=3.0)


def test_through_lse_alone(way):
    given = problem()
    agrees(leaves(given, "hidden", "weight"), given, ("lse",))


def test_an_adapter_has_its_gradient_from_the_same(way):
    given = problem()
    first, second = normal(3, 8, seed=30, dtype=F64), normal(53, 3, seed=31, dtype=F64)
    wrt = [*leaves(given, "hidden"), first.requires_grad_(), second.requires_grad_()]
    agrees(wrt, given, ("logp",), lora=(first, second, 0.5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_dtypes_are_rounded_once(way, dtype, monkeypatch):
    monkeypatch.setattr(columns, "SLICE_BYTES", 40_000)  # several slices too, but not one for each class
    given = problem(tokens=60, features=77, classes=400, dtype=F64)
    given["hidden"] *= 0.2
    narrow = {name: value.to(dtype) if value.is_floating_point() else value for name, value in given.items()}
    wrt = leaves(narrow, "hidden", "weight", "bias")
    upstream = [normal(60, seed=11)]
    found, _ = gradients(narrow, wrt, upstream, ("logp",), bias=narrow["bias"], sparse=2.0**-30)
    dense, _ = gradients(narrow, wrt, upstream, ("logp",), bias=narrow["bias"])
    for one, other in zip(found, dense, strict=True):
        assert one.dtype == dtype
        assert (one - other).norm() < {torch.float32: 1e-6}.get(dtype, 8e-3) * other.norm()
