"""`bench device --first-light`: order, budget and files with a pretended device; the first calls on the CPU."""

import json

import pytest
import torch

from prefuse.bench import first_calls, first_light
from prefuse.bench.first_light import Ended

CALLS = "prefuse.bench.first_calls"


class Pretended:
    """A clock, and commands that take the seconds and end as they are told; what was run is kept."""

    def __init__(self, told=None):
        self.now, self.told, self.ran = 0.0, told or {}, []

    def clock(self):
        return self.now

    def run(self, command, seconds):
        name = next((name for name in self.told if name in " ".join(command)), "")
        answers = self.told.get(name, (1, Ended(0, "fine\n")))
        takes, ended = answers.pop(0) if isinstance(answers, list) else answers
        self.ran.append(list(command))
        self.now += min(takes, seconds)
        return ended if takes <= seconds else Ended(None, ended.output)


@pytest.fixture(autouse=True)
def no_checkout(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(first_light.shutil, "which", lambda name: name)


def light(folder, device, budget=600.0):
    status = first_light.first_light(folder, budget, device.run, device.clock)
    report = json.loads((folder / "first_light.json").read_text())
    return status, {step["step"]: step["state"] for step in report["steps"]}


def test_steps_in_the_order_that_loses_least(tmp_path):
    device = Pretended()
    status, states = light(tmp_path / "out", device)
    assert status == 0 and set(states.values()) == {"ok"}
    assert list(states) == ["machine", "doctor", "calls", "rows", "head", "scoring", "machine_after"]
    assert (tmp_path / "out" / "rows.txt").read_text() == "fine\n"
    assert "calls: ok, 1.0 s\n    fine" in (tmp_path / "out" / "summary.txt").read_text()


def test_files_are_there_after_every_step(tmp_path):
    seen = []
    device = Pretended()

    def run(command, seconds):
        kept = tmp_path / "first_light.json"
        seen.append(len(json.loads(kept.read_text())["steps"]) if kept.exists() else 0)
        return device.run(command, seconds)

    first_light.first_light(tmp_path, 600, run, device.clock)
    assert seen == list(range(7))


def test_a_budget_that_ends(tmp_path):
    status, states = light(tmp_path, Pretended({CALLS: (1000, Ended(0, "ok    segment_sum\n"))}), budget=100)
    assert status == 1
    assert states["doctor"] == "ok" and states["calls"] == "cut off, its time was up"
    assert states["rows"] == states["machine_after"] == "left out, no time is left"
    assert (tmp_path / "calls.txt").read_text() == "ok    segment_sum\n"


def test_first_calls_go_on_in_a_fresh_process(tmp_path):
    broken = Ended(first_calls.BROKEN, "ok    segment_sum\nwrong rows 1000 bfloat16: AcceleratorError: misaligned\n")
    device = Pretended({CALLS: [(5, broken), (5, Ended(0, "ok    head\n"))]})
    status, states = light(tmp_path, device)
    assert status == 1 and states["calls"] == "failed" and states["rows"] == "ok"
    assert [command[-2:] for command in device.ran if CALLS in command][1] == [
        "--after",
        "rows 1000 bfloat16",
    ]
    assert (tmp_path / "calls.txt").read_text().endswith("ok    head\n")


def test_a_command_that_is_not_there(tmp_path):
    assert first_light._run([str(tmp_path / "none")], 5).status == 1


def test_every_first_call_is_right_on_the_cpu(monkeypatch, capsys):
    monkeypatch.setattr(first_calls, "calls", lambda device, made=first_calls.calls: made(device))
    assert first_calls.main(["--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(first_calls.calls(torch.device("cpu"))) and all(line.startswith("ok ") for line in lines)
    assert first_calls.main(["--device", "cpu", "--after", "objective"]) == 0
    assert capsys.readouterr().out == "ok    head\nok    sparse head\n"


def test_an_error_is_told_and_a_broken_device_ends_the_process(capsys):
    def fails():
        raise RuntimeError("an illegal memory access\nand more")

    alive = first_calls.run([("one", fails), ("two", lambda: ""), ("three", lambda: "off by 1")], lambda: None)
    assert alive == 1
    assert capsys.readouterr().out.splitlines() == [
        "wrong one: RuntimeError: an illegal memory access",
        "ok    two",
        "wrong three: off by 1",
    ]
    assert first_calls.run([("one", lambda: ""), ("two", lambda: "")], fails) == first_calls.BROKEN
    assert capsys.readouterr().out == "wrong one: RuntimeError: an illegal memory access\n"
