"""The catalogue as documentation: ``python tools/objectives_page.py docs`` writes objectives.md; the site has pictures.

The page is made of what the objectives declare, so it is never edited by hand; a test fails where it is stale.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib

from prefuse import viz
from prefuse.catalogue.entries import Entry, catalogue
from prefuse.scoring.settings import show

_KINDS = {
    "pair": ("Pairs", "a chosen and a rejected response to one prompt"),
    "point": ("Single responses", "each with a label, a score or a target"),
    "group": ("Lists", "several responses to one prompt"),
    "token": ("Tokens", "a loss for every token of a response"),
}

LONGEST_GRADIENT = 3000
"""Characters of LaTeX up to which a gradient is for reading."""

_HEAD = """# The catalogue

Made from the objectives themselves by `python tools/objectives_page.py docs`; not edited by hand.

`prefuse.objectives.show("simpo")` or `python -m prefuse show simpo` shows one, `prefuse.objectives.list("length")` or
`python -m prefuse objectives length` those that mention a word. Log-probabilities are sums over a response, in nats.
What has been checked of each stands in [the table of evidence](evidence.md), which one to take in
[choosing](choosing.md), what the papers propose in [papers](papers.md). "Equal losses" hold for every batch; `where`
sets every column in whose name the word occurs.
"""


_LIBRARIES = {"original": "the authors' code", "trl-1.16": "TRL 1.16", "trl-0.24": "TRL 0.24", "liger": "Liger 0.8"}

_WHO_MEANS_WHAT = """## Who means what

The same name stands for different formulas in different libraries and versions. The default here is the paper's;
`variant=` takes another, as in `ipo(variant="trl-1.16")`, and is nothing but the hyper-parameters listed: its numbers
are defaults, its words, flags and `None` are fixed. An empty cell: that library does not have the objective, or no
variant is declared for it.
"""


def markdown() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *_contents(), *_meanings(), *_sections()]) + "\n"


def _contents() -> Iterator[str]:
    yield "| objective | kind | what it is | paper |"
    yield "| --- | --- | --- | --- |"
    for found in catalogue():
        title = _cell(found.title or "")
        paper = f"[{title}](https://arxiv.org/abs/{found.paper})" if found.paper else title or "none"
        yield f"| [{found.name}](#{found.name}) | {found.kind} | {_cell(found.summary)} | {paper} |"
    yield ""


def _meanings() -> Iterator[str]:
    """What libraries mean by the objectives that declare variants."""
    yield _WHO_MEANS_WHAT
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
        yield f"| [{found.name}](#{found.name}) | {' | '.join(cells)} |"
    yield ""


def _code(settings: str | None) -> str:
    """Hyper-parameters as code, words as words."""
    if settings is None:
        return ""
    return "as the paper" if settings == "as the paper" else f"`{settings}`"


def _sections() -> Iterator[str]:
    for kind, (title, what) in _KINDS.items():
        entries = [found for found in catalogue() if found.kind == kind]
        if entries:
            yield f"## {title}: {what}\n"
        for found in entries:
            yield from _section(found)


def _section(found: Entry) -> Iterator[str]:
    yield f"### {found.name}\n"
    aliases = f" Also found as {', '.join(f'`{alias}`' for alias in found.aliases)}." if found.aliases else ""
    citation = found.citation.replace(f"arXiv:{found.paper}", _link(found))
    citation = f" {citation}." if citation else ""
    title = f" *{found.title}*:" if found.title else ""
    yield f"**{found.summary}.**{title}{citation}{aliases}\n"
    yield f"$$\n{found.objective.latex()}\n$$\n"
    yield f"Takes {', '.join(f'`{name}` ({what})' for name, what in found.inputs.items())}.\n"
    if found.parameters:
        yield f"Hyper-parameters: {', '.join(f'`{name}` = {value}' for name, value in found.parameters.items())}.\n"
    if found.variants:
        yield f"Variants: {'; '.join(f'`{name}` {_code(value)}' for name, value in found.variants.items())}.\n"
    if found.identities:
        yield f"Equal losses: {'; '.join(f'`{identity}`' for identity in found.identities)}.\n"
    if found.notes:
        yield f"{found.notes.replace('``', '`')}\n"
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


if __name__ == "__main__":
    target = Path(sys.argv[1])
    (target / "objectives.md").write_text(markdown(), encoding="utf-8")
