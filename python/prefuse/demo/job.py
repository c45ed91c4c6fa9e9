"""The demo from text to figures."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from prefuse.language import Objective

from .batches import Batch, encode, endless, in_order
from .evaluate import HeldOut, held_out
from .model import Models, small_model
from .pairs import Documented, Split, make_pairs, split, stdlib_functions
from .progress import Display
from .scored import roles_of
from .tokens import Tokenizer
from .train import Step, fine_tune, prefer

_EVALUATED_TOGETHER = 64
_EVALUATIONS = 4  # on the way
_STREAMS = 1000  # seeds of the two trainings lie further apart than either has epochs


@dataclass(frozen=True)
class Settings:
    """What the demo does.

    Attributes:
        seed: of everything random.
        steps: updates of preference training.
        sft_steps: updates of supervised training before it.
        pairs: per update.
        width: of the model; a multiple of 32.
        layers: of the model.
        sft_rate: highest learning rate of supervised training.
        rate: highest learning rate of preference training.
        renamed: share of training pairs in which words are replaced (see `batches.endless`).
        held_out: share of modules kept from training, and of the functions of all others.
        sources: folder of the standard library; None is this interpreter's.
        share_prompts: compute what rows of a batch begin with alike once.
    """

    seed: int = 0
    steps: int = 150
    sft_steps: int = 600
    pairs: int = 32
    width: int = 128
    layers: int = 2
    sft_rate: float = 3e-3
    rate: float = 1e-3
    renamed: float = 0.25
    held_out: float = 0.1
    sources: Path | None = None
    share_prompts: bool = False


FUNCTIONS = "functions"
MODULES = "modules"


@dataclass(frozen=True)
class Data:
    """The functions, split, and what reads them."""

    parts: Split
    tokenizer: Tokenizer


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        objective: the objective, as text.
        settings: as given.
        parameters: of the model.
        vocabulary: pieces the tokenizer knows.
        training_pairs: functions trained on.
        training_modules: modules they are of.
        sft_losses: per step, in nats per token.
        history: per step of preference training.
        held_out: by step, from 0 (before preference training) to the last, the figures on pairs of held-out
            `"functions"` (their modules have others that were trained on) and of held-out `"modules"`.
        seconds: by phase.
    """

    objective: str
    settings: Settings
    parameters: int
    vocabulary: int
    training_pairs: int
    training_modules: int
    sft_losses: list[float]
    history: list[Step]
    held_out: dict[int, dict[str, HeldOut]]
    seconds: dict[str, float]

    @property
    def before(self) -> dict[str, HeldOut]:
        """Held-out figures after supervised training, before preference training."""
        return self.held_out[0]

    @property
    def after(self) -> dict[str, HeldOut]:
        """Held-out figures at the end."""
        return self.held_out[max(self.held_out)]

    @property
    def logits(self) -> tuple[int, int]:
        """Rows and vocabulary of the largest batch of logits in preference training."""
        return max(step.tokens for step in self.history), self.vocabulary


def run(objective: Objective, settings: Settings, display: Display) -> Outcome:
    """Reads, trains and measures, on one thread.

    `scored.rehearse` says beforehand whether the demo can feed the objective.

    Raises:
        ValueError: there is no documented function to train on.
    """
    with _one_thread():
        return _run(objective, settings, display)


def _run(objective: Objective, settings: Settings, display: Display) -> Outcome:
    clock = _Clock()
    with display.waiting("reading the standard library"):
        data = read(settings)
    clock.lap("reading")
    policy = small_model(len(data.tokenizer), settings.width, settings.layers, settings.seed)
    sft_losses = _supervise(policy, data, settings, display)
    clock.lap("supervised training")
    reference = copy.deepcopy(policy).requires_grad_(False)
    history, evaluations = _prefer(objective, policy, reference, data, settings, display)
    clock.lap("preference training")
    return Outcome(
        objective=repr(objective),
        settings=settings,
        parameters=sum(parameter.numel() for parameter in policy.parameters()),
        vocabulary=len(data.tokenizer),
        training_pairs=len(data.parts.training),
        training_modules=len({function.module for function in data.parts.training}),
        sft_losses=sft_losses,
        history=history,
        held_out=evaluations,
        seconds=clock.laps,
    )


def read(settings: Settings) -> Data:
    """The documented functions, split, and a tokenizer made from those to train on."""
    parts = split(stdlib_functions(settings.sources), settings.held_out)
    return Data(parts, Tokenizer(text for one in parts.training for text in (one.prompt, one.summary)))


def _supervise(policy: nn.Module, data: Data, settings: Settings, display: Display) -> list[float]:
    losses = []
    with display.training("supervised", settings.sft_steps) as show:

        def report(step: int, loss: float) -> None:
            losses.append(loss)
            show(step, f"loss {loss:.3f}")

        batches = endless(
            data.parts.training, data.tokenizer, settings.pairs, settings.seed * 2 * _STREAMS, 2, settings.renamed
        )
        fine_tune(policy, batches, settings.sft_steps, settings.sft_rate, report)
    return losses


def _prefer(
    objective: Objective,
    policy: nn.Module,
    reference: nn.Module,
    data: Data,
    settings: Settings,
    display: Display,
) -> tuple[list[Step], dict[int, dict[str, HeldOut]]]:
    responses = len(roles_of(objective))
    sets = {
        name: _batches(functions, data.tokenizer, settings, responses)
        for name, functions in ((FUNCTIONS, data.parts.unseen), (MODULES, data.parts.of_unseen_modules))
    }

    models = Models(policy, reference)

    def evaluate() -> dict[str, HeldOut]:
        score = partial(models.score, objective, compare=True)
        return {name: held_out(objective, score, batches) for name, batches in sets.items()}

    history: list[Step] = []
    evaluations = {0: evaluate()}
    stops = {round(settings.steps * part / _EVALUATIONS) for part in range(1, _EVALUATIONS + 1)}
    with display.training(objective.name, settings.steps) as show:

        def report(step: Step) -> None:
            history.append(step)
            if step.step in stops:
                evaluations[step.step] = evaluate()
            latest = evaluations[max(evaluations)][FUNCTIONS]
            show(
                step.step,
                f"loss {step.loss:.3f}  accuracy {step.accuracy:.2f}  margin {step.margin:.2f}  "
                f"held-out {latest.accuracy:.2f}",
            )

        stream = settings.seed * 2 * _STREAMS + _STREAMS
        batches = endless(data.parts.training, data.tokenizer, settings.pairs, stream, responses, settings.renamed)
        score = partial(models.score, objective, share_prompts=settings.share_prompts)
        prefer(objective, policy.parameters(), score, batches, settings.steps, settings.rate, report)
    return history, evaluations


def _batches(functions: Sequence[Documented], tokenizer: Tokenizer, settings: Settings, responses: int) -> list[Batch]:
    return in_order(encode(make_pairs(functions, settings.seed, responses), tokenizer), _EVALUATED_TOGETHER)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keeps torch to one thread meanwhile.

    The model's operations are too small to gain much from a second one, and where other programs keep the cores busy,
    OpenMP threads that spin for each other make every step many times slower.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._start = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._start
        self._start = now
