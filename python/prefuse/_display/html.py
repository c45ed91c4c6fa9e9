"""What objects show of themselves: HTML and LaTeX in a notebook, text where nothing else would show it.

The HTML is small. Its styles stand in the elements, as notebooks drop style sheets, and neither text nor ground is
given a colour, so that it is readable in a light and in a dark theme.
"""

from __future__ import annotations

import html
import sys
from collections.abc import Iterable, Sequence

LONGEST_TABLE = 20
"""Rows from which on a table scrolls."""

_TABLE = "border-collapse:collapse;margin:4px 0"
_CELL = "text-align:left;padding:2px 8px"
_HEADING = f"{_CELL};border-bottom:1px solid rgba(128,128,128,0.6)"
_SCROLLED = "max-height:26em;overflow:auto;display:inline-block;max-width:100%"


class Latex(str):
    """A formula: text like any other, which a notebook typesets."""

    __slots__ = ()

    def _repr_latex_(self) -> str:
        return f"$${self}$$"


class Markup(str):
    """Text that is HTML already; everything else is escaped on its way into HTML."""

    __slots__ = ()


def markup(text: object) -> Markup:
    """The text as HTML."""
    return text if isinstance(text, Markup) else Markup(html.escape(str(text)))


def code(text: object) -> Markup:
    """A name as it stands in a program."""
    return Markup(f"<code>{markup(text)}</code>")


def bold(text: object) -> Markup:
    """A title, or what is not to be overlooked."""
    return Markup(f"<b>{markup(text)}</b>")


def paper(arxiv: str | None, text: str = "") -> Markup:
    """A link to a paper by its arXiv id; nothing for None."""
    if not arxiv:
        return Markup("")
    return Markup(f'<a href="https://arxiv.org/abs/{markup(arxiv)}" target="_blank">{markup(text or arxiv)}</a>')


def table(rows: Iterable[Sequence[object]], headings: Sequence[str] = ()) -> Markup:
    """A table of escaped cells, which scrolls where it is long; without headings its first column heads the rows."""
    head = "".join(f'<th style="{_HEADING}">{markup(heading)}</th>' for heading in headings)
    lines = [f"<tr>{head}</tr>"] if head else []
    lines += [f"<tr>{''.join(_cells(row, headed=not head))}</tr>" for row in rows]
    found = f'<table style="{_TABLE}">{"".join(lines)}</table>'
    return Markup(f'<div style="{_SCROLLED}">{found}</div>' if len(lines) > LONGEST_TABLE else found)


def _cells(row: Sequence[object], headed: bool) -> list[str]:
    tags = ["th" if headed else "td", *["td"] * len(row)]
    return [f'<{tag} style="{_CELL}">{markup(cell)}</{tag}>' for tag, cell in zip(tags, row, strict=False)]


def announce(result: object) -> None:
    """Prints a result, unless at a prompt: Python's, IPython's or a notebook's show what a call returns."""
    if not hasattr(sys, "ps1"):
        print(result)
