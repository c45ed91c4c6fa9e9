"""`python -m prefuse inspect FILE`: the checks of `prefuse.curate.inspect` on a file."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import prefuse.viz as viz
from prefuse._display.tables import show
from prefuse.curate.inspection import inspect
from prefuse.curate.inspection.data import COLUMNS
from prefuse.curate.inspection.results import Inspection


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `inspect`."""
    parser.add_argument("file", type=Path, metavar="FILE", help="JSON lines, JSON, CSV, Parquet, or a datasets folder")
    parser.add_argument(
        "--tokenizer",
        metavar="NAME_OR_FOLDER",
        help="tokenise with it (smollm2: the demo's), and check prefix and template",
    )
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME=COLUMN",
        help=f"what a column is called in the file, nothing to leave it out ({', '.join(COLUMNS)}); may be repeated",
    )
    parser.add_argument("--sample", type=int, default=10_000, help="rows to tokenise (%(default)s)")
    parser.add_argument("--max-length", type=int, help="tokens of prompt and response that training keeps")
    parser.add_argument(
        "--tolerance", type=float, default=0.0, help="share of rows that a check may find (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sample (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write everything there, too")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write a page of plots there, inspection.png")


def main(options: argparse.Namespace) -> int:
    """Prints what was found; 0 where that is nothing, 1 where a check found something, 2 for an unusable file."""
    try:
        found = inspect(
            options.file,
            options.tokenizer,
            columns=_columns(options.column),
            sample=options.sample,
            max_length=options.max_length,
            tolerance=options.tolerance,
            seed=options.seed,
        )
        _print(found)
        _write(found, options.json, options.plots)
    except (OSError, TypeError, ValueError, ImportError) as error:
        print(f"inspect: {error}", file=sys.stderr)
        return 2
    return 0 if found.ok else 1


def _columns(assignments: list[str]) -> dict[str, str | None]:
    columns: dict[str, str | None] = {}
    for assignment in assignments:
        name, equals, column = assignment.partition("=")
        if not equals:
            raise ValueError(f"--column: got {assignment!r}, expected NAME=COLUMN")
        columns[name] = column or None
    return columns


def _print(found: Inspection) -> None:
    show(found.title, ("check", "found", "of", "what"), found.table_rows(), text=("what",))
    print("\n".join(found.notes()))


def _write(found: Inspection, out: Path | None, plots: Path | None) -> None:
    if out is not None:
        out.write_text(json.dumps(found.as_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if plots is not None:
        figure = viz.inspection(found)
        plots.mkdir(parents=True, exist_ok=True)
        figure.savefig(plots / "inspection.png", dpi=150)
        print(f"plots: {plots / 'inspection.png'}")
