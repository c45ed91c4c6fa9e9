"""`python -m prefuse bench device --first-light OUT`: all that a first run on a device should tell, within a budget.

Steps run one after the other, each in a process of its own with a share of the time: what the machine is, first calls
from the smallest on, bandwidth and rows, head, scoring, then tests where there is a checkout. After each step `OUT`
holds its output, `first_light.json` and `summary.txt`, so that whatever minute the machine is taken away, what was
learnt is kept.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import first_calls

GPU = "name,driver_version,memory.total,clocks.sm,clocks.mem,temperature.gpu,power.draw,mig.mode.current"
TESTS = ("test_both", "test_bits", "test_values_on_device", "test_head", "test_streams")


SECONDS = 600.0
"""The budget unless another is given."""


class Step(NamedTuple):
    """A command and the most seconds it gets."""

    name: str
    command: list[str]
    seconds: float


class Ended(NamedTuple):
    """What became of a command; `status` is None where its time was up."""

    status: int | None
    output: str


Run = Callable[[Sequence[str], float], Ended]


def first_light(out: Path, budget: float, run: Run | None = None, clock: Callable[[], float] = time.monotonic) -> int:
    """Runs the steps into the folder `out`; returns 0 where all ended well, else 1.

    Args:
        out: is made if need be.
        budget: seconds for all; a step gets what is left, and none begins with less than a second.
        run: runs a command within so many seconds.
        clock: seconds that pass.
    """
    run = run or _run
    out.mkdir(parents=True, exist_ok=True)
    until = clock() + budget
    report: dict[str, Any] = {"budget_seconds": budget, "steps": []}
    for step in steps(out):
        left = until - clock()
        if left < 1:
            report["steps"].append({"step": step.name, "state": "left out, no time is left"})
        else:
            begin = clock()
            state, output = _guarded(step, min(left, step.seconds), run, clock)
            (out / f"{step.name}.txt").write_text(output)
            entry = {"step": step.name, "state": state, "seconds": round(clock() - begin, 1), "command": step.command}
            report["steps"].append(entry)
        keep(out, report)
    return 0 if all(step["state"] == "ok" for step in report["steps"]) else 1


def steps(out: Path) -> list[Step]:
    """What is done, in the order that loses least when it is cut off."""
    python = [sys.executable, "-m"]

    def bench(name: str, parts: str, *more: str) -> list[str]:
        options = ["--rounds", "10", "--only", parts, "--results", str(out / name), *more]
        return [*python, "prefuse", "bench", "device", *options]

    found = [
        Step("doctor", [*python, "prefuse", "doctor"], 60),
        Step("calls", [*python, "prefuse.bench.first_calls"], 180),
        Step("rows", bench("rows", "bandwidth,rows", "--dtypes", "bf16,f32", "--budget-seconds", "120"), 200),
        Step("head", bench("head", "head"), 120),
        Step("scoring", bench("scoring", "scoring,denoising"), 60),
    ]
    if shutil.which("nvidia-smi"):
        asked = Step("machine", ["nvidia-smi", f"--query-gpu={GPU}", "--format=csv"], 20)
        found = [asked, *found, asked._replace(name="machine_after")]
    if Path("tests/gpu").is_dir():
        files = [f"tests/gpu/{name}.py" for name in TESTS]
        found.insert(len(found) - 1, Step("tests", [*python, "pytest", "-x", *files], 240))
    return found


def keep(out: Path, report: dict[str, Any]) -> None:
    """Writes the report as JSON, and as text with the last lines of each step."""
    (out / "first_light.json").write_text(json.dumps(report, indent=2) + "\n")
    lines = []
    for step in report["steps"]:
        lines.append(f"{step['step']}: {step['state']}" + (f", {step['seconds']} s" if "seconds" in step else ""))
        text = out / f"{step['step']}.txt"
        if "seconds" in step:
            lines += [f"    {line}" for line in text.read_text().splitlines()[-40:]]
    (out / "summary.txt").write_text("\n".join(lines) + "\n")


def _guarded(step: Step, seconds: float, run: Run, clock: Callable[[], float]) -> tuple[str, str]:
    """How a step ended, and its output. First calls go on in a fresh process behind one that broke its device."""
    until, command, output = clock() + seconds, step.command, ""
    wrong = False
    while True:
        ended = run(command, max(until - clock(), 1))
        output += ended.output
        wrong = wrong or ended.status != 0
        last = next((line for line in reversed(ended.output.splitlines()) if line.startswith("wrong ")), None)
        if step.name != "calls" or ended.status != first_calls.BROKEN or last is None or clock() >= until:
            break
        command = [*step.command, "--after", last.removeprefix("wrong ").split(":")[0].strip()]
    if ended.status is None:
        return "cut off, its time was up", output
    return ("failed" if wrong else "ok"), output


def _run(command: Sequence[str], seconds: float) -> Ended:
    try:
        done = subprocess.run(
            command, timeout=seconds, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    except subprocess.TimeoutExpired as late:
        said = late.stdout or b""
        return Ended(None, said.decode(errors="replace") if isinstance(said, bytes) else said)
    except OSError as error:
        return Ended(1, f"{error}\n")
    return Ended(done.returncode, done.stdout)
