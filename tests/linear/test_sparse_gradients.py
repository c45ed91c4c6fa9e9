"""What lists and columns have in common: where next to nothing is left out, gradients are the dense ones."""

from __future__ import annotations

import math

import pytest
import torch

from prefuse.linear import columns
from prefuse.linear.gemm import sum_dtype
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
    monkeypatch.setattr(columns, "LONG_STRIP", 8)
    monkeypatch.setattr(columns, "ALIGNED", 1)
    monkeypatch.setattr(columns, "SLICE_BYTES", 100)
    with gathering_columns():
        yield request.param


def agrees(wrt, given, names=("logp", "lse"), **options):
    """Gradients are the dense ones, statistics the same to the bit; returns what was made.

    What is rounded may be off by eps, times −log p where a gradient has it.
    """
    atol = 1e-10 if {"logp", "lse", "mean_logit"}.issuperset(names) else 1e-8
    upstream = [normal(37, seed=10 + i, dtype=F64) for i in range(len(names))]
    dense, plain = gradients(given, wrt, upstream, names, **options)
    found, made = gradients(given, wrt, upstream, names, sparse=NEXT_TO_NOTHING, **options)
    assert all(torch.equal(plain[name], made[name]) for name in made)
    for one, other in zip(found, dense, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=atol)
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


@pytest.mark.parametrize("trained", [("hidden",), ("weight",), ("bias",), ("hidden", "weight", "bias")])
@pytest.mark.parametrize(
    ("names", "options"),
    [
        (("mean_logit",), {}),
        (("logp", "lse", "mean_logit"), {"temperature": 0.7, "scale": 1.3}),
        (("logp", "mean_logit"), {"temperature": 0.5 + uniform(37, seed=20, dtype=F64), "workspace_bytes": 4000}),
        (("logp",), {"label_smoothing": 0.2}),
        (("logp", "lse", "mean_logit"), {"label_smoothing": 0.2, "mask": integers(2, 37, seed=21).bool()}),
    ],
    ids=["alone", "scaled", "temperatures", "smoothing", "all"],
)
def test_the_mean_logit(way, trained, names, options):
    given = problem()
    agrees(leaves(given, *trained), given, names, bias=given["bias"], **options)


@pytest.mark.parametrize("trained", [("hidden",), ("weight",), ("bias",), ("hidden", "weight", "bias")])
@pytest.mark.parametrize(
    ("names", "options"),
    [
        (("entropy",), {}),
        (("logp", "entropy"), {"temperature": 0.7, "scale": 1.3, "label_smoothing": 0.2}),
        (("entropy",), {"temperature": 0.5 + uniform(37, seed=20, dtype=F64), "softcap": 3.0}),
        (("logp", "lse", "entropy", "mean_logit"), {"mask": integers(2, 37, seed=21).bool()}),
        (("lse", "entropy"), {"workspace_bytes": 4000}),
    ],
    ids=["alone", "scaled", "capped", "all", "tiles"],
)
def test_an_entropy(trained, names, options):
    given = problem()
    agrees(leaves(given, *trained), given, names, bias=given["bias"], **options)


def test_an_entropy_of_an_adapter():
    given = problem()
    first, second = normal(3, 8, seed=30, dtype=F64), normal(53, 3, seed=31, dtype=F64)
    wrt = [*leaves(given, "hidden", "weight"), first.requires_grad_(), second.requires_grad_()]
    agrees(wrt, given, ("logp", "entropy"), lora=(first, second, 0.5))


@pytest.mark.parametrize("banned", [20, 1, 0])
def test_an_entropy_where_classes_are_banned(banned):
    """Some, the label among them; all but one; all."""
    given = problem()
    given["bias"][banned:] = -math.inf
    agrees(leaves(given, "hidden", "weight"), given, ("logp", "entropy"), bias=given["bias"])


def test_an_entropy_of_one_class():
    given = problem(classes=1)
    agrees(leaves(given, "hidden", "weight", "bias"), given, ("logp", "entropy"), bias=given["bias"])


