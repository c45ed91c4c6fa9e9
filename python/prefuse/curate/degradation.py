"""Responses made worse step by step, so that a model learns degrees of preference without labels.

Self-supervised preference optimization (Li et al. 2024, arXiv:2409.17791), as reconstructed: key phrases are found by
RAKE (Rose et al. 2010, "Automatic keyword extraction from individual documents") and a growing share is deleted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from ._numbers import count
from ._rows import Part, Rows, table

STOP_WORDS = frozenset(
    # One string is easier to read than 150 in quotes.
    """a about above after again against all also am an and any are as at be because been before being below between
    both but
    by can could did do does doing down during each few for from further had has have having he her here hers
    herself him himself his how i if in into is it its itself just let may me might more most must my myself no nor not
    now of off on once only or other our ours ourselves out over own same shall she should so some such than that the
    their theirs them themselves then there these they this those through to too under until up upon us very was we were
    what when
    where which while who whom whose why will with would you your yours yourself yourselves""".split()  # noqa: SIM905
)
"""English words that carry no content: phrases end at them."""

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
_BETWEEN = re.compile(r"[ \t]+")


class Phrase(NamedTuple):
    """A key phrase of a text: ``text[start:end]``, and RAKE's score of it."""

    text: str
    score: float
    start: int
    end: int


def key_phrases(text: str, *, stop_words: Collection[str] = STOP_WORDS) -> list[Phrase]:
    """Find the key phrases of a text by RAKE, highest score first, then in order of appearance.

    A phrase is a run of words with nothing but blanks between them and no stop word among them. A word scores its
    degree (words in all phrases it is in) over its frequency; a phrase scores the sum over its words. Upper and lower
    case are the same word. Texts without blanks between words are one long phrase.

    Args:
        text: in any language of words.
        stop_words: in lower case.
    """
    runs = _runs(text, frozenset(stop_words))
    frequency: Counter[str] = Counter()
    degree: Counter[str] = Counter()
    for run in runs:
        for match in run:
            frequency[match[0].casefold()] += 1
            degree[match[0].casefold()] += len(run)
    phrases = [
        Phrase(
            text[run[0].start() : run[-1].end()],
            sum(degree[match[0].casefold()] / frequency[match[0].casefold()] for match in run),
            run[0].start(),
            run[-1].end(),
        )
        for run in runs
    ]
    return sorted(phrases, key=lambda phrase: (-phrase.score, phrase.start))


def without_key_phrases(text: str, share: float, *, stop_words: Collection[str] = STOP_WORDS) -> str:
    """Delete a share of a text's key phrases, those of the highest scores first, rounded to a whole number of them.

    Args:
        text: the response.
        share: from 0, nothing, to 1, all.
        stop_words: as in `key_phrases`.

    Raises:
        ValueError: the share is outside [0, 1].
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share: expected a number in [0, 1], got {share}")
    phrases = key_phrases(text, stop_words=stop_words)
    deleted = sorted(phrases[: round(share * len(phrases))], key=lambda phrase: phrase.start)
    if not deleted:
        return text
    ends = [0, *(phrase.end for phrase in deleted)]
    starts = [*(phrase.start for phrase in deleted), len(text)]
    kept = "".join(text[end:start] for end, start in zip(ends, starts, strict=True))
    return _BETWEEN.sub(" ", kept).strip()


def degraded(
    rows: Rows,
    *,
    levels: int = 3,
    response: str = "response",
    degree: str = "degree",
    stop_words: Collection[str] = STOP_WORDS,
) -> Rows:
    """Every response in `levels` versions: as it is (degree 0), up to without any key phrase (degree levels - 1).

    Version k lacks the share ``k / (levels - 1)`` of its key phrases. A classifier of the degree is trained beside the
    alignment loss.

    Args:
        rows: one per response.
        levels: how many versions, 2 or more; 3-5 are a start.
        response: the column to degrade.
        degree: the column to put k in.
        stop_words: as in `key_phrases`.

    Returns:
        The versions of the first response, then those of the second, and so on.
    """
    count("levels", levels, least=2)
    given = table(rows)
    texts = given.values(response)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{response}: expected strings, got {type(text).__name__} in row {index}")
    versions = [
        without_key_phrases(text, level / (levels - 1), stop_words=stop_words)
        for text in texts
        for level in range(levels)
    ]
    repeated = np.repeat(np.arange(len(given)), levels)
    copies = given.gathered([Part(repeated, {name: name for name in given.names})])
    return table(copies).with_columns({response: versions, degree: list(range(levels)) * len(texts)})


def _runs(text: str, stop_words: frozenset[str]) -> list[list[re.Match[str]]]:
    """Words by phrase."""
    runs: list[list[re.Match[str]]] = []
    end = None
    for match in _WORD.finditer(text):
        if match[0].casefold() in stop_words:
            end = None
            continue
        if end is not None and text[end : match.start()].isspace() and "\n" not in text[end : match.start()]:
            runs[-1].append(match)
        else:
            runs.append([match])
        end = match.end()
    return runs
