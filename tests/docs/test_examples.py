"""The example scripts run and do what they say."""

import math
import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_dpo_from_logits():
    pytest.importorskip("transformers")
    losses = runpy.run_path(str(EXAMPLES / "dpo_from_logits.py"))["main"](steps=12)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-7)  # policy and reference are still the same
    assert losses[-1] < 0.6


def test_hand_written_loop():
    pytest.importorskip("peft")
    losses = runpy.run_path(str(EXAMPLES / "hand_written_loop.py"))["main"](steps=12)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)  # an adapter begins as nothing
    assert losses[-1] < 0.6


def test_shared_prompts():
    pytest.importorskip("transformers")
    losses, spared = runpy.run_path(str(EXAMPLES / "shared_prompts.py"))["main"](steps=12)
    assert losses[-1] < 0.95 * losses[0]
    assert spared == pytest.approx(9 * 48 / (12 * 56))


def test_transformers_trainer():
    pytest.importorskip("accelerate")
    losses = runpy.run_path(str(EXAMPLES / "transformers_trainer.py"))["main"](steps=24)
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])


def test_trl_preference_trainer():
    pytest.importorskip("trl")
    losses = runpy.run_path(str(EXAMPLES / "trl_preference_trainer.py"))["main"](steps=12)
    assert set(losses) == {"simpo", "sure + sft", "lipo"}
    assert all(values[-1] < values[0] for values in losses.values())


def test_iterative_rounds():
    """Three rounds against a rule-based judge: the script asserts that the win rate rises."""
    pytest.importorskip("transformers")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = runpy.run_path(str(EXAMPLES / "iterative_rounds.py"))["main"]()
    finally:
        torch.set_num_threads(threads)
    assert len(rates) == 4
    assert rates[-1] > 0.65
