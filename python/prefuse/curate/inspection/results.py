"""What an inspection found, as objects that print themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefuse._display.html import bold, table
from prefuse._display.tables import plain

EXAMPLES = 3
"""How many examples a check keeps."""
_LONGEST = 90


class Example(NamedTuple):
    """A row that a check found, and what about it."""

    row: int
    text: str


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: "duplicate", "contradiction", "identical", "empty", "truncated", "prefix", "length", "turns", "template".
        count: rows found; 0 is clean.
        of: rows looked at; 0 where the check does not apply or needs a tokenizer.
        what: what was found, or why nothing was looked at.
        advice: what to do; empty where nothing is to be done.
        examples: a few of the rows.
        numbers: what else was measured, by name.
    """

    name: str
    count: int
    of: int
    what: str
    advice: str = ""
    examples: tuple[Example, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Of the rows looked at."""
        return self.count / self.of if self.of else 0.0


@dataclass(frozen=True, repr=False, eq=False)
class Inspection:
    """What `inspect` found; prints as a table and, below it, what to do.

    Attributes:
        kind: "pairs", "labelled" or "lists".
        messages: whether prompts and responses are messages rather than text.
        rows: how many there are.
        sampled: at how many of them the checks looked that need tokens, or lengths in words.
        checks: in the order of their names above.
        unit: of lengths: "tokens" with a tokenizer, "characters" without.
        lengths: of responses by role, of the sampled rows.
        prompt_lengths: of prompts of the sampled rows.
        shared: the share of the rows' tokens (or characters) that `share_prompts=True` spares where the responses of a
            row are in one batch.
        tolerance: the share of rows that a check may find while `ok` stays True.
    """

    kind: str
    messages: bool
    rows: int
    sampled: int
    checks: tuple[Check, ...]
    unit: str
    lengths: Mapping[str, NDArray[np.int64]]
    prompt_lengths: NDArray[np.int64]
    shared: float
    tolerance: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether no check found more than `tolerance`."""
        return not self.found

    @property
    def found(self) -> tuple[Check, ...]:
        """The checks that found more than `tolerance`."""
        return tuple(check for check in self.checks if check.count and check.share > self.tolerance)

    def __getitem__(self, name: str) -> Check:
        """The check of that name; KeyError for another."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"no check {name!r}; there are {', '.join(check.name for check in self.checks)}")

    @property
    def title(self) -> str:
        """What was inspected, in a line."""
        return f"{self.rows} rows of {self.kind}, {'messages' if self.messages else 'text'}"

    def table_rows(self) -> list[tuple[str, str, str, str]]:
        """(check, rows found, rows looked at, what) of each check."""
        return [(check.name, *_counts(check), check.what) for check in self.checks]

    def notes(self) -> list[str]:
        """What to do and examples, for each check that found something; then lengths and what prompts repeat."""
        lines = []
        for check in self.found:
            lines.append(f"{check.name}: {check.advice}")
            lines += [f"  row {row}: {text}" for row, text in check.examples]
        return [*lines, *self._measured()]

    def _measured(self) -> Iterable[str]:
        for role, lengths in {"prompt": self.prompt_lengths, **self.lengths}.items():
            if len(lengths):
                low, middle, high = np.quantile(lengths, [0.05, 0.5, 0.95]).astype(int)
                yield f"{role}: median {middle} {self.unit}, 5 % below {low}, 5 % above {high}, longest {lengths.max()}"
        if self.kind != "labelled":
            yield f"share_prompts=True spares {self.shared:.0%} of the {self.unit} or more: what a row repeats"

    def as_dict(self) -> dict[str, Any]:
        """Everything but the arrays, for JSON."""
        checks = {
            check.name: {
                "count": check.count,
                "of": check.of,
                "what": check.what,
                "advice": check.advice,
                "examples": [{"row": row, "text": text} for row, text in check.examples],
                "numbers": {
                    name: float(value) if np.isfinite(value) else None for name, value in check.numbers.items()
                },
            }
            for check in self.checks
        }
        names = ("kind", "messages", "rows", "sampled", "unit", "shared", "tolerance", "ok")
        return {**{name: getattr(self, name) for name in names}, "checks": checks}

    def __repr__(self) -> str:
        rows = [cells[:3] for cells in self.table_rows()]
        lines = plain(self.title, ("check", "found", "of"), rows).splitlines()
        whats = ["", "what", *(check.what for check in self.checks)]
        text = [f"{line}  {what}".rstrip() for line, what in zip(lines, whats, strict=False)]
        return "\n".join([*text, "", *self.notes()])

    def _repr_html_(self) -> str:
        rows = [
            (bold(name) if check in self.found else name, found, of, what, check.advice, _shown(check.examples))
            for check, (name, found, of, what) in zip(self.checks, self.table_rows(), strict=True)
        ]
        headings = ("check", "found", "of", "what", "what to do", "examples")
        return f"{bold(self.title)}{table(rows, headings)}{table([(line,) for line in self._measured()])}"


def example(row: int, *texts: str) -> Example:
    """A row with its texts, cut to what fits in a line."""
    return Example(int(row), " | ".join(short(text) for text in texts))


def short(text: str, longest: int = _LONGEST) -> str:
    """Text as it is written in Python, its middle left out where it is long."""
    half = longest // 2
    return repr(text if len(text) <= longest else f"{text[:half]}…{text[-half:]}")


def _counts(check: Check) -> tuple[str, str]:
    return (str(check.count), str(check.of)) if check.of else ("–", "–")


def _shown(examples: Iterable[Example]) -> str:
    return "; ".join(f"row {row}: {text}" for row, text in examples)
