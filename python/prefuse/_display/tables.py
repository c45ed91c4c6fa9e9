"""Tables on the terminal: rich's where it is installed, aligned columns where it is not."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence


def show(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], *, text: Sequence[str] = ()) -> None:
    """Prints a table, aligned to the right but for the first column and those whose headings are in `text`."""
    if importlib.util.find_spec("rich") is None:
        print(plain(title, headings, rows, text=text))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title)
    for position, heading in enumerate(headings):
        left = position == 0 or heading in text
        # Text takes the lines it needs, and leaves numbers and names the width that they need.
        table.add_column(heading, justify="left" if left else "right", overflow="fold", no_wrap=heading not in text)
    for row in rows:
        table.add_row(*map(Text, row))  # what looks like rich's markup is data
    Console().print(table)


def plain(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], *, text: Sequence[str] = ()) -> str:
    """The table as text, columns as in `show`."""
    lines = [headings, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    left = [position == 0 or heading in text for position, heading in enumerate(headings)]
    return "\n".join([title, *(_aligned(line, widths, left) for line in lines), ""])


def _aligned(line: Sequence[str], widths: Sequence[int], left: Sequence[bool]) -> str:
    cells = [
        cell.ljust(width) if to_left else cell.rjust(width)
        for cell, width, to_left in zip(line, widths, left, strict=True)
    ]
    return "  ".join(cells).rstrip()
