"""`python -m prefuse demo`: its options, and the order of things."""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path
from typing import Any

import prefuse.language as language
import prefuse.objectives as objectives

_DEFAULT_OBJECTIVE = "dpo"
_NEEDED = ("matplotlib", "rich", "transformers")
_LARGE_VOCABULARY = (256, 128256)
_MINUTE = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the demo's options."""
    parser.add_argument("--objective", default=_DEFAULT_OBJECTIVE, help="name of a registered objective (%(default)s)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="hyper",
        help="hyper-parameter of the objective; may be repeated",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=_positive, help="updates of preference training")
    parser.add_argument("--sft-steps", type=_positive, help="updates of supervised training before it")
    parser.add_argument("--sources", type=Path, help="folder of Python sources to read instead of the standard library")
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder of the results (%(default)s)")
    parser.add_argument("--share-prompts", action="store_true", help="compute the prompt of a pair once")
    parser.add_argument("--no-cost", action="store_true", help="skip measuring beside plain PyTorch")


def main(options: argparse.Namespace) -> int:
    """Runs the demo; 0 where it did what it claims, 1 where held-out accuracy did not rise, 2 for unusable options."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"the demo needs {', '.join(missing)}: pip install 'prefuse[demo]'")
        return 2
    try:
        objective = objectives.get(options.objective)
    except ValueError as error:
        print(f"--objective: {error}\nnames: {', '.join(sorted(language.names()))}")
        return 2
    return _run(objective, options)


def _run(objective: language.Objective, options: argparse.Namespace) -> int:
    from rich.console import Console

    from . import cost, job, report
    from .progress import Display
    from .scored import rehearse

    try:
        objective = objective(**_hyper(options.hyper)) if options.hyper else objective
        rehearse(objective)
    except (TypeError, ValueError) as error:
        print(f"--objective {options.objective}: {error}")
        return 2
    console = Console()
    start = time.perf_counter()
    given = {name: value for name in ("steps", "sft_steps", "sources") if (value := getattr(options, name)) is not None}
    settings = job.Settings(seed=options.seed, share_prompts=options.share_prompts, **given)
    outcome = job.run(objective, settings, Display(console))
    costs = []
    if not options.no_cost:
        with Display(console).waiting("measuring beside plain PyTorch"):
            costs = cost.compare([outcome.logits, _LARGE_VOCABULARY])
    options.out.mkdir(parents=True, exist_ok=True)
    report.write_data(options.out / "demo.json", outcome, costs)
    report.draw(options.out / "demo.png", outcome)
    report.print_summary(console, outcome, costs)
    minutes = (time.perf_counter() - start) / _MINUTE
    console.print(f"{minutes:.1f} min; figures in {options.out / 'demo.json'}, plot in {options.out / 'demo.png'}")
    judged = options.objective == _DEFAULT_OBJECTIVE
    return 1 if judged and not report.well_above_chance(outcome) else 0


def _hyper(assignments: list[str]) -> dict[str, Any]:
    """`["beta=0.2"]` as hyper-parameters: numbers, true/false/none, or words."""
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set: got {assignment!r}, expected NAME=VALUE")
        values[name] = _value(text)
    return values


def _value(text: str) -> float | bool | str | None:
    words: dict[str, bool | None] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return float(text)
    except ValueError:
        return text


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {number}, expected 1 or more")
    return number
