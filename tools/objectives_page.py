"""The catalogue as documentation: a page for each family, and the tables of docs/objectives.md, as Markdown.

Made of what the objectives declare, when the site is built (`docs/_site/generated.py`); nothing of it is kept in git.
``python -m tools.objectives_page DIRECTORY`` writes the pages.
"""

from __future__ import annotations

import importlib
import inspect
import io
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import matplotlib

from prefuse import viz
from prefuse.catalogue.entries import Entry, catalogue
from prefuse.scoring.settings import show

LONGEST_GRADIENT = 3000
"""Characters of LaTeX up to which a gradient is for reading."""

FOLDER = "objectives"
"""Where the pages are, below docs."""

_LIBRARIES = {"original": "the authors' code", "trl-1.16": "TRL 1.16", "trl-0.24": "TRL 0.24", "liger": "Liger 0.8"}


@cache
def families() -> dict[str, tuple[Entry, ...]]:
    """The catalogue's objectives by the module of `prefuse.objectives` they are written in."""
    found: dict[str, list[Entry]] = {}
    for entry in catalogue():
        package, _, family = getattr(entry.objective.__wrapped__, "__module__", "").rpartition(".")
        if package == "prefuse.objectives":
            found.setdefault(family, []).append(entry)
    return {family: tuple(found[family]) for family in sorted(found)}


def path_of(family: str) -> str:
    """The path of a family's page below docs."""
    return f"{FOLDER}/{family}.md"


def picture_of(found: Entry) -> str:
    """The path of an objective's picture below docs."""
    return f"{FOLDER}/{found.name}.svg"


def page(family: str) -> str:
    """The page of one family: what its module says, then its objectives."""
    title, _, notation = (inspect.getdoc(importlib.import_module(f"prefuse.objectives.{family}")) or "").partition("\n")
    lines = [
        f"# {title.rstrip('.')}",
        f"Of `prefuse.objectives.{family}`. [All objectives](../objectives.md).",
        _code_of(notation),
    ]
    sections = (line for found in families()[family] for line in _section(found))
    return "\n\n".join(filter(None, map(str.strip, lines))) + "\n\n" + "\n".join(sections) + "\n"


def linked(markdown: str) -> str:
    """Markdown whose links to ``objectives.md#name`` lead to the page of the objective's family."""
    known = {found.name: family for family, entries in families().items() for found in entries}

    def lead(match: re.Match[str]) -> str:
        folder, name = match.groups()
        return f"]({folder}{path_of(known[name])}#{name})" if name in known else match[0]

    return re.sub(r"\]\(((?:\.\./)*)objectives\.md#(\w+)\)", lead, markdown)


def contents() -> str:
    """A table of all objectives."""
    return "\n".join(_contents())


def meanings() -> str:
    """A table of what libraries mean by the objectives that declare variants."""
    return "\n".join(_meanings())


def _contents() -> Iterator[str]:
    yield "| objective | kind | what it is | paper |"
    yield "| --- | --- | --- | --- |"
    for found in catalogue():
        title = _cell(found.title or "")
        paper = f"[{title}](https://arxiv.org/abs/{found.paper})" if found.paper else title or "none"
        yield f"| [{found.name}](objectives.md#{found.name}) | {found.kind} | {_cell(found.summary)} | {paper} |"


def _meanings() -> Iterator[str]:
    yield f"| objective | paper | {' | '.join(_LIBRARIES.values())} | others |"
    yield f"| --- | --- |{' --- |' * len(_LIBRARIES)} --- |"
    for found in (entry for entry in catalogue() if entry.variants):
        touched = {name for settings in found.objective.variants.values() for name in settings}
        paper = ", ".join(
            f"{name}={show(value)}" for name, value in found.objective.parameters.items() if name in touched
        )
        known = [_code(found.variants.get(variant)) for variant in _LIBRARIES]
        others = [f"{name}: {_code(value)}" for name, value in found.variants.items() if name not in _LIBRARIES]
        cells = [_code(paper or "as the paper"), *known, "; ".join(others)]
        yield f"| [{found.name}](objectives.md#{found.name}) | {' | '.join(cells)} |"


def _code(settings: str | None) -> str:
    """Hyper-parameters as code, words as words."""
    if settings is None:
        return ""
    return "as the paper" if settings == "as the paper" else f"`{settings}`"


def _section(found: Entry) -> Iterator[str]:
    yield f"## {found.name}\n"
    aliases = f" Also found as {', '.join(f'`{alias}`' for alias in found.aliases)}." if found.aliases else ""
    citation = found.citation.replace(f"arXiv:{found.paper}", _link(found))
    citation = f" {citation}." if citation else ""
    title = f" *{found.title}*:" if found.title else ""
    yield f"**{found.summary}.**{title}{citation}{aliases}\n"
    yield f"$$\n{found.objective.latex()}\n$$\n"
    if has_picture(found):
        yield f"![loss and gradient weight against the margin]({found.name}.svg)\n"
    yield f"Takes {', '.join(f'`{name}` ({what})' for name, what in found.inputs.items())}.\n"
    if found.parameters:
        yield f"Hyper-parameters: {', '.join(f'`{name}` = {value}' for name, value in found.parameters.items())}.\n"
    if found.variants:
        yield f"Variants: {'; '.join(f'`{name}` {_code(value)}' for name, value in found.variants.items())}.\n"
    if found.identities:
        yield f"Equal losses: {'; '.join(f'`{identity}`' for identity in found.identities)}.\n"
    if found.notes:
        yield f"{_code_of(found.notes)}\n"
    derivatives = found.derivatives()
    if derivatives and sum(map(len, derivatives.values())) <= LONGEST_GRADIENT:
        yield "<details><summary>gradient</summary>\n"
        yield from (f"`{column}`\n\n$$\n{derivative}\n$$\n" for column, derivative in derivatives.items())
        yield "</details>\n"
    elif derivatives:
        yield f"The gradient is long: `python -m prefuse show {found.name} --latex` prints it.\n"


def has_picture(found: Entry) -> bool:
    """Whether it is a pair objective of log-ratios alone, which can be drawn against the margin."""
    levels = {info.level for info in found.objective.columns.values()}
    return found.kind == "pair" and not any(level.startswith("token") for level in levels)


def picture(found: Entry) -> bytes:
    """Loss and gradient weight against the margin, as SVG."""
    drawn = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "prefuse", "svg.fonttype": "none"}):
        viz.margin(found.objective, points=121).savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()


def _link(found: Entry) -> str:
    return f"[arXiv:{found.paper}](https://arxiv.org/abs/{found.paper})" if found.paper else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _code_of(text: str) -> str:
    """Docstrings' marks for code as Markdown's."""
    return text.replace("``", "`")


if __name__ == "__main__":
    (Path(sys.argv[1]) / FOLDER).mkdir(parents=True, exist_ok=True)
    for family in families():
        (Path(sys.argv[1]) / path_of(family)).write_text(page(family), encoding="utf-8")
