"""`python -m prefuse objectives [WORD …]` and `python -m prefuse show NAME`."""

from __future__ import annotations

import argparse
import sys

from prefuse._display.tables import show as show_table
from prefuse.catalogue.entries import catalogue, entry


class Table:
    """The command `objectives`."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Declares its arguments."""
        parser.add_argument("words", nargs="*", metavar="WORD", help="show those in whose page every word occurs")

    @staticmethod
    def main(options: argparse.Namespace) -> int:
        """Prints the table; returns the exit status: 1 where nothing is found."""
        found = catalogue(*options.words)
        if not found:
            print(f"no objective mentions {' and '.join(options.words)}", file=sys.stderr)
            return 1
        show_table(found.title, ("name", "kind", "what it is", "arXiv"), found.rows(), text=("kind", "what it is"))
        return 0


class Page:
    """The command `show`."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Declares its arguments."""
        parser.add_argument("name", metavar="NAME", help="an objective's name or alias")
        parser.add_argument("--latex", action="store_true", help="print the loss and its derivatives as LaTeX")

    @staticmethod
    def main(options: argparse.Namespace) -> int:
        """Prints the page; returns the exit status: 1 where there is no such objective."""
        try:
            found = entry(options.name)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 1
        print(found)
        if options.latex:
            print(f"\n{found.objective.latex()}")
            for column, derivative in found.derivatives().items():
                print(f"\nd/d {column}:  {derivative}")
        return 0
