"""`python -m prefuse dashboard RUN`: what a training has logged, as numbers, signs and a picture."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import prefuse.viz as viz
from prefuse._display.tables import show
from prefuse.runs.reading import read
from prefuse.runs.run import Run
from prefuse.runs.signs import signs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `dashboard`."""
    parser.add_argument(
        "source", metavar="RUN", help="an output folder, TensorBoard's files, trainer_state.json, trackio:PROJECT/RUN"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="draw it there, as .png, .svg or .pdf")
    parser.add_argument("--every", type=float, metavar="SECONDS", help="look again so often, until interrupted")


def main(options: argparse.Namespace) -> int:
    """Prints first, last and extreme values and the signs; 2 for what cannot be read."""
    try:
        while True:
            _look(read(options.source), options.out)
            if options.every is None:
                return 0
            time.sleep(options.every)
    except (OSError, TypeError, ValueError, ImportError) as error:
        print(f"dashboard: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0


def _look(run: Run, out: Path | None) -> None:
    rows = [
        (name, str(found.steps.size), *(f"{value:.4g}" for value in _summary(found.values)))
        for name, found in sorted(run.series.items())
    ]
    show(f"{run.name}, step {run.last_step}", ("what", "values", "first", "last", "least", "most"), rows)
    for sign in signs(run):
        source = f" ({sign.source})" if sign.source else ""
        print(f"{'!' if sign.warning else '·'} {sign.name}: {sign.what}: {sign.advice}{source}")
    if out is not None:
        viz.dashboard(run).savefig(out, dpi=150)
        print(f"drawn: {out}")


def _summary(values: NDArray[np.float64]) -> tuple[float, float, float, float]:
    finite = values[np.isfinite(values)]
    extremes = (float(finite.min()), float(finite.max())) if finite.size else (np.nan, np.nan)
    return float(values[0]), float(values[-1]), *extremes
