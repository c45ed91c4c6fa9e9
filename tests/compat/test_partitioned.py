"""Weights that DeepSpeed ZeRO-3 has cut up: gathered when they are read, in the backward pass too, and let go after."""

from __future__ import annotations

import contextlib
import sys
from types import SimpleNamespace

import pytest
import torch

import prefuse.compat.liger as liger
from prefuse import linear_token_stats
from prefuse.compat import trl

from .checking import CLASSES, assert_same, head, normal, outcome, targets

PARTED, WHOLE = SimpleNamespace(name="NOT_AVAILABLE"), SimpleNamespace(name="AVAILABLE")


@contextlib.contextmanager
def gathered_parameters(parameters):
    for parameter in parameters:
        gather(parameter)
    yield
    for parameter in parameters:
        parameter.data, parameter.ds_status = torch.empty(0), PARTED


@pytest.fixture
def deepspeed(monkeypatch):
    module = SimpleNamespace(zero=SimpleNamespace(GatheredParameters=gathered_parameters))
    monkeypatch.setitem(sys.modules, "deepspeed", module)


def cut_up(tensor):
    """What a parameter looks like while its values are spread over processes."""
    parameter = torch.nn.Parameter(tensor.detach().clone())
    parameter.whole, parameter.ds_shape, parameter.ds_status = parameter.data, parameter.shape, PARTED
    parameter.data = torch.empty(0)
    return parameter


def gather(parameter):
    parameter.data, parameter.ds_status = parameter.whole, WHOLE


def parted(tensors):
    return tensors | {name: cut_up(tensors[name]) for name in ("weight", "bias")}


def both(call):
    """The call with whole parameters and with parted ones, which must be parted again afterwards."""
    tensors = parted(head())
    made = call(tensors)
    assert all(tensors[name].numel() == 0 for name in ("weight", "bias"))
    results = outcome(made, tensors)
    plain = head()
    return results, outcome(call(plain), plain)


@pytest.mark.usefixtures("deepspeed")
class TestParted:
    def test_log_probabilities_and_entropy(self):
        def call(tensors):
            hidden = tensors["_input"].reshape(-1, tensors["_input"].shape[-1])
            labels = targets().clamp(min=0).reshape(-1)
            log_probs, entropy, *_ = trl.ChunkedLogProbFunction.apply(
                hidden, tensors["weight"], tensors["bias"], labels, 1.0, 16
            )
            return log_probs.sum() + entropy.square().sum(), ()

        assert_same(*both(call))

    def test_dpo(self):
        def call(tensors):
            module = liger.LigerFusedLinearDPOLoss(use_ref_model=False)
            return module(tensors["weight"], tensors["_input"], targets(), tensors["bias"])

        assert_same(*both(call))

    def test_grpo(self):
        def call(tensors):
            module = liger.LigerFusedLinearGRPOLoss(use_ref_model=False)
            mask = targets() != -100
            return module(tensors["_input"], tensors["weight"], targets(), mask, normal(4, seed=13), tensors["bias"])

        assert_same(*both(call))

    def test_plans_are_made_for_the_whole_weight(self):
        tensors = parted(head())
        made = linear_token_stats(tensors["_input"], tensors["weight"], targets(), bias=tensors["bias"])
        assert made.plan.job.classes == CLASSES
