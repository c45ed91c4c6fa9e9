"""Losses, gradients and parameters under DeepSpeed's ZeRO-2 and ZeRO-3 are those of one process with plain PyTorch."""

from __future__ import annotations

import json

import pytest

from tests.real_deepspeed import MEASURED
from tests.real_deepspeed.training import WAYS, Case, compare

pytest.importorskip("transformers")

MAIN = list(WAYS)[:4]
FLOAT32, BFLOAT16 = 2e-5, 2e-2
"""Tolerances: of losses and parameters, and of gradients relative to the largest of a tensor."""


@pytest.fixture
def measured(processes, tmp_path):
    """Runs a case in the processes, and notes its differences under a kind."""

    def run(kind: str, case: Case, tolerance: float = FLOAT32) -> None:
        report = tmp_path / "differences.json"
        processes.run(compare, tuple(case), tolerance, report)
        MEASURED.setdefault(f"ZeRO-{case.stage}, {kind}", []).append(json.loads(report.read_text()))

    return run


@pytest.mark.parametrize("way", MAIN)
@pytest.mark.parametrize("head", ["tied", "untied", "frozen"])
@pytest.mark.parametrize("stage", [2, 3])
def test_training(measured, stage, head, way):
    measured(
        f"`{way}`" if "," not in way else "`preference_loss(weight=…)`, the head used before", Case(stage, head, way)
    )


@pytest.mark.parametrize("way", ["preference_loss(weight=…)", "linear_token_logps"])
@pytest.mark.parametrize("stage", [2, 3])
def test_a_frozen_head_with_a_bias_and_an_adapter_that_train(measured, stage, way):
    measured("bias and LoRA matrices", Case(stage, "adapter", way))


@pytest.mark.parametrize("way", ["two calls", "checkpoint", "reentrant checkpoint"])
@pytest.mark.parametrize("head", ["tied", "untied", "adapter"])
@pytest.mark.parametrize("stage", [2, 3])
def test_calls_that_do_not_go_back_one_by_one(measured, stage, head, way):
    if way == "reentrant checkpoint" and head == "tied":
        pytest.skip("DeepSpeed takes one gradient per parameter and backward pass; here there are two")
    measured("two calls before one backward pass; checkpoints", Case(stage, head, way))


@pytest.mark.parametrize("way", MAIN)
@pytest.mark.parametrize("head", ["tied", "untied"])
@pytest.mark.parametrize("stage", [2, 3])
def test_accumulated_gradients(measured, stage, head, way):
    measured("two micro-batches per step", Case(stage, head, way, micro_batches=2))


@pytest.mark.parametrize("head", ["tied", "untied", "frozen"])
@pytest.mark.parametrize("stage", [2, 3])
def test_the_weight_of_a_reference_gets_no_gradient(measured, stage, head):
    measured("KL to a reference with its own weight", Case(stage, head, "kl"))


@pytest.mark.parametrize("way", ["preference_loss(weight=…)", "linear_token_logps"])
@pytest.mark.parametrize("head", ["tied", "untied", "frozen"])
@pytest.mark.parametrize("stage", [2, 3])
def test_bfloat16(measured, stage, head, way):
    measured("bfloat16, one step", Case(stage, head, way, dtype="bfloat16", steps=1), BFLOAT16)
