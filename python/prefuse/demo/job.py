"""The demo from text to figures."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from prefuse.language import Objective

from .batches import Batch, encode, endless, in_order
from .evaluate import HeldOut, held_out
from .model import small_model
from .pairs import Documented, make_pairs, split_by_module, stdlib_functions
from .progress import Display
from .scored import roles_of
from .tokens import Tokenizer
from .train import Step, fine_tune, prefer

_EVALUATED_TOGETHER = 64
_EVALUATIONS = 5  # on the way
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
        held_out: share of modules kept from training.
        sources: folder of the standard library; None is this interpreter's.
    """

    seed: int = 0
    steps: int = 300
    sft_steps: int = 150
    pairs: int = 32
    width: int = 128
    layers: int = 2
    sft_rate: float = 3e-3
    rate: float = 2e-3
    renamed: float = 0.5
    held_out: float = 0.15
    sources: Path | None = None


@dataclass(frozen=True)
class Data:
    """The functions, split by module, and what reads them."""

    training: list[Documented]
    unseen: list[Documented]
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
        modules: numbers of modules trained on and held out.
        before: held-out figures after supervised training, before preference training.
        after: held-out figures at the end.
        sft_losses: per step, in nats per token.
        history: per step of preference training.
        on_the_way: held-out figures by step, the first and the last among them.
        seconds: by phase.
    """

    objective: str
    settings: Settings
    parameters: int
    vocabulary: int
    training_pairs: int
    modules: tuple[int, int]
    before: HeldOut
    after: HeldOut
    sft_losses: list[float] = field(default_factory=list)
    history: list[Step] = field(default_factory=list)
    on_the_way: dict[int, HeldOut] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def logits(self) -> tuple[int, int]:
        """Rows and vocabulary of the largest batch of logits in preference training."""
        return max(step.tokens for step in self.history), self.vocabulary


def run(objective: Objective, settings: Settings, display: Display) -> Outcome:
    """Reads, trains and measures. `scored.rehearse` says beforehand whether the demo can feed the objective.

    Raises:
        ValueError: there is no documented function to train on.
    """
    clock = _Clock()
    with display.waiting("reading the standard library"):
        data = read(settings)
    clock.lap("reading")
    policy = small_model(len(data.tokenizer), settings.width, settings.layers, settings.seed)
    sft_losses = _supervise(policy, data, settings, display)
    clock.lap("supervised training")
    reference = copy.deepcopy(policy).requires_grad_(False)
    history, on_the_way = _prefer(objective, policy, reference, data, settings, display)
    clock.lap("preference training")
    return Outcome(
        objective=repr(objective),
        settings=settings,
        parameters=sum(parameter.numel() for parameter in policy.parameters()),
        vocabulary=len(data.tokenizer),
        training_pairs=len(data.training),
        modules=(_modules(data.training), _modules(data.unseen)),
        before=on_the_way[0],
        after=on_the_way[settings.steps],
        sft_losses=sft_losses,
        history=history,
        on_the_way=on_the_way,
        seconds=clock.laps,
    )


def read(settings: Settings) -> Data:
    """The documented functions, split, and a tokenizer made from those to train on."""
    training, unseen = split_by_module(stdlib_functions(settings.sources), settings.held_out)
    return Data(training, unseen, Tokenizer(text for one in training for text in (one.prompt, one.summary)))


def _supervise(policy: nn.Module, data: Data, settings: Settings, display: Display) -> list[float]:
    losses = []
    with display.training("supervised", settings.sft_steps) as show:

        def report(step: int, loss: float) -> None:
            losses.append(loss)
            show(step, f"loss {loss:.3f}")

        batches = endless(
            data.training, data.tokenizer, settings.pairs, settings.seed * 2 * _STREAMS, 2, settings.renamed
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
) -> tuple[list[Step], dict[int, HeldOut]]:
    responses = len(roles_of(objective))
    unseen = _held_out_batches(data, settings, responses)
    history: list[Step] = []
    on_the_way = {0: held_out(objective, policy, reference, unseen)}
    stops = {round(settings.steps * part / _EVALUATIONS) for part in range(1, _EVALUATIONS + 1)}
    with display.training(objective.name, settings.steps) as show:

        def report(step: Step) -> None:
            history.append(step)
            if step.step in stops:
                on_the_way[step.step] = held_out(objective, policy, reference, unseen)
            latest = on_the_way[max(on_the_way)]
            show(
                step.step,
                f"loss {step.loss:.3f}  accuracy {step.accuracy:.2f}  margin {step.margin:.2f}  "
                f"held-out accuracy {latest.accuracy:.2f}",
            )

        stream = settings.seed * 2 * _STREAMS + _STREAMS
        batches = endless(data.training, data.tokenizer, settings.pairs, stream, responses, settings.renamed)
        prefer(objective, policy, reference, batches, settings.steps, settings.rate, report)
    return history, on_the_way


def _held_out_batches(data: Data, settings: Settings, responses: int) -> Sequence[Batch]:
    pairs = make_pairs(data.unseen, settings.seed, responses)
    return in_order(encode(pairs, data.tokenizer), _EVALUATED_TOGETHER)


def _modules(functions: Sequence[Documented]) -> int:
    return len({function.module for function in functions})


class _Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._start = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._start
        self._start = now
