"""Where a formula is from, as the decorators take it."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ARXIV = re.compile(r"\d{4}\.\d{4,5}|[a-z\-]+(?:\.[A-Z]{2})?/\d{7}")


@dataclass(frozen=True)
class Paper:
    """A paper that proposes a formula.

    Attributes:
        arxiv: its arXiv id without a version; None where it has none.
        title: its title.
        authors: who and when, "Rafailov et al. 2023".

    Raises:
        TypeError: one is no string.
        ValueError: `arxiv` does not look like an arXiv id.
    """

    arxiv: str | None
    title: str | None = None
    authors: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("arxiv", self.arxiv), ("title", self.title), ("authors", self.authors)):
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{name}: expected a string, got {type(value).__name__}")
        if self.arxiv is not None and not _ARXIV.fullmatch(self.arxiv):
            raise ValueError(f"arxiv: expected an id such as '2305.18290', got {self.arxiv!r}")


@dataclass(frozen=True)
class Origin:
    """Paper, place in it, and equal losses of one objective.

    Attributes:
        paper: None where the formula is nobody's in particular.
        equation: where in the paper it stands.
        identities: equal losses, as `left = right where column=value, …`.
    """

    paper: Paper | None = None
    equation: str | None = None
    identities: tuple[str, ...] = ()

    @property
    def citation(self) -> str:
        """Authors, year, arXiv id and equation, as far as they are known."""
        paper = self.paper or Paper(None)
        return ", ".join(filter(None, (paper.authors, paper.arxiv and f"arXiv:{paper.arxiv}", self.equation)))

    def below(self, doc: str | None) -> str | None:
        """A docstring with paper and equal losses below it, for `help`."""
        title = f"{self.paper.title}. " if self.paper and self.paper.title else ""
        parts = [
            doc or "",
            f"Paper: {title}{self.citation}." if self.citation else "",
            f"Equal losses: {'; '.join(self.identities)}." if self.identities else "",
        ]
        return "\n\n".join(filter(None, parts)) or None


def origin_of(name: str, paper: Paper | str | None, equation: str | None, identities: tuple[str, ...]) -> Origin:
    """Check what a decorator is given of an objective's origin.

    Raises:
        TypeError: an argument of another type; a string in the place of several identities among them.
        ValueError: a paper that has no such arXiv id, an equation of no paper, an identity without two sides.
    """
    paper = Paper(paper) if isinstance(paper, str) else paper
    if paper is not None and not isinstance(paper, Paper):
        raise TypeError(f"{name}: paper: expected a Paper or an arXiv id, got {type(paper).__name__}")
    if equation is not None and not isinstance(equation, str):
        raise TypeError(f"{name}: equation: expected a string such as 'eq. 7', got {type(equation).__name__}")
    if equation is not None and paper is None:
        raise ValueError(f"{name}: equation: {equation!r} of which paper? expected paper= as well")
    if not isinstance(identities, tuple | list) or not all(isinstance(one, str) for one in identities):
        raise TypeError(f"{name}: identities: expected a tuple of strings, got {identities!r}")
    for identity in identities:
        if identity.split(" where ")[0].count(" = ") != 1:
            raise ValueError(f"{name}: identities: expected 'left = right', got {identity!r}")
    return Origin(paper, equation, tuple(identities))
