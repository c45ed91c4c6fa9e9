"""What is missing on a machine skips tests, and fails them under continuous integration."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests import needs


@pytest.mark.parametrize("what", needs.MISSING)
def test_what_is_missing_skips_and_fails_under_ci(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(needs.MISSING, what, lambda: "it is missing")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="it is missing"):
        needs.check(what)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"it is missing.*CI=true"):
        needs.check(what)


def test_what_is_there_does_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(needs.MISSING, "compiler", lambda: "")
    monkeypatch.setenv("CI", "true")
    needs.check("compiler")


def test_a_machine_without_a_compiler_does_not_pass_under_ci() -> None:
    command = [sys.executable, "-m", "pytest", "tests/emulator/test_segments.py", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, env={**os.environ, "CI": "true", "CXX": "no-such-compiler"}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "no C++ compiler" in done.stdout and " passed" not in done.stdout
