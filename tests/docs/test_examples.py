"""The example scripts run and do what they say."""

import math
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_dpo_from_logits():
    pytest.importorskip("transformers")
    losses = runpy.run_path(str(EXAMPLES / "dpo_from_logits.py"))["main"](steps=12)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-7)  # policy and reference are still the same
    assert losses[-1] < 0.6
