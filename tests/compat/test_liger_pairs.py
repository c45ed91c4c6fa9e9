"""DPO, CPO, SimPO and ORPO beside Liger's: loss, auxiliary values and gradients on random batches."""

from __future__ import annotations

import warnings

import pytest
import torch

import prefuse.compat.liger as ours
from prefuse.compat.liger import _objectives, preference

from .checking import CLASSES, assert_as_good, assert_same, head, library, normal, outcome, reference, targets

pytestmark = pytest.mark.usefixtures("device")

DPO_TYPES = (
    {"loss_type": "sigmoid"},
    {"loss_type": "hinge"},
    {"loss_type": "exo_pair", "label_smoothing": 0.1},
    {"loss_type": "nca_pair"},
    {"loss_type": "robust", "label_smoothing": 0.2},
    {"loss_type": "robust"},
    {"loss_type": "bco_pair"},
    {"loss_type": "sppo_hard"},
    {"loss_type": "apo_zero"},
    {"loss_type": "apo_down"},
    {"loss_type": "discopop"},
    {"loss_type": "discopop", "discopop_tau": 0.5},
)
DPO_OPTIONS = (
    {},
    {"beta": 0.7},
    {"average_log_prob": True, "beta": 0.5},
    {"compute_nll_loss": True, "alpha": 0.3},
    {"use_ref_model": False},
    {"use_ref_model": False, "average_log_prob": True, "compute_nll_loss": True, "chunk_size": 2},
)
OTHERS = (
    ("CPO", {}),
    ("CPO", {"beta": 0.5, "alpha": 0.3, "label_smoothing": 0.1}),
    ("CPO", {"average_log_prob": True, "chunk_size": 2}),
    ("CPO", {"compute_nll_loss": False}),
    ("SimPO", {}),
    ("SimPO", {"compute_nll_loss": False, "beta": 2.0, "gamma": 1.0}),
    ("SimPO", {"alpha": 0.3, "label_smoothing": 0.1, "chunk_size": 2}),
    ("ORPO", {}),
    ("ORPO", {"beta": 0.5, "chunk_size": 2}),
    ("ORPO", {"compute_nll_loss": False}),
)


@pytest.fixture(scope="module")
def liger():
    return library("liger_kernel.chunked_loss")


def run(
    package,
    loss,
    options,
    *,
    dtype=torch.float32,
    bias=True,
    trained=("_input", "weight", "bias"),
    wide=False,
    upstream=1.0,
    **given,
):
    """One call of a module, and what came of it; `wide`: on the same numbers in float32."""
    tensors = {
        name: value if value is None or not wide else value.detach().float().requires_grad_(value.requires_grad)
        for name, value in head(bias, dtype, trained).items()
    }
    referenced = loss == "DPO" and options.get("use_ref_model", True)
    others = reference(bias, dtype) if referenced else {}
    others = {name: value.float() if wide and value is not None else value for name, value in others.items()}
    module = getattr(package, f"LigerFusedLinear{loss}Loss")(compiled=False, **options)
    made = module(tensors["weight"], tensors["_input"], targets(), tensors["bias"], **others, **given)
    return outcome(made, tensors, upstream)


@pytest.mark.parametrize("options", DPO_OPTIONS, ids=str)
@pytest.mark.parametrize("kind", DPO_TYPES, ids=str)
def test_dpo(liger, kind, options):
    assert_same(run(ours, "DPO", kind | options), run(liger, "DPO", kind | options))


@pytest.mark.parametrize(("loss", "options"), OTHERS, ids=str)
def test_losses_without_a_reference(liger, loss, options):
    assert_same(run(ours, loss, options), run(liger, loss, options))


ONE_OF_EACH = [
    ("DPO", {}),
    ("DPO", {"loss_type": "apo_zero", "compute_nll_loss": True}),
    *OTHERS[:1],
    *OTHERS[4:5],
    *OTHERS[7:8],
]


