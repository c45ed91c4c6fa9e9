"""What the model answers: drawn, judged by the rule, and how far it is there from the model before training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..batches import laid_out
from ..evaluate import wilson
from .encoding import Content, prompt_ids
from .policy import Passes

LONGEST = 48
"""Tokens of an answer at most."""

TEMPERATURE = 0.5
"""At 1, models of this size leave the subject."""

_TOGETHER = 32
_NORMAL_95 = 1.959963984540054


@dataclass(frozen=True)
class Answer:
    """One answer: its text, its tokens, and whether the model ended it before `LONGEST`."""

    text: str
    ids: list[int]
    complete: bool


@dataclass(frozen=True)
class Mean:
    """A mean with its 95 % interval, normal."""

    value: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Mean:
        """The mean of independent values."""
        mean = sum(values) / len(values)
        spread = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
        half = _NORMAL_95 * math.sqrt(spread / len(values))
        return Mean(mean, mean - half, mean + half)


@dataclass(frozen=True)
class Share:
    """A share with its 95 % interval (Wilson)."""

    value: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Share:
        """The share of values 1 among 0 and 1; a half is a tie."""
        value = sum(values) / len(values)
        return Share(value, *wilson(value, len(values)))


@dataclass(frozen=True)
class Spoken:
    """Figures of answers to held-out prompts.

    Attributes:
        answers: how many.
        rule: the share that follows the rule; None without a rule.
        tokens: of an answer, its end included; one that is cut off counts `LONGEST`.
        words: of an answer.
        complete: the share that the model ended.
        kl: KL(model‖model before training) in nats, of the next token's distribution (at temperature 1), exact over the
            vocabulary, summed over the tokens of an answer.
    """

    answers: int
    rule: Share | None
    tokens: Mean
    words: Mean
    complete: Share
    kl: Mean


def draw(model: Any, tokenizer: Any, prompts: Sequence[Content], seed: int) -> list[Answer]:
    """An answer to each prompt, at `TEMPERATURE` from the whole vocabulary; the same for the same seed and prompts."""
    torch.manual_seed(seed)
    ids = [prompt_ids(prompt, tokenizer) for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    found: dict[int, Answer] = {}
    for start in range(0, len(order), _TOGETHER):
        places = order[start : start + _TOGETHER]
        for place, answer in zip(places, _drawn(model, tokenizer, [ids[place] for place in places]), strict=True):
            found[place] = answer
    return [found[place] for place in range(len(ids))]


def spoken(found: Sequence[Answer], rule: Sequence[bool] | None, kl: Sequence[float]) -> Spoken:
    """Figures of answers; `rule` says which follow it, `kl` is what `divergences` gives."""
    return Spoken(
        answers=len(found),
        rule=None if rule is None else Share.of([float(good) for good in rule]),
        tokens=Mean.of([float(len(answer.ids)) for answer in found]),
        words=Mean.of([float(len(answer.text.split())) for answer in found]),
        complete=Share.of([float(answer.complete) for answer in found]),
        kl=Mean.of(kl),
    )


@torch.no_grad()
def _drawn(model: Any, tokenizer: Any, prompts: Sequence[list[int]]) -> list[Answer]:
    width = max(map(len, prompts))
    tokens = torch.full((len(prompts), width), tokenizer.pad_token_id)
    mask = torch.zeros_like(tokens)
    for row, ids in enumerate(prompts):  # on the left, so that answers begin where prompts end
        tokens[row, width - len(ids) :] = torch.tensor(ids)
        mask[row, width - len(ids) :] = 1
    end = tokenizer.eos_token_id
    made = model.generate(
        input_ids=tokens,
        attention_mask=mask,
        max_new_tokens=LONGEST,
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        top_p=1.0,
        eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id,
    )[:, width:]
    return [_answer(row, end, tokenizer) for row in made.tolist()]


def _answer(ids: list[int], end: int, tokenizer: Any) -> Answer:
    complete = end in ids
    ids = ids[: ids.index(end) + 1] if complete else ids
    return Answer(tokenizer.decode(ids, skip_special_tokens=True).strip(), ids, complete)


@torch.no_grad()
def divergences(passes: Passes, prompts: Sequence[list[int]], answers: Sequence[Answer]) -> list[float]:
    """KL(model‖model before training) of each answer to its prompt, in nats: `Spoken.kl` is its mean."""
    found: list[float] = []
    for start in range(0, len(prompts), _TOGETHER):
        some = slice(start, start + _TOGETHER)
        rows = [(prompt, answer.ids) for prompt, answer in zip(prompts[some], answers[some], strict=True)]
        batch = laid_out(rows, len(rows), passes.pad)
        inputs = passes.inputs(batch)
        there = passes.reference(lambda batch=batch, inputs=inputs: passes.hidden(batch, inputs))  # type: ignore[misc]
        stats = passes.head.token_stats(batch.labels, ("kl",), inputs=inputs, reference_hidden=there)
        found += stats.kl.sum(-1).tolist()
    return found