def test_an_entropy_of_no_row():
    given = problem()
    given["labels"][:] = -100
    agrees(leaves(given, "hidden", "weight", "bias"), given, ("logp", "entropy"), bias=given["bias"])


def test_an_entropy_of_a_row_of_nan():
    given = problem()
    given["hidden"][3] = math.nan
    (hidden,) = leaves(given, "hidden")
    (found,), _ = gradients(given, [hidden], [torch.ones(37)] * 2, ("logp", "entropy"), sparse=NEXT_TO_NOTHING)
    others = torch.arange(37) != 3
    assert found[3].isnan().all() and found[others].isfinite().all()
    upstream = [others.double()] * 2
    (found,), _ = gradients(given, [hidden], upstream, ("logp", "entropy"), sparse=NEXT_TO_NOTHING)
    assert (found[3] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_an_entropy_of_other_dtypes(dtype):
    given = problem(tokens=60, features=77, classes=400)
    given["hidden"] *= 0.2
    narrow = {name: value.to(dtype) if value.is_floating_point() else value for name, value in given.items()}
    exact = {name: value.double() if value.is_floating_point() else value for name, value in narrow.items()}
    upstream, found = [normal(60, seed=11)], []
    for of, options in ((narrow, {"sparse": NEXT_TO_NOTHING, "logits_dtype": sum_dtype(dtype)}), (exact, {})):
        found.append(gradients(of, leaves(of, "hidden", "weight"), upstream, ("entropy",), **options)[0])
    for one, other in zip(*found, strict=True):
        assert one.dtype == dtype
        assert (one - other).norm() < {torch.float32: 1e-5}.get(dtype, 4e-3) * other.norm()


def reference(own_weight):
    """A reference model that shares the weight, or has its own."""
    found = {"reference_hidden": 2 * normal(37, 8, seed=40, dtype=F64)}
    if own_weight:
        found |= {
            "reference_weight": normal(53, 8, seed=41, dtype=F64),
            "reference_bias": normal(53, seed=42, dtype=F64),
        }
    return found


@pytest.mark.parametrize("trained", [("hidden",), ("weight",), ("bias",), ("hidden", "weight", "bias")])
@pytest.mark.parametrize(
    ("names", "options"),
    [
        (("kl",), {"temperature": 0.5 + uniform(37, seed=20, dtype=F64), "softcap": 3.0}),
        (("rkl",), {"temperature": 0.7, "scale": 1.3}),
        (("kl", "rkl"), {"mask": integers(2, 37, seed=21).bool(), "workspace_bytes": 4000}),
        (("logp", "lse", "entropy", "mean_logit", "kl", "rkl"), {"label_smoothing": 0.2}),
    ],
    ids=["kl", "rkl", "both", "all"],
)
def test_divergences(trained, names, options):
    given = problem()
    own_weight = "softcap" in options or "scale" in options
    agrees(leaves(given, *trained), given, names, bias=given["bias"], **reference(own_weight), **options)


def test_divergences_of_an_adapter():
    given = problem()
    first, second = normal(3, 8, seed=30, dtype=F64), normal(53, 3, seed=31, dtype=F64)
    wrt = [*leaves(given, "hidden", "weight"), first.requires_grad_(), second.requires_grad_()]
    agrees(wrt, given, ("logp", "kl", "rkl"), lora=(first, second, 0.5), **reference(False))


@pytest.mark.parametrize("banned", [20, 1, 0])
@pytest.mark.parametrize("whose", ["both", "policy", "reference"])
def test_divergences_where_classes_are_banned(whose, banned):
    """What the policy has and the reference has not makes kl infinite, and its gradient NaN, dense or not."""
    given, other = problem(), reference(True)
    if whose != "reference":
        given["bias"][banned:] = -math.inf
    if whose != "policy":
        other["reference_bias"][banned:] = -math.inf
    names = ("rkl",) if whose == "reference" else ("logp", "kl", "rkl")
    agrees(leaves(given, "hidden", "weight"), given, names, bias=given["bias"], **other)


def test_divergences_of_no_row():
    given = problem()
    given["labels"][:] = -100
    agrees(leaves(given, "hidden", "weight", "bias"), given, ("kl", "rkl"), bias=given["bias"], **reference(False))


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}], ids=["mean_logit", "smoothing"])
def test_the_mean_logit_of_an_adapter(way, options):
    given = problem()
    first, second = normal(3, 8, seed=30, dtype=F64), normal(53, 3, seed=31, dtype=F64)
    wrt = [*leaves(given, "hidden", "weight"), first.requires_grad_(), second.requires_grad_()]
    agrees(wrt, given, ("logp",) if options else ("mean_logit", "logp"), lora=(first, second, 0.5), **options)


