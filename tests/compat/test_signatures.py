"""The signatures are the originals': names, order and defaults of every parameter, and attributes of the modules."""

from __future__ import annotations

import pytest

import prefuse.compat.liger as ours
import prefuse.compat.trl as ours_trl

from .checking import library, signature

LOSSES = ("CPO", "DPO", "GRPO", "KTO", "ORPO", "SimPO")


@pytest.fixture(scope="module")
def liger():
    return library("liger_kernel.chunked_loss")


@pytest.mark.parametrize("loss", LOSSES)
def test_modules(liger, loss):
    mine, original = (getattr(package, f"LigerFusedLinear{loss}Loss") for package in (ours, liger))
    assert signature(mine) == signature(original)
    assert signature(mine.forward) == signature(original.forward)
    public = [{k: v for k, v in vars(made()).items() if not k.startswith("_")} for made in (mine, original)]
    assert public[0] == public[1]


@pytest.mark.parametrize("loss", LOSSES)
def test_functions(liger, loss):
    name = f"LigerFusedLinear{loss}Function"
    original = getattr(getattr(liger, f"{loss.lower()}_loss"), name)
    assert signature(getattr(ours, name).apply) == signature(original.forward, leave_out=1)
    assert getattr(ours, f"liger_fused_linear_{loss.lower()}") is getattr(ours, name).apply
    assert hasattr(library("liger_kernel.chunked_loss.functional"), f"liger_fused_linear_{loss.lower()}")


def test_everything_is_exported():
    assert sorted(ours.__all__) == ours.__all__
    assert all(hasattr(ours, name) for name in ours.__all__)


def test_trl():
    kernels, utils = library("trl.kernels.chunked_logprob"), library("trl.trainer.utils")
    original = kernels.ChunkedLogProbFunction.forward
    assert signature(ours_trl.ChunkedLogProbFunction.apply) == signature(original, leave_out=1)
    assert ours_trl.OPTIONAL_OUTPUTS == kernels.OPTIONAL_OUTPUTS
    assert ours_trl.TOKEN_CHUNK_SIZE == kernels.TOKEN_CHUNK_SIZE
    for name in ("selective_log_softmax", "selective_log_softmax_and_entropy"):
        assert signature(getattr(ours_trl, name)) == signature(getattr(utils, name))