@pytest.mark.parametrize(("loss", "options"), ONE_OF_EACH, ids=str)
class TestEveryLoss:
    def test_without_bias(self, liger, loss, options):
        assert_same(run(ours, loss, options, bias=False), run(liger, loss, options, bias=False))

    @pytest.mark.parametrize("trained", [("_input",), ("weight",), ("_input", "bias"), ("weight", "bias")], ids=str)
    def test_gradients_go_where_they_are_wanted(self, liger, loss, options, trained):
        results = run(ours, loss, options, trained=trained)
        assert {name for name in results if name.startswith("d")} == {f"d{name}" for name in trained}
        assert_same(results, run(liger, loss, options, trained=trained))

    def test_bfloat16(self, liger, loss, options):
        exact = run(liger, loss, options, dtype=torch.bfloat16, wide=True)
        assert_as_good(*(run(p, loss, options, dtype=torch.bfloat16) for p in (ours, liger)), exact)

    def test_upstream_gradient(self, liger, loss, options):
        assert_same(run(ours, loss, options, upstream=-2.5), run(liger, loss, options, upstream=-2.5))

    def test_second_backward_adds_the_same_again(self, loss, options):
        once = run(ours, loss, options)
        tensors = head()
        others = reference() if loss == "DPO" else {}
        module = getattr(ours, f"LigerFusedLinear{loss}Loss")(**options)
        result, _ = module(tensors["weight"], tensors["_input"], targets(), tensors["bias"], **others)
        result.backward(retain_graph=True)
        result.backward()
        for name, value in tensors.items():
            torch.testing.assert_close(value.grad, 2 * once[f"d{name}"])

    def test_no_grad(self, loss, options):
        expected = run(ours, loss, options)
        tensors, others = head(), reference() if loss == "DPO" else {}
        module = getattr(ours, f"LigerFusedLinear{loss}Loss")(**options)
        with torch.no_grad():
            result, beside = module(tensors["weight"], tensors["_input"], targets(), tensors["bias"], **others)
        assert not result.requires_grad
        torch.testing.assert_close(result, expected["loss"])
        assert len(beside) == sum(name.startswith("[") for name in expected)

    def test_three_products_where_the_weight_trains(self, loss, options, monkeypatch):
        scores = []
        monkeypatch.setattr(preference, "preference_loss", lambda *a, **k: scores.append(REAL(*a, **k)) or scores[-1])
        run(ours, loss, options)
        assert (scores[0].plan.name, scores[0].plan.gemms) == ("grouped", 3)


REAL = preference.preference_loss


def likelihood_targets():
    """The prompt's tokens as well, one label that differs, one token less."""
    labels = targets()
    labels[0, :2] = torch.tensor([3, 5])
    labels[1, 2], labels[1, 3] = (labels[1, 2] + 1) % CLASSES, -100
    return labels


@pytest.mark.parametrize("options", [{}, {"compute_nll_loss": False}], ids=str)
@pytest.mark.parametrize("labels", [likelihood_targets, targets], ids=["other labels", "the same labels"])
def test_orpo_with_labels_for_the_likelihood(liger, labels, options):
    given = {"nll_target": labels()}
    assert_same(run(ours, "ORPO", options, **given), run(liger, "ORPO", options, **given))


