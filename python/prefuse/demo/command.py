"""`python -m prefuse demo`: its options, and the order of things."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

import prefuse.language as language
import prefuse.objectives as objectives
from prefuse._pretrained.smollm2 import SMOLLM2

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
    parser.add_argument("--no-cost", action="store_true", help="skip the comparison with plain PyTorch")
    real = parser.add_argument_group("a pretrained model, trained with LoRA, in the place of the small one")
    real.add_argument("--model", metavar="NAME", help=f"{SMOLLM2}, a folder, or a name on a hub")
    real.add_argument(
        "--data",
        metavar="FILE",
        help="pairs: JSON lines, JSON, CSV, Parquet, a folder that datasets saved, or a data set's name; without it "
        "questions of our own and a rule that judges the answers",
    )
    real.add_argument("--pairs", type=_positive, help="pairs per update")
    real.add_argument("--rate", type=float, help="highest learning rate")
    real.add_argument("--max-length", type=_positive, help="tokens of prompt and response")
    real.add_argument("--sparse", type=float, metavar="EPS", help="sparse gradients of the head, such as 0.000244")


def main(options: argparse.Namespace) -> int:
    """Runs the demo; 0 where it did what it claims, 1 where held-out accuracy did not rise, 2 for unusable options."""
    if wrong := _not_together(options):
        print(f"demo: {wrong}", file=sys.stderr)
        return 2
    extra, needed = ("demo", _NEEDED) if options.model is None else ("real", (*_NEEDED, "peft"))
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        print(f"the demo needs {', '.join(missing)}: pip install 'prefuse[{extra}]'")
        return 2
    try:
        objective = objectives.get(options.objective)
    except ValueError as error:
        print(f"--objective: {error}\nnames: {', '.join(sorted(language.names()))}")
        return 2
    return _run(objective, options)


def _run(objective: language.Objective, options: argparse.Namespace) -> int:
    from .scored import rehearse

    try:
        objective = objective(**_hyper(options.hyper)) if options.hyper else objective
        rehearse(objective)
    except (TypeError, ValueError) as error:
        print(f"--objective {options.objective}: {error}")
        return 2
    if options.model is not None:
        from .pretrained import command

        return command.run(objective, options)
    return _run_small(objective, options)


def _run_small(objective: language.Objective, options: argparse.Namespace) -> int:
    from rich.console import Console

    from . import cost, job, report
    from .progress import Display

    console = Console()
    start = time.perf_counter()
    given = {name: value for name in ("steps", "sft_steps", "sources") if (value := getattr(options, name)) is not None}
    settings = job.Settings(seed=options.seed, share_prompts=options.share_prompts, **given)
    outcome = job.run(objective, settings, Display(console))
    costs = []
    if not options.no_cost:
        with Display(console).waiting("comparing with plain PyTorch"):
            costs = cost.compare([outcome.logits, _LARGE_VOCABULARY])
    options.out.mkdir(parents=True, exist_ok=True)
    report.write_data(options.out / "demo.json", outcome, costs)
    report.draw(options.out / "demo.png", outcome)
    report.print_summary(console, outcome, costs)
    minutes = (time.perf_counter() - start) / _MINUTE
    console.print(f"{minutes:.1f} min; figures in {options.out / 'demo.json'}, plot in {options.out / 'demo.png'}")
    judged = options.objective == _DEFAULT_OBJECTIVE
    return 1 if judged and not report.well_above_chance(outcome) else 0


_OF_SMALL = ("sft_steps", "sources")
_OF_PRETRAINED = ("data", "pairs", "rate", "max_length", "sparse")


def _not_together(options: argparse.Namespace) -> str:
    """What of the options does not go with the model asked for; "" where all do."""
    wrong, why = (_OF_PRETRAINED, "needs --model") if options.model is None else (_OF_SMALL, "does not go with --model")
    for name in wrong:
        if getattr(options, name) is not None:
            return f"--{name.replace('_', '-')} {why}"
    if options.rate is not None and not options.rate > 0.0:
        return f"--rate: expected a number above 0, got {options.rate}"
    return ""


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
