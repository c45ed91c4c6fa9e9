"""Several objectives on one pretrained model, each from the same start: what it does to likelihoods and answers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

import torch

from prefuse.language import Objective

from ..batches import IGNORED, Batch
from ..train import prefer
from . import answers
from .answers import Answer
from .encoding import Content, prompt_ids
from .policy import Passes

_SHOWN = 4


@dataclass
class Course:
    """What one objective did on held-out pairs, at each of `steps`, and to answers, at each of `answered`.

    Attributes:
        steps: of training, from 0.
        chosen: mean log-probability of a chosen response, in nats.
        rejected: of a rejected one.
        kl: KL(policy‖reference) in nats per token, exact over the vocabulary, where the held-out responses lead.
        answered: steps at which answers were drawn, from 0.
        answer_tokens: of an answer, its end included, mean; one that is cut off counts `answers.LONGEST`.
        answer_kl: KL(policy‖reference) in nats, summed over the tokens of an answer, mean.
        ended: the share of answers that the model ended.
        follow: the share that `judge` takes for good.
        texts: some answers, drawn at the end.
    """

    steps: list[int] = field(default_factory=list)
    chosen: list[float] = field(default_factory=list)
    rejected: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)
    answer_tokens: list[float] = field(default_factory=list)
    answer_kl: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    follow: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


class HeldOut(NamedTuple):
    """What is looked at.

    Attributes:
        pairs: as one batch.
        prompts: to answer.
        judge: whether the answer to the prompt at a place is good.
        every: how many steps lie between two looks at `pairs`.
        answers_every: between two sets of answers.
    """

    pairs: Batch
    prompts: Sequence[Content]
    judge: Callable[[int, Answer], bool]
    every: int
    answers_every: int


def compare(
    objectives: Mapping[str, Objective],
    passes: Passes,
    tokenizer: Any,
    training: Sequence[Batch],
    held_out: HeldOut,
    *,
    rate: float,
    warm_up: int = 4,
    seed: int = 0,
    report: Callable[[str, Course], None] | None = None,
) -> dict[str, Course]:
    """Trains the adapters with each objective on the same batches; they are at the end as they were.

    Args:
        objectives: by the name under which their courses come back.
        passes: the model with adapters.
        tokenizer: its tokenizer.
        training: one batch for each step.
        held_out: what to look at, and how often.
        rate: the highest learning rate.
        warm_up: steps in which the learning rate rises to `rate`.
        seed: of the answers.
        report: called after each objective with its name and course.
    """
    start = copy.deepcopy([parameter.detach() for parameter in passes.parameters])
    inputs = passes.inputs(held_out.pairs)
    there = passes.reference(lambda: passes.hidden(held_out.pairs, inputs))

    def look(course: Course, step: int) -> None:
        if step % held_out.every == 0:
            _look(course, passes, held_out.pairs, there, step)
        if step % held_out.answers_every == 0:
            _ask(course, passes, tokenizer, held_out, step, seed)

    before = Course()
    look(before, 0)
    courses = {}
    for name, objective in objectives.items():
        courses[name] = course = copy.deepcopy(before)
        prefer(
            objective,
            passes.parameters,
            partial(passes.score, objective),
            iter(training),
            len(training),
            rate,
            lambda step, course=course: look(course, step.step),  # type: ignore[misc]
            warm_up=warm_up,
        )
        with torch.no_grad():
            for parameter, value in zip(passes.parameters, start, strict=True):
                parameter.copy_(value)
        if report is not None:
            report(name, course)
    return courses


@torch.no_grad()
def _look(course: Course, passes: Passes, batch: Batch, there: torch.Tensor, step: int) -> None:
    stats = passes.head.token_stats(batch.labels, ("logp", "kl"), inputs=passes.inputs(batch), reference_hidden=there)
    logps = stats.logp.sum(-1)
    course.steps.append(step)
    course.chosen.append(logps[: batch.pairs].mean().item())
    course.rejected.append(logps[batch.pairs :].mean().item())
    course.kl.append((stats.kl.sum() / (batch.labels != IGNORED).sum()).item())


def _ask(course: Course, passes: Passes, tokenizer: Any, held_out: HeldOut, step: int, seed: int) -> None:
    prompts = held_out.prompts
    found = answers.draw(passes.model, tokenizer, prompts, seed)
    kl = answers.divergences(passes, [prompt_ids(prompt, tokenizer) for prompt in prompts], found)
    course.answered.append(step)
    course.answer_tokens.append(fmean(len(answer.ids) for answer in found))
    course.answer_kl.append(fmean(kl))
    course.ended.append(fmean(answer.complete for answer in found))
    course.follow.append(fmean(held_out.judge(place, answer) for place, answer in enumerate(found)))
    course.texts = [answer.text for answer in found[:_SHOWN]]
