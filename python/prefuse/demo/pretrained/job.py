"""The demo on a pretrained model, from questions or a file to figures."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from prefuse._pretrained.smollm2 import SMOLLM2
from prefuse.language import Objective

from ..batches import IGNORED, Batch, Encoded, padded
from ..evaluate import HeldOut, held_out
from ..progress import Display
from ..train import Step, prefer
from . import answers, questions, source
from .answers import Answer, Share, Spoken
from .data import pairs_of, split
from .encoding import Content, Pair, assistant, encode, prompt_ids, user
from .policy import Passes, with_lora

_EVALUATIONS = 2  # on the way and at the end
_MOST_HELD_OUT = 24  # pairs of a set: each costs a pass
_WARM_UP = 4
_MEASURED = 4  # pairs
_SHOWN = 3


@dataclass(frozen=True)
class Settings:
    """What is done.

    Attributes:
        model: "smollm2", a folder, or a name on a hub.
        data: a file or data set of pairs; None: questions of our own, judged by a rule.
        seed: of everything random.
        steps: updates of preference training.
        pairs: per update.
        rate: highest learning rate.
        held_out: the share of prompts kept from training.
        max_length: tokens of prompt and response.
        share_prompts: compute what rows of a batch begin with alike once.
        sparse: gradients of the head through short lists; probabilities below are rounded at random.
    """

    model: str = SMOLLM2
    data: str | None = None
    seed: int = 0
    steps: int = 16
    pairs: int = 8
    rate: float = 1.5e-4
    held_out: float = 0.25
    max_length: int = 256
    share_prompts: bool = False
    sparse: float | None = None


class HeldOutSet(NamedTuple):
    """What is kept from training.

    Attributes:
        pairs: for rewards and log-probabilities.
        prompts: for answers.
        topics: what an answer to each has to name; None without a rule.
        before: the model's answers before training.
    """

    pairs: list[Pair]
    prompts: list[Content]
    topics: list[str] | None
    before: list[Answer]

    def follow(self, found: Sequence[Answer]) -> list[bool] | None:
        """Which of the answers to its prompts follow the rule."""
        if self.topics is None:
            return None
        return [
            questions.follows_rule(answer.text, topic, answer.complete)
            for answer, topic in zip(found, self.topics, strict=True)
        ]


class Data(NamedTuple):
    """Pairs to train on, and what is held out by set."""

    training: list[Pair]
    held_out: dict[str, HeldOutSet]


class Shown(NamedTuple):
    """A held-out prompt with the model's answers before and after, and whether each follows the rule."""

    prompt: str
    before: str
    after: str
    follows: tuple[bool, bool] | None


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        objective: the objective, as text.
        settings: as given.
        parameters: of the model, and those that are trained.
        vocabulary: classes of the head.
        training_pairs: how many.
        history: per step of training.
        held_out: by step, from 0 to the last, figures on held-out pairs by set.
        spoken: "before" and "after", figures of answers by set.
        wins: by set, the share of held-out prompts whose answer after follows the rule and whose answer before does
            not; ties count one half. None without a rule.
        shown: some answers before and after.
        seconds: by phase.
    """

    objective: str
    settings: Settings
    parameters: tuple[int, int]
    vocabulary: int
    training_pairs: int
    history: list[Step]
    held_out: dict[int, dict[str, HeldOut]]
    spoken: dict[str, dict[str, Spoken]]
    wins: dict[str, Share] | None
    shown: list[Shown]
    seconds: dict[str, float]

    @property
    def after(self) -> dict[str, HeldOut]:
        """Held-out figures at the end."""
        return self.held_out[max(self.held_out)]


class Trained(NamedTuple):
    """The outcome, and what was trained with some of what it was trained on."""

    outcome: Outcome
    passes: Passes
    tokenizer: Any
    batch: Batch


TOPICS, KINDS, HELD_OUT = "topics", "kinds", "pairs"


def run(objective: Objective, settings: Settings, display: Display) -> Trained:
    """Loads, samples, trains and measures.

    Raises:
        ValueError, TypeError, FileNotFoundError, ImportError: of the model or the data; the message says which.
    """
    seconds: dict[str, float] = {}
    lap = partial(_lap, seconds)
    given = None  # read before the model is loaded, which takes longer
    if settings.data is not None:
        given = split(pairs_of(settings.data), settings.held_out, _MOST_HELD_OUT, settings.seed)
    with display.waiting(f"loading {settings.model}"), lap("loading"):
        model, tokenizer = source.load(settings.model)
    passes = with_lora(model, tokenizer, settings.seed, share_prompts=settings.share_prompts, sparse=settings.sparse)
    with lap("answers before"):
        asked = _asked if given is None else partial(_given, given)
        data = asked(passes.model, tokenizer, settings, display)
    encoded = partial(encode, tokenizer=tokenizer, longest=settings.max_length)
    training, sets = encoded(data.training), {name: encoded(kept.pairs) for name, kept in data.held_out.items()}
    with lap("training"):
        history, evaluations, last = _train(objective, passes, training, sets, settings, display)
    with lap("answers after"):
        after = _after(passes, tokenizer, data, settings, display)
    with display.waiting("divergence from the model before"), lap("divergence"):
        spoken = _spoken(passes, tokenizer, data, after)
    outcome = Outcome(
        objective=repr(objective),
        settings=settings,
        parameters=(
            sum(parameter.numel() for parameter in passes.model.parameters()),
            sum(parameter.numel() for parameter in passes.parameters),
        ),
        vocabulary=int(model.config.get_text_config().vocab_size),
        training_pairs=len(training),
        history=history,
        held_out=evaluations,
        spoken=spoken,
        wins=_wins(data, after),
        shown=_shown(data, after),
        seconds=seconds,
    )
    return Trained(outcome, passes, tokenizer, last)


def _asked(model: Any, tokenizer: Any, settings: Settings, display: Display) -> Data:
    """Our questions: chosen is the answer in the form asked for, rejected what the model answers, where it is not."""
    asked = questions.questions(settings.held_out)
    enough = min(len(asked.training), settings.steps * settings.pairs)
    training = random.Random(settings.seed).sample(asked.training, enough)
    lists = {"": training, TOPICS: asked.topics, KINDS: asked.kinds}
    every = [question for part in lists.values() for question in part]
    with display.waiting(f"the model answers {len(every)} questions"):
        said = iter(answers.draw(model, tokenizer, [user(question.text) for question in every], settings.seed))
    drawn = {name: [(question, next(said)) for question in part] for name, part in lists.items()}
    pairs = {name: [pair for pair in map(_pair, part) if pair is not None] for name, part in drawn.items()}
    kept = {
        name: HeldOutSet(
            pairs[name][:_MOST_HELD_OUT],
            [user(question.text) for question, _ in drawn[name]],
            [question.topic for question, _ in drawn[name]],
            [answer for _, answer in drawn[name]],
        )
        for name in (TOPICS, KINDS)
    }
    return Data(pairs[""], kept)


def _pair(drawn: tuple[questions.Question, Answer]) -> Pair | None:
    """A question's answer in our form and the model's; None where that follows the rule already."""
    question, said = drawn
    if questions.follows_rule(said.text, question.topic, said.complete) or not said.text:
        return None
    return Pair(user(question.text), assistant(question.answer), assistant(said.text), (True, said.complete))


def _given(
    pairs: tuple[list[Pair], list[Pair]], model: Any, tokenizer: Any, settings: Settings, display: Display
) -> Data:
    """Pairs of a file, some kept from training; there is no rule that judges answers."""
    training, kept = pairs
    prompts = [pair.prompt for pair in kept]
    with display.waiting(f"the model answers {len(prompts)} held-out prompts"):
        before = answers.draw(model, tokenizer, prompts, settings.seed)
    return Data(training, {HELD_OUT: HeldOutSet(kept, prompts, None, before)})


def _after(passes: Passes, tokenizer: Any, data: Data, settings: Settings, display: Display) -> dict[str, list[Answer]]:
    count = sum(len(kept.prompts) for kept in data.held_out.values())
    with display.waiting(f"the model answers {count} held-out prompts"):
        return {
            name: answers.draw(passes.model, tokenizer, kept.prompts, settings.seed + 1)
            for name, kept in data.held_out.items()
        }


def _spoken(passes: Passes, tokenizer: Any, data: Data, after: dict[str, list[Answer]]) -> dict[str, dict[str, Spoken]]:
    found: dict[str, dict[str, Spoken]] = {"before": {}, "after": {}}
    for name, kept in data.held_out.items():
        ids = [prompt_ids(prompt, tokenizer) for prompt in kept.prompts]
        divergences = answers.divergences(passes, ids, after[name])
        found["before"][name] = answers.spoken(kept.before, kept.follow(kept.before), [0.0] * len(ids))
        found["after"][name] = answers.spoken(after[name], kept.follow(after[name]), divergences)
    return found


def _wins(data: Data, after: dict[str, list[Answer]]) -> dict[str, Share] | None:
    found = {}
    for name, kept in data.held_out.items():
        were, are = kept.follow(kept.before), kept.follow(after[name])
        if were is None or are is None:
            return None
        found[name] = Share.of([0.5 + 0.5 * (now - then) for then, now in zip(were, are, strict=True)])
    return found


def _shown(data: Data, after: dict[str, list[Answer]]) -> list[Shown]:
    found = []
    for name, kept in data.held_out.items():
        were, are = kept.follow(kept.before), kept.follow(after[name])
        for place in range(0, len(kept.prompts), max(1, len(kept.prompts) // _SHOWN))[:_SHOWN]:
            follows = None if were is None or are is None else (were[place], are[place])
            said = _said(kept.prompts[place]), kept.before[place].text, after[name][place].text
            found.append(Shown(*said, follows))
    return found


def _train(
    objective: Objective,
    passes: Passes,
    training: Sequence[Encoded],
    sets: dict[str, list[Encoded]],
    settings: Settings,
    display: Display,
) -> tuple[list[Step], dict[int, dict[str, HeldOut]], Batch]:
    kept = {name: _in_order(pairs, settings.pairs, passes.pad) for name, pairs in sets.items()}

    def evaluate() -> dict[str, HeldOut]:
        score = partial(passes.score, objective, compare=True)
        return {name: held_out(objective, score, batches) for name, batches in kept.items()}

    history: list[Step] = []
    evaluations = {0: evaluate()}
    stops = {round(settings.steps * part / _EVALUATIONS) for part in range(1, _EVALUATIONS + 1)}
    batches, again = itertools.tee(_endless(training, settings.pairs, passes.pad, settings.seed))
    with display.training(objective.name, settings.steps) as show:

        def report(step: Step) -> None:
            history.append(step)
            if step.step in stops:
                evaluations[step.step] = evaluate()
            show(step.step, f"loss {step.loss:.3f}  accuracy {step.accuracy:.2f}  margin {step.margin:.2f}")

        prefer(
            objective,
            passes.parameters,
            partial(passes.score, objective),
            batches,
            settings.steps,
            settings.rate,
            report,
            warm_up=_WARM_UP,
        )
    return history, evaluations, _few(next(again))


def _few(batch: Batch) -> Batch:
    """The first pairs of a batch, no longer than they are themselves, to measure a step on."""
    few = min(_MEASURED, batch.pairs)
    rows = [*range(few), *range(batch.pairs, batch.pairs + few)]
    labels = batch.labels[rows]
    longest = int((labels != IGNORED).any(0).nonzero().max()) + 1
    return Batch(batch.tokens[rows, :longest], labels[:, :longest], few)


def _endless(pairs: Sequence[Encoded], size: int, pad: int, seed: int) -> Iterator[Batch]:
    rng = random.Random(seed)
    while True:
        order = rng.sample(range(len(pairs)), len(pairs))
        for start in range(0, max(1, len(order) - size + 1), size):
            yield padded([pairs[place] for place in order[start : start + size]], pad)


def _in_order(pairs: Sequence[Encoded], size: int, pad: int) -> list[Batch]:
    ordered = sorted(pairs, key=Encoded.size)
    return [padded(ordered[start : start + size], pad) for start in range(0, len(ordered), size)]


def _said(prompt: Content) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1].get("content"))


class _lap:
    """Seconds of what runs within."""

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._name] = time.perf_counter() - self._start
