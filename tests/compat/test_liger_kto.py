"""KTO beside Liger's: loss, auxiliary values and gradients on random batches."""

from __future__ import annotations

import pytest
import torch

import prefuse.compat.liger as ours
from prefuse.compat.liger import kto

from .checking import RESPONSES, assert_as_good, assert_same, head, library, normal, outcome, reference, targets

pytestmark = pytest.mark.usefixtures("device")

OPTIONS = (
    {},
    {"use_ref_model": True},
    {"use_ref_model": True, "beta": 0.7},
    {"use_ref_model": True, "average_log_prob": True},
    {"average_log_prob": True, "chunk_size": 2},
)
REAL = kto.preference_loss


@pytest.fixture(scope="module")
def liger():
    return library("liger_kernel.chunked_loss")


def desirable():
    return torch.tensor([True, False, False, True])


def run(package, options, *, dtype=torch.float32, wide=False, trained=("_input", "weight", "bias"), bias=True, **given):
    tensors = {
        name: value if value is None or not wide else value.detach().float().requires_grad_(value.requires_grad)
        for name, value in head(bias, dtype, trained).items()
    }
    others = reference(bias, dtype) if options.get("use_ref_model") else {}
    others = {name: value.float() if wide and value is not None else value for name, value in others.items()}
    module = package.LigerFusedLinearKTOLoss(compiled=False, **options)
    made = module(
        tensors["_input"],
        tensors["weight"],
        targets(),
        tensors["bias"],
        preference_labels=desirable(),
        **others,
        **given,
    )
    return outcome(made, tensors)


@pytest.mark.parametrize("kl", [None, 0.3, -0.2])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_kto(liger, options, kl):
    given = {} if kl is None else {"kl": torch.tensor(kl)}
    assert_same(run(ours, options, **given), run(liger, options, **given))


def test_kl_of_each_response(liger):
    """Liger compares each block of responses with the whole of such a `kl`, so it is right in one block only."""
    options = {"use_ref_model": True, "chunk_size": RESPONSES}
    given = {"kl": normal(RESPONSES, seed=8)}
    assert_same(run(ours, options, **given), run(liger, options, **given))
    assert_same(run(ours, options | {"chunk_size": 1}, **given), run(ours, options, **given), roundings=0)


@pytest.mark.parametrize("of", [torch.bfloat16, torch.float64], ids=str)
def test_a_reference_of_another_dtype(liger, of):
    def call(package, of):
        tensors = head()
        module = package.LigerFusedLinearKTOLoss(compiled=False, use_ref_model=True)
        states = {name: value.to(of) for name, value in reference(dtype=torch.bfloat16).items()}
        given = (targets(), tensors["bias"], desirable())
        return outcome(module(tensors["_input"], tensors["weight"], *given, **states), tensors)

    assert_as_good(call(ours, of), call(liger, of), call(ours, torch.float32))


@pytest.mark.parametrize("trained", [("_input",), ("weight",), ("_input", "bias")], ids=str)
def test_gradients_go_where_they_are_wanted(liger, trained):
    results = run(ours, OPTIONS[1], trained=trained)
    assert {name for name in results if name.startswith("d")} == {f"d{name}" for name in trained}
    assert_same(results, run(liger, OPTIONS[1], trained=trained))


def test_without_bias(liger):
    assert_same(run(ours, OPTIONS[1], bias=False), run(liger, OPTIONS[1], bias=False))


def test_bfloat16(liger):
    exact = run(liger, OPTIONS[1], dtype=torch.bfloat16, wide=True)
    assert_as_good(*(run(package, OPTIONS[1], dtype=torch.bfloat16) for package in (ours, liger)), exact)


def test_three_products_where_the_weight_trains(monkeypatch):
    scores = []
    monkeypatch.setattr(kto, "preference_loss", lambda *a, **k: scores.append(REAL(*a, **k)) or scores[-1])
    run(ours, OPTIONS[1], kl=torch.tensor(0.1))
    assert (scores[0].plan.name, scores[0].plan.gemms) == ("grouped", 3)


def test_no_grad_and_second_backward():
    tensors = head()
    arguments = (tensors["_input"], tensors["weight"], targets(), tensors["bias"], desirable())
    module = ours.LigerFusedLinearKTOLoss()
    with torch.no_grad():
        assert not module(*arguments)[0].requires_grad
    loss, _ = module(*arguments)
    loss.backward(retain_graph=True)
    once = tensors["weight"].grad.clone()
    loss.backward()
    torch.testing.assert_close(tensors["weight"].grad, 2 * once)


def test_errors():
    def call(**changed):
        tensors = {"target": targets(), "preference_labels": desirable(), **head()} | changed
        module = ours.LigerFusedLinearKTOLoss()
        return module(tensors.pop("_input"), tensors.pop("weight"), tensors.pop("target"), **tensors)

    with pytest.raises(TypeError, match="preference_labels: expected a bool tensor, got NoneType"):
        call(preference_labels=None)
    with pytest.raises(TypeError, match=r"preference_labels: expected a bool tensor, got torch\.int64"):
        call(preference_labels=desirable().long())
    with pytest.raises(ValueError, match=r"preference_labels: expected shape \(4,\), got \(3,\)"):
        call(preference_labels=desirable()[:3])
    with pytest.raises(ValueError, match=r"kl: expected one number or shape \(4,\), got \(3,\)"):
        call(kl=torch.zeros(3))
    with pytest.raises(ValueError, match=r"target: expected shape \(4, 5\) as _input has, got \(4, 2\)"):
        call(target=targets()[:, :2])
