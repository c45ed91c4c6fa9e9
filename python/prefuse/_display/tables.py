"""Tables on the terminal: rich's where it is installed, aligned columns where it is not."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence


def show(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table; the first column is aligned to the left, the others to the right."""
    if importlib.util.find_spec("rich") is None:
        print(plain(title, headings, rows))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for position, heading in enumerate(headings):
        table.add_column(heading, justify="right" if position else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def plain(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table as text."""
    lines = [headings, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join([title, *(_aligned(line, widths) for line in lines), ""])


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        cell.rjust(width) if at else cell.ljust(width)
        for at, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()
