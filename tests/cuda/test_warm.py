"""`python -m prefuse doctor --compile --warm sm_90`: what lies in the cache afterwards, and what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prefuse import _prefuse, objectives
from prefuse.__main__ import main
from prefuse.doctor import warm
from prefuse.scoring.device import compiled

FEW = """
import sys
from prefuse import objectives
from prefuse.__main__ import main
from prefuse.doctor import examination, warm
examination.findings = lambda: []  # which import all of TRL
warm.DTYPES, warm.WIDTHS, warm.programs = ("bf16",), (128_256,), lambda *_: []
objectives.names = lambda: ["dpo"]
sys.exit(main(["doctor", "--compile", "--warm", "sm_90"]))
"""


@pytest.mark.needs("nvrtc")
def test_the_cache_has_kernels_and_objectives_afterwards(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    environment = {**os.environ, "PREFUSE_CACHE_DIR": str(folder)}
    said = subprocess.run([sys.executable, "-c", FEW], env=environment, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    kept = {file.name.rsplit("-", 1)[0] for file in folder.glob("*.cubin")}
    assert {"rows_forward", "rows_combine", "rows_backward", "rows_both", "objective_one_block"} <= kept
    assert f"{folder}: {len(list(folder.glob('*.cubin')))} kernels" in said.stdout
    again = subprocess.run([sys.executable, "-c", FEW], env=environment, capture_output=True, text=True, check=False)
    assert said.stdout.split(" kernels for")[0].split()[-1] == again.stdout.split(" kernels for")[0].split()[-1]
    assert {file.name.rsplit("-", 1)[0] for file in folder.glob("*.cubin")} == kept


@pytest.mark.needs("nvrtc")
def test_cached_code_is_the_code(tmp_path: Path) -> None:
    traced = objectives.get("dpo")._traced(None)
    fresh = compiled(traced, 90, True, ("chosen_logps", "rejected_logps"))
    cached = compiled(traced, 90, True, ("chosen_logps", "rejected_logps"), cached=True)
    assert [(name, code) for name, code, _ in fresh] == [(name, code) for name, code, _ in cached]
    assert not any(log for *_, log in cached)


def test_an_unknown_architecture_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--compile", "--warm", "h100"])
    assert "--warm: expected one of sm_80, sm_86, sm_89, sm_90, sm_100, sm_120, got 'h100'" in capsys.readouterr().err


def test_without_nvrtc_one_sentence_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise RuntimeError("missing: install it")

    monkeypatch.setattr(_prefuse, "cuda_nvrtc", missing)
    assert warm.warm(90) == 1
    assert "nothing compiled: missing: install it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("column", "trained"),
    [("chosen_logps", True), ("rejected_token_logps", True), ("ref_chosen_logps", False), ("old_logps", False),
     ("chosen_old_logps", False), ("reward", False)],
)  # fmt: skip
def test_columns_of_the_policy(column: str, trained: bool) -> None:
    assert warm._is_the_policy_s(column) == trained
