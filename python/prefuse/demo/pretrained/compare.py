"""Several objectives on one pretrained model, each from the same start: what it does to likelihoods."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from prefuse.language import Objective

from ..batches import IGNORED, Batch
from ..train import prefer
from . import answers
from .encoding import Content
from .policy import Passes


@dataclass
class Course:
    """What one objective did, on held-out pairs, at each of `steps`.

    Attributes:
        steps: of training, from 0.
        chosen: mean log-probability of a chosen response, in nats.
        rejected: of a rejected one.
        kl: KL(policy‖reference) in nats per token, exact over the vocabulary, where the held-out responses lead.
        answer_tokens: of answers drawn at the end.
        ended: the share of them that the model ended.
        texts: some of them.
    """

    steps: list[int] = field(default_factory=list)
    chosen: list[float] = field(default_factory=list)
    rejected: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    answer_tokens: list[int] = field(default_factory=list)
    ended: float = 0.0
    texts: list[str] = field(default_factory=list)


def compare(
    objectives: Mapping[str, Objective],
    passes: Passes,
    tokenizer: Any,
    training: Sequence[Batch],
    held_out: Batch,
    prompts: Sequence[Content],
    *,
    rate: float,
    every: int,
    seed: int = 0,
) -> dict[str, Course]:
    """Trains the adapters with each objective on the same batches; they are at the end as they were.

    Args:
        objectives: by the name under which their courses come back.
        passes: the model with adapters.
        tokenizer: its tokenizer.
        training: one batch for each step.
        held_out: pairs to look at.
        prompts: to answer at the end.
        rate: the highest learning rate.
        every: how many steps lie between two looks.
        seed: of the answers.
    """
    start = copy.deepcopy([parameter.detach() for parameter in passes.parameters])
    inputs = passes.inputs(held_out)
    there = passes.reference(lambda: passes.hidden(held_out, inputs))
    courses = {}
    for name, objective in objectives.items():
        courses[name] = course = Course()
        look = partial(_look, course, passes, held_out, there)
        look(0)
        prefer(
            objective,
            passes.parameters,
            partial(passes.score, objective),
            iter(training),
            len(training),
            rate,
            lambda step, look=look: look(step.step) if step.step % every == 0 else None,  # type: ignore[misc]
            warm_up=every,
        )
        found = answers.draw(passes.model, tokenizer, prompts, seed)
        course.answer_tokens = [len(answer.ids) for answer in found]
        course.ended = sum(answer.complete for answer in found) / max(1, len(found))
        course.texts = [answer.text for answer in found[:4]]
        with torch.no_grad():
            for parameter, value in zip(passes.parameters, start, strict=True):
                parameter.copy_(value)
    return courses


@torch.no_grad()
def _look(course: Course, passes: Passes, batch: Batch, there: torch.Tensor, step: int) -> None:
    stats = passes.head.token_stats(batch.labels, ("logp", "kl"), inputs=passes.inputs(batch), reference_hidden=there)
    logps = stats.logp.sum(-1)
    course.steps.append(step)
    course.chosen.append(logps[: batch.pairs].mean().item())
    course.rejected.append(logps[batch.pairs :].mean().item())
    course.kl.append((stats.kl.sum() / (batch.labels != IGNORED).sum()).item())
