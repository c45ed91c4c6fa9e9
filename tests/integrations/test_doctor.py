"""What `python -m prefuse doctor` says of the frameworks."""

from __future__ import annotations

from importlib import metadata

import pytest

from prefuse import integrations
from prefuse.doctor import examination


@pytest.mark.parametrize("name", ["megatron", "nemo_rl", "openrlhf", "verl"])
@pytest.mark.parametrize(("version", "fits"), [("tried", True), ("99.0", False)])
def test_a_framework(name: str, version: str, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    framework = getattr(getattr(integrations, name), name.upper())
    asked = framework.tried[0] if version == "tried" else version
    monkeypatch.setattr(metadata, "version", lambda _: asked)
    library = next(each for each in examination.LIBRARIES if each.name == framework.name)
    assert library.integration == f"prefuse.integrations.{name}"
    found = examination._library(library)
    assert found.state == f"{asked}, prefuse.integrations.{name} {'fits' if fits else 'does not fit'}"
    assert ("tried with" in found.advice) is not fits


def test_every_integration_has_a_module_with_accelerate() -> None:
    assert all(callable(getattr(integrations, name).accelerate) for name in integrations.NAMES)
