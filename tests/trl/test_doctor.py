"""What the doctor says of the libraries that prefuse works with."""

from __future__ import annotations

from importlib import metadata

import pytest

from prefuse.__main__ import main
from prefuse.doctor import examination as doctor


def library(name):
    return next(library for library in doctor.LIBRARIES if library.name == name)


def test_they_fit_here(capsys):
    assert main(["doctor"]) == 0
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if " fits" in line)
    assert said["trl"] == f"{metadata.version('trl')}, prefuse.trl fits"
    assert said["transformers"] == f"{metadata.version('transformers')}, prefuse.head fits"


@pytest.mark.parametrize(
    ("name", "version", "problem"),
    [
        ("transformers", "4.56.0", ""),
        ("transformers", "5.0.0.dev0", ""),
        ("transformers", "4.9.2", "needs 4.56 or later"),
        ("liger-kernel", "0.8.6", "follows 0.8.5; what another version computes may have changed"),
    ],
)
def test_versions(monkeypatch, name, version, problem):
    monkeypatch.setattr(metadata, "version", lambda _: version)
    finding = doctor._library(library(name))
    fits = "does not fit" if problem else "fits"
    assert finding.state == f"{version}, {library(name).integration} {fits}"
    assert finding.advice == (f"{library(name).integration}: {problem}" if problem else "")


@pytest.mark.parametrize(
    ("fits", "state"), [("", "prefuse.trl does not fit"), ("DPOTrainer", "prefuse.trl fits DPOTrainer")]
)
def test_a_trl_that_has_moved(monkeypatch, fits, state):
    monkeypatch.setattr("prefuse.trl.compatibility.fit", lambda: (fits, "SFTTrainer: trl 9 has not this"))
    finding = doctor._library(library("trl"))
    assert finding.state.endswith(f", {state}")
    assert finding.advice == "prefuse.trl: SFTTrainer: trl 9 has not this"


def test_missing(monkeypatch):
    def nothing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", nothing)
    assert doctor._library(library("peft")) == doctor.Finding("peft", "not installed")
