"""A word-piece tokenizer made from the demo's own text.

Identifiers and prose are cut into the same lower-case pieces (`getLineBuffer` and "the line buffer" share `line` and
`buffer`), because that overlap is what lets a function's name predict its docstring.
"""

from __future__ import annotations

import random
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence

PAD, BOS, SEP, EOS = range(4)
_SPECIAL = ("<pad>", "<bos>", "<sep>", "<eos>")
_ENDINGS = ("s", "es", "d", "ed", "ing", "er", "or", "ion", "ly")
_BUCKETS = 256  # words never seen in training: the same word meets itself in the same bucket
_FEWEST_USES = 3
_SHORTEST_STEM = 3
_EVERYDAY = 150  # so many of the commonest pieces keep their meaning when words are renamed
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^\sA-Za-z0-9_]")


class Tokenizer:
    """Word pieces known from a corpus, and hash buckets for everything else."""

    def __init__(self, corpus: Iterable[str], size: int = 4096) -> None:
        counts = Counter(word for text in corpus for word in _words(text))
        pieces = dict.fromkeys(_ENDINGS)
        room = size - len(_SPECIAL) - _BUCKETS
        for word, uses in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            if uses >= _FEWEST_USES and len(pieces) < room and not _is_inflected(word, counts):
                pieces[word] = None
        self._ids = {piece: len(_SPECIAL) + index for index, piece in enumerate(pieces)}
        self._first_bucket = len(_SPECIAL) + len(pieces)
        uses_of = Counter(token for word, uses in counts.items() for token in self._word(word) * uses)
        self._kept = {*range(len(_SPECIAL)), *(token for token, _ in uses_of.most_common(_EVERYDAY))}

    def __len__(self) -> int:
        return self._first_bucket + _BUCKETS

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        return [token for word in _words(text) for token in self._word(word)]

    def renamed(self, texts: Sequence[list[int]], rng: random.Random) -> list[list[int]]:
        """Token lists in which every piece that is not an everyday one became another, the same in all the lists.

        What such a text says is lost; that a docstring repeats words of the function's name is not.
        """
        names: dict[int, int] = {token: token for token in self._kept}
        for token in (token for text in texts for token in text):
            if token not in names:
                names[token] = rng.randrange(len(_SPECIAL), len(self))
        return [[names[token] for token in text] for text in texts]

    def _word(self, word: str) -> list[int]:
        """Longest known pieces from the left; a stretch that starts with none of them goes to its bucket whole."""
        tokens: list[int] = []
        while word:
            piece = self._longest_piece(word)
            if piece is None:
                return [*tokens, self._first_bucket + zlib.crc32(word.encode()) % _BUCKETS]
            tokens.append(self._ids[piece])
            word = word[len(piece) :]
        return tokens

    def _longest_piece(self, word: str) -> str | None:
        if word in self._ids:
            return word
        prefixes = (word[:end] for end in range(len(word) - 1, _SHORTEST_STEM - 1, -1))
        return next((prefix for prefix in prefixes if prefix in self._ids), None)


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _is_inflected(word: str, counts: Counter[str]) -> bool:
    """Whether the word is a commoner word and an ending, and so spelled with two pieces."""
    stems = (word.removesuffix(ending) for ending in _ENDINGS if word.endswith(ending))
    return any(len(stem) >= _SHORTEST_STEM and counts[stem] >= _FEWEST_USES for stem in stems)
