"""The line that a training begins with: once for a model, with plan, rows and what was spared."""

from __future__ import annotations

import logging
import re

import pytest

import prefuse.trl
from prefuse._display.notes import note
from tests.trl.running import make, train

pytestmark = pytest.mark.filterwarnings("ignore")

LOG = "prefuse.trl.training_line"


def lines_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name == LOG]


@pytest.mark.parametrize("kind", ["DPO", "CPO", "KTO", "ORPO"])
def test_trls_trainers_say_it_once(kind, tmp_path, caplog):
    def made():
        trainer = make(kind, tmp_path)
        prefuse.trl.accelerate(trainer)
        return trainer

    train(made, "as it is")
    (line,) = lines_of(caplog)
    assert line.startswith("prefuse: TRL's trainer, LM head without whole logits: plan ")
    scored, tokens = map(int, re.search(r"(\d+) of (\d+) tokens scored over \d+ classes", line).groups())
    assert 0 < scored <= tokens
    assert "prompts shared" not in line and "sparse" not in line


@pytest.mark.parametrize("kind", ["DPO", "CPO"])
def test_what_is_spared(kind, tmp_path, caplog):
    def made():
        trainer = make(kind, tmp_path)
        prefuse.trl.accelerate(trainer, sparse=0.01, share_prompts=True)
        return trainer

    train(made, "as it is")
    (line,) = lines_of(caplog)
    assert "plan lists (1 GEMMs)" in line and re.search(r"sparse gradients: \d+ entries a row for \d+", line)
    assert re.search(r"prompts shared: \d+ of \d+ tokens computed", line)


def test_preference_trainer_says_it(tmp_path, caplog):
    train(lambda: make("Preference", tmp_path, objective="simpo", share_prompts=True), "plain")
    (line,) = lines_of(caplog)
    assert line.startswith("prefuse: simpo, LM head without whole logits: plan ")
    assert "prompts shared: " in line


def test_it_can_be_left_out(tmp_path, caplog):
    log = logging.getLogger(LOG)
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        train(lambda: make("Preference", tmp_path, objective="simpo"), "plain")
    finally:
        log.setLevel(before)
    assert not lines_of(caplog)


def test_it_is_shown_without_any_handler_and_by_the_first_process_alone(capsys, monkeypatch):
    log = logging.Logger("of its own", logging.INFO)
    note(log, "a line")
    assert capsys.readouterr().err == "a line\n" and not log.handlers
    monkeypatch.setenv("RANK", "1")
    note(log, "another")
    assert capsys.readouterr().err == ""
