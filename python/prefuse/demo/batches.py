"""Pairs as batches of token ids, role by role, the way `prefuse.preference_loss` takes them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .pairs import Documented, Pair, make_pairs
from .tokens import BOS, EOS, PAD, SEP, Tokenizer

IGNORED = -100
_LONGEST_PROMPT = 32
_LONGEST_RESPONSE = 40
_SORTED_TOGETHER = 16  # batches among which pairs are sorted by length, so that little is padding


class Encoded(NamedTuple):
    """A pair's prompt and responses as token ids."""

    prompt: list[int]
    responses: list[list[int]]

    def size(self) -> int:
        """Tokens of the longest sequence."""
        return len(self.prompt) + max(map(len, self.responses))


class Batch(NamedTuple):
    """Sequences [R, T], padded on the right: all chosen ones, then all rejected ones (then further roles).

    `labels` are `tokens` where a response is scored and −100 at prompts and padding.
    """

    tokens: Tensor
    labels: Tensor
    pairs: int


def encode(pairs: Sequence[Pair], tokenizer: Tokenizer) -> list[Encoded]:
    """Token ids of pairs, cut to what the model is built for."""
    return [
        Encoded(
            tokenizer.encode(pair.prompt)[:_LONGEST_PROMPT],
            [tokenizer.encode(response)[:_LONGEST_RESPONSE] for response in pair.responses],
        )
        for pair in pairs
    ]


def collate(pairs: Sequence[Encoded]) -> Batch:
    """Pads the pairs' sequences to one length."""
    framed = [Encoded([BOS, *prompt, SEP], [[*ids, EOS] for ids in responses]) for prompt, responses in pairs]
    return padded(framed, PAD)


def padded(pairs: Sequence[Encoded], pad: int) -> Batch:
    """Pairs whose tokens are complete as one batch, filled up with `pad`."""
    roles = range(len(pairs[0].responses))
    return laid_out([(pair.prompt, pair.responses[role]) for role in roles for pair in pairs], len(pairs), pad)


def laid_out(rows: Sequence[tuple[list[int], list[int]]], pairs: int, pad: int) -> Batch:
    """Prompts and what follows each of them, one row for each."""
    length = max(len(prompt) + len(response) for prompt, response in rows)
    tokens = torch.full((len(rows), length), pad)
    labels = torch.full((len(rows), length), IGNORED)
    for row, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response)
        tokens[row, :end] = torch.tensor([*prompt, *response])
        labels[row, len(prompt) : end] = tokens[row, len(prompt) : end]
    return Batch(tokens, labels, pairs)


def in_order(pairs: Sequence[Encoded], size: int) -> list[Batch]:
    """All pairs once, for evaluation."""
    ordered = sorted(pairs, key=Encoded.size)
    return [collate(ordered[start : start + size]) for start in range(0, len(ordered), size)]


def endless(
    functions: Sequence[Documented],
    tokenizer: Tokenizer,
    size: int,
    seed: int,
    responses: int,
    renamed: float,
) -> Iterator[Batch]:
    """Batches of `size` pairs without end; every epoch pairs the functions anew.

    In a share `renamed` of the pairs all but everyday words are replaced by arbitrary ones, the same in prompt and
    responses. There are only a few thousand functions: without this a model learns them by heart instead of learning to
    compare a docstring with a name.
    """
    rng = random.Random(seed)
    for epoch in itertools.count():
        pairs = encode(make_pairs(functions, seed + epoch, responses), tokenizer)
        for chunk in _shuffled_by_length(pairs, size, rng):
            yield collate([_rename(pair, tokenizer, rng) if rng.random() < renamed else pair for pair in chunk])


def _shuffled_by_length(pairs: Sequence[Encoded], size: int, rng: random.Random) -> list[Sequence[Encoded]]:
    """Batches of pairs of like length in random order; what does not fill a batch waits for the next epoch's pairs."""
    batches: list[Sequence[Encoded]] = []
    for start in range(0, len(pairs), size * _SORTED_TOGETHER):
        together = sorted(pairs[start : start + size * _SORTED_TOGETHER], key=Encoded.size)
        batches += [together[first : first + size] for first in range(0, len(together) - size + 1, size)]
    rng.shuffle(batches)
    return batches or [pairs]


def _rename(pair: Encoded, tokenizer: Tokenizer, rng: random.Random) -> Encoded:
    prompt, *responses = tokenizer.renamed([pair.prompt, *pair.responses], rng)
    return Encoded(prompt, responses)