@pytest.mark.parametrize("of", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("policy", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("average", [False, True], ids=["sum", "mean"])
def test_a_reference_of_another_dtype(liger, policy, of, average):
    def call(package, policy, of):
        tensors = {name: value.detach().to(policy).requires_grad_() for name, value in head().items()}
        states = {name: value.to(of) for name, value in reference(dtype=given).items()}
        module = package.LigerFusedLinearDPOLoss(compiled=False, average_log_prob=average)
        made = module(tensors["weight"], tensors["_input"], targets(), tensors["bias"], **states)
        return {name: value.double() for name, value in outcome(made, tensors).items()}

    given = of
    assert_as_good(call(ours, policy, of), call(liger, policy, of), call(ours, torch.float64, torch.float64))


def test_autocast(liger):
    results = []
    for package in (ours, liger):
        with torch.autocast(normal(1, seed=0).device.type, dtype=torch.bfloat16):
            results.append(run(package, "DPO", {}))
    assert_as_good(*results, run(liger, "DPO", {}))


def test_applying_the_function_is_calling_the_module():
    for package in (ours, library("liger_kernel.chunked_loss.functional")):
        tensors = head()
        arguments = (tensors["_input"], tensors["weight"], targets(), tensors["bias"])
        made = package.liger_fused_linear_cpo(*arguments, -100, 0.5, 0.3, 0.1, True, False, False, 1)
        options = {"beta": 0.5, "alpha": 0.3, "label_smoothing": 0.1}
        assert_same(outcome(made, tensors), run(ours, "CPO", options))


def test_float64_stays_float64():
    tensors = head(dtype=torch.float64)
    loss, beside = ours.LigerFusedLinearSimPOLoss()(tensors["weight"], tensors["_input"], targets(), tensors["bias"])
    loss.backward()
    assert {value.dtype for value in (loss, *beside, tensors["weight"].grad)} == {torch.float64}


class TestWhereLigerGivesNan:
    """0/0 in Liger: here an empty response has log-probability 0 and an empty batch no likelihood."""

    def test_average_of_an_empty_response(self):
        tensors, labels = head(), targets()
        labels[2] = -100
        module = ours.LigerFusedLinearCPOLoss(average_log_prob=True)
        loss, beside = module(tensors["weight"], tensors["_input"], labels, tensors["bias"])
        loss.backward()
        assert loss.isfinite() and beside[1][0] == 0
        assert tensors["_input"].grad.isfinite().all() and not tensors["_input"].grad[2].any()

    def test_nothing_to_score(self):
        tensors = head()
        module = ours.LigerFusedLinearCPOLoss()
        loss, beside = module(tensors["weight"], tensors["_input"], torch.full_like(targets(), -100), tensors["bias"])
        loss.backward()
        torch.testing.assert_close(loss.detach(), torch.tensor(2.0).log())
        assert beside[4] == 0 and not tensors["weight"].grad.any()

    def test_discopop_of_a_pair_far_the_wrong_way(self):
        tensors = head()
        module = ours.LigerFusedLinearDPOLoss(loss_type="discopop", beta=50.0, use_ref_model=False)
        loss, _ = module(tensors["weight"], tensors["_input"] * 4, targets(), tensors["bias"])
        loss.backward()
        assert loss.isfinite() and tensors["_input"].grad.isfinite().all()


def test_ignored_rows_are_not_read():
    tensors, labels = head(), targets()
    states = tensors["_input"].detach().masked_fill((labels == -100)[..., None], torch.nan).requires_grad_()
    module = ours.LigerFusedLinearCPOLoss()
    loss, _ = module(tensors["weight"], states, labels, tensors["bias"])
    loss.backward()
    assert_same(
        {"loss": loss.detach(), "dweight": tensors["weight"].grad},
        {k: run(ours, "CPO", {})[k] for k in ("loss", "dweight")},
    )
    assert not states.grad[labels == -100].any()


class TestErrors:
    def call(self, loss="CPO", **changed):
        tensors = head() | {"target": targets()} | changed
        module = getattr(ours, f"LigerFusedLinear{loss}Loss")()
        return module(tensors.pop("weight"), tensors.pop("_input"), tensors.pop("target"), **tensors)

    def test_shapes(self):
        with pytest.raises(ValueError, match=r"target: expected shape \(4, 5\) as _input has, got \(4, 4\)"):
            self.call(target=targets()[:, :4])
        with pytest.raises(
            ValueError, match="target: expected as many rejected responses as chosen ones, got 3 in all"
        ):
            self.call(_input=head()["_input"][:3], target=targets()[:3])
        with pytest.raises(ValueError, match=r"_input: expected shape \[B, T, H\], got \(5, 8\)"):
            self.call(_input=head()["_input"][0], target=targets()[0])
        with pytest.raises(ValueError, match=r"nll_target: expected shape \(4, 5\), got \(2, 5\)"):
            self.call("ORPO", nll_target=targets()[:2])
        with pytest.raises(TypeError, match=r"weight: has dtype torch\.float64"):
            self.call(weight=head()["weight"].double())

    def test_labels_that_are_no_classes(self, device):
        labels = targets()
        labels[1, 1] = CLASSES
        if device.type == "cpu":
            with pytest.raises(ValueError, match=rf"target: {CLASSES} at \[1, 1\], expected 0 <= label < {CLASSES}"):
                self.call(target=labels)

    def test_a_reference_that_is_missing(self):
        with pytest.raises(ValueError, match="ref_input: missing, and use_ref_model is True"):
            self.call("DPO")
        with pytest.raises(ValueError, match="ref_weight: missing, and use_ref_model is True"):
            self.call("DPO", ref_input=reference()["ref_input"])

    def test_options(self):
        make = ours.LigerFusedLinearDPOLoss
        with pytest.raises(ValueError, match=r"Unsupported loss_type: expected one of sigmoid, .*, got 'ipo'"):
            make(loss_type="ipo")
        with pytest.raises(ValueError, match="label_smoothing must be > 0 for loss_type='exo_pair'"):
            make(loss_type="exo_pair")
        with pytest.raises(ValueError, match=r"label_smoothing must lie in \[0\.0, 0\.5\) for loss_type='robust'"):
            make(loss_type="robust", label_smoothing=0.5)
        with pytest.raises(ValueError, match="chunk_size: expected at least 1, got 0"):
            make(chunk_size=0)

    def test_a_smoothing_that_liger_does_not_read_is_said(self):
        with pytest.warns(UserWarning, match="label_smoothing: 0.1 has no effect with loss_type='sigmoid'"):
            ours.LigerFusedLinearDPOLoss(label_smoothing=0.1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for loss_type in _objectives.SMOOTHED:
                ours.LigerFusedLinearDPOLoss(loss_type=loss_type, label_smoothing=0.1)


def test_a_reference_of_another_width(liger):
    others = {"ref_input": normal(4, 5, 6, seed=20), "ref_weight": normal(CLASSES, 6, seed=21)}
    results = []
    for package in (ours, liger):
        tensors = head()
        module = package.LigerFusedLinearDPOLoss(compiled=False)
        made = module(tensors["weight"], tensors["_input"], targets(), tensors["bias"], **others)
        results.append(outcome(made, tensors))
    assert_same(*results)
