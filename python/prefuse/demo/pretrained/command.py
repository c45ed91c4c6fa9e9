"""`python -m prefuse demo --model …`: its options, and the order of things."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from rich.console import Console
from transformers.utils import logging

from prefuse.language import Objective
from prefuse.linear.sparse import as_sparse

from ..progress import Display
from . import cost, job, report
from .policy import check_fed

_MINUTE = 60.0


def run(objective: Objective, options: argparse.Namespace) -> int:
    """Runs the demo on a pretrained model; 0 where it changed as asked, 1 where not, 2 for what cannot be run."""
    console = Console()
    start = time.perf_counter()
    logging.disable_progress_bar()  # of loading; the demo has its own
    try:
        check_fed(objective)
        as_sparse(options.sparse)
        done = job.run(objective, _settings(options, job.Settings), Display(console))
    except (OSError, TypeError, ValueError, ImportError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    costs = None
    if not options.no_cost:
        with Display(console).waiting("measuring a step of TRL's, of plain PyTorch and of prefuse"):
            costs = cost.measure(done.passes, done.tokenizer, done.batch)
    seconds = time.perf_counter() - start
    options.out.mkdir(parents=True, exist_ok=True)
    report.write_data(options.out / "demo.json", done.outcome, costs, seconds, _peak())
    report.draw(options.out / "demo.png", done.outcome, costs)
    report.print_summary(console, done.outcome, costs)
    console.print(
        f"{seconds / _MINUTE:.1f} min; figures in {options.out / 'demo.json'}, plot in {options.out / 'demo.png'}"
    )
    return 0 if report.changed(done.outcome) else 1


def _settings(options: argparse.Namespace, kind: Any) -> Any:
    names = ("model", "data", "seed", "steps", "pairs", "rate", "max_length", "share_prompts", "sparse")
    return kind(**{name: value for name in names if (value := getattr(options, name)) is not None})


def _peak() -> int | None:
    """The most resident memory so far, in bytes."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