def test_the_mean_logit_where_classes_are_banned(way):
    """It is -inf there; its gradient is that of every class, as it is without lists, and 0 where all are banned."""
    given = problem()
    given["bias"][20:] = -math.inf
    wrt = leaves(given, "hidden", "weight", "bias")
    given["labels"] %= 20
    agrees(wrt, given, ("logp", "mean_logit"), bias=given["bias"])
    given["bias"].requires_grad_(False).fill_(-math.inf)
    agrees(wrt[:2], given, ("logp", "mean_logit"), bias=given["bias"])


def test_the_mean_logit_of_one_class(way):
    given = problem(classes=1)
    agrees(leaves(given, "hidden", "weight", "bias"), given, ("logp", "mean_logit"), bias=given["bias"])


def test_the_mean_logit_of_no_row(way):
    given = problem()
    given["labels"][:] = -100
    agrees(leaves(given, "hidden", "weight", "bias"), given, ("logp", "mean_logit"), bias=given["bias"])


def test_the_mean_logit_of_a_row_of_nan(way):
    given = problem()
    given["hidden"][3] = math.nan
    (hidden,) = leaves(given, "hidden")
    others = torch.arange(37) != 3
    (dense,), _ = gradients(given, [hidden], [torch.ones(37)], ("mean_logit",))
    (found,), _ = gradients(given, [hidden], [torch.ones(37)], ("mean_logit",), sparse=NEXT_TO_NOTHING)
    torch.testing.assert_close(found, dense, rtol=1e-9, atol=1e-10, equal_nan=True)
    assert found[3].isnan().all() and found[others].isfinite().all()
    (found,), _ = gradients(given, [hidden], [others.double()], ("mean_logit",), sparse=NEXT_TO_NOTHING)
    assert (found[3] == 0).all()
    torch.testing.assert_close(found[others], dense[others], rtol=1e-9, atol=1e-10)


def test_through_lse_alone(way):
    given = problem()
    agrees(leaves(given, "hidden", "weight"), given, ("lse",))


def test_an_adapter_has_its_gradient_from_the_same(way):
    given = problem()
    first, second = normal(3, 8, seed=30, dtype=F64), normal(53, 3, seed=31, dtype=F64)
    wrt = [*leaves(given, "hidden"), first.requires_grad_(), second.requires_grad_()]
    agrees(wrt, given, ("logp",), lora=(first, second, 0.5))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_dtypes_are_rounded_once(way, dtype, smoothing, monkeypatch):
    monkeypatch.setattr(columns, "SLICE_BYTES", 40_000)  # several slices too, but not one for each class
    given = problem(tokens=60, features=77, classes=400, dtype=F64)
    given["hidden"] *= 0.2
    narrow = {name: value.to(dtype) if value.is_floating_point() else value for name, value in given.items()}
    wrt = leaves(narrow, "hidden", "weight", "bias")
    upstream, options = [normal(60, seed=11)], {"bias": narrow["bias"], "label_smoothing": smoothing}
    found, _ = gradients(narrow, wrt, upstream, ("logp",), sparse=2.0**-30, **options)
    dense, _ = gradients(narrow, wrt, upstream, ("logp",), **options)
    for one, other in zip(found, dense, strict=True):
        assert one.dtype == dtype
        assert (one - other).norm() < {torch.float32: 1e-6}.get(dtype, 8e-3) * other.norm()
