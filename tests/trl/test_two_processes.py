"""`PreferenceTrainer` under `accelerate launch`: two processes arrive where one does with both their batches."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trl.two_processes import CASES, run

pytestmark = pytest.mark.filterwarnings("ignore")

ROOT = Path(__file__).parents[2]
PATIENCE = 300
"""Seconds until a launch counts as stuck."""

LAUNCHES: dict[str, tuple[list[str], list[str]]] = {
    "DDP": (["--multi_gpu"], list(CASES)),
    "FSDP2": (
        [
            *("--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"),
            *("--fsdp_transformer_layer_cls_to_wrap", "LlamaDecoderLayer", "--fsdp_reshard_after_forward", "true"),
        ],
        ["dpo", "aot", "simpo, packed", "tdpo1", "precomputed"],
    ),
}
"""How accelerate is told to launch, on the CPU by the environment, and the cases that are run so."""


@cache
def launched(how: str, folder: Path) -> Path:
    """Where the results of a launch are, which is made once."""
    flags, cases = LAUNCHES[how]
    folder.mkdir(exist_ok=True)
    common = ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    script = [str(ROOT / "tests" / "trl" / "two_processes.py"), str(folder), "2", *cases]
    ended = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *flags, *common, "--main_process_port", "0", *script],
        env=os.environ
        | {
            "ACCELERATE_USE_CPU": "true",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return folder


@cache
def alone(case: str, folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    return run(case, folder, 4)


@pytest.mark.parametrize(("how", "case"), [(how, case) for how in LAUNCHES for case in LAUNCHES[how][1]])
def test_two_processes_are_one(how, case, tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    weights, logs = torch.load(launched(how, base / how) / f"{case}.pt")
    expected: Any = alone(case, base / "alone")
    for name, value in expected[0].items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert len(logs) == len(expected[1]) == 4
    for mine, theirs in zip(logs, expected[1], strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            assert mine[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
