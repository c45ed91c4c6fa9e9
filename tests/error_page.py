"""docs/errors.md as the tests read it."""

from __future__ import annotations

import pathlib
import re

PAGE = (pathlib.Path(__file__).parents[1] / "docs" / "errors.md").read_text(encoding="utf-8")
HEAD = "## The fused head"
"""Where the tables of the fused head begin."""

_ROW = re.compile(r"^\| (.+?) \| (\w+Error) \| `(.+)`( …)? \|$", re.MULTILINE)


def rows(part: str) -> list[tuple[str, str, str, str | None]]:
    """What is passed, what it raises, the message, and whether that goes on."""
    return [match.groups() for match in _ROW.finditer(part)]
