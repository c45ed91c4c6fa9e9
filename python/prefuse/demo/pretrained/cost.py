"""The time of a DPO step on the pretrained model by its parts, and the head's memory: TRL, plain PyTorch, prefuse.

TRL is its `DPOTrainer.compute_loss` as it is, without acceleration, where it is installed. Plain PyTorch makes the
logits of all tokens, takes their `log_softmax` and gathers. Parts run alone on the hidden states of one batch; steps
run whole. All take turns in the same rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import prefuse.objectives as objectives
from prefuse.bench import head as hands
from prefuse.bench.memory import peak_extra_bytes
from prefuse.bench.timing import in_rounds
from prefuse.linear.functions import linear_sequence_logps
from prefuse.losses.preference import preference_loss

from ..batches import IGNORED, Batch
from .policy import Passes
from .trl_step import TrlStep, step_of

TRL, PLAIN, PREFUSE, SHARED, SPARSE = "TRL", "plain PyTorch", "prefuse", "prefuse, prompts shared", "prefuse, sparse"
STEP = "whole step"
HEAD = "head and objective, policy"
BOTH_HEADS = "head and objective, reference and policy"
_ROUNDS = 3
_BETA = 0.1


@dataclass(frozen=True)
class Part:
    """One part of a step by one hand: the fastest and the median seconds of the rounds."""

    part: str
    by: str
    seconds: float
    median: float


@dataclass(frozen=True)
class Cost:
    """What a step costs.

    Attributes:
        rows: sequences of the batch.
        tokens: of each, padding included.
        scored: tokens that count.
        parts: the step's, and the whole step.
        clock: of `parts`: "wall clock", or "processor time" where PyTorch has one thread.
        head_bytes: by hand, the peak of the policy's head, forward and backward, above inputs and gradients; None where
            the system cannot tell.
        trl: TRL's version, or why it is missing.
    """

    rows: int
    tokens: int
    scored: int
    parts: list[Part]
    clock: str
    head_bytes: dict[str, int | None]
    trl: str


_Cases = list[tuple[str, str, Callable[[], object]]]


def measure(passes: Passes, tokenizer: Any, batch: Batch, rounds: int = _ROUNDS) -> Cost:
    """Times a step of DPO on the batch; the model's weights stay as they are, gradients are dropped."""
    trl, theirs = _by_trl(passes, tokenizer, batch)
    cases = {(part, by): run for part, by, run in [*_parts(passes, batch), *theirs, *_steps(passes, batch)]}
    keys = {f"{part}: {by}": (part, by) for part, by in cases}
    for run in cases.values():  # once for what first calls do
        run()
    alone = torch.get_num_threads() == 1  # then other programs on the machine need not show
    clock = time.process_time if alone else time.perf_counter
    timings = in_rounds({key: cases[place] for key, place in keys.items()}, rounds, clock)
    for parameter in passes.parameters:
        parameter.grad = None
    scored = int((batch.labels != IGNORED).sum())
    weight = _weight(passes, batch)
    measured = {TRL: hands.TRL, PLAIN: hands.EAGER, PREFUSE: hands.PREFUSE}
    if not theirs or not hands.available((hands.TRL,), hands.DPO)[0]:
        del measured[TRL]
    shape = {
        "pairs": batch.pairs,
        "tokens": batch.tokens.shape[1],
        "features": weight.shape[1],
        "classes": weight.shape[0],
        "masked": 1 - scored / batch.tokens.numel(),
    }
    return Cost(
        batch.tokens.shape[0],
        batch.tokens.shape[1],
        scored,
        [Part(*keys[key], timing.fastest, timing.median) for key, timing in timings.items()],
        "processor time" if alone else "wall clock",
        {
            by: peak_extra_bytes("prefuse.demo.pretrained.cost:head_step", name=name, **shape)
            for by, name in measured.items()
        },
        trl,
    )


def _by_trl(passes: Passes, tokenizer: Any, batch: Batch) -> tuple[str, _Cases]:
    """TRL's version and its parts; or why it cannot run here, and none."""
    try:
        step: TrlStep = step_of(passes, tokenizer, batch, _BETA)
        hidden = passes.hidden(batch, passes.inputs(batch)).detach().requires_grad_()
        cases: _Cases = [
            (BOTH_HEADS, TRL, lambda: torch.autograd.grad(step.head(hidden), [hidden])),
            (STEP, TRL, lambda: step.whole().backward()),  # type: ignore[no-untyped-call]
        ]
        for _, _, run in cases:
            run()
    except Exception as error:  # of another library at the end of a long run: said in the report
        return f"not measured: {hands.first_line(error)}", []
    return step.version, cases


def head_step(name: str, **shape: Any) -> Callable[[], object]:
    """A hand of `prefuse.bench.head` on random float32 inputs, its weight frozen: for a fresh process."""
    return hands.step(name, hands.DPO, hands.inputs(dtype=torch.float32, **shape))


def _parts(passes: Passes, batch: Batch) -> _Cases:
    inputs, labels = passes.inputs(batch), batch.labels
    weight = _weight(passes, batch).detach()
    states = passes.reference(lambda: passes.hidden(batch, inputs))
    hidden = states.clone().requires_grad_()
    there = linear_sequence_logps(states, weight, labels, shift=True)
    columns = {name: there[: batch.pairs].clone() for name in _COLUMNS}
    pull = torch.randn_like(states)

    def backbone() -> None:
        passes.hidden(batch, inputs).backward(pull)  # type: ignore[no-untyped-call]

    def plain_head() -> None:
        torch.autograd.grad(_plain_loss(_plain_logps(hidden @ weight.t(), labels), there), [hidden])

    def fused_head() -> None:
        options: dict[str, Any] = {
            "hidden": hidden,
            "weight": weight,
            "labels": labels,
            "shift": True,
            "sparse": passes.sparse,
        }
        torch.autograd.grad(preference_loss("dpo", reference=there, beta=_BETA, **options).loss, [hidden])

    def plain_objective() -> None:
        given = torch.cat([columns["chosen_logps"], columns["rejected_logps"]]).requires_grad_()
        torch.autograd.grad(_plain_loss(given, there), [given])

    return [
        ("backbone, reference", "all", lambda: passes.reference(lambda: passes.hidden(batch, inputs))),
        ("backbone, policy", "all", backbone),
        ("head, reference", PLAIN, torch.no_grad()(lambda: _plain_logps(states @ weight.t(), labels))),
        ("head, reference", PREFUSE, lambda: linear_sequence_logps(states, weight, labels, shift=True)),
        (HEAD, PLAIN, plain_head),
        (HEAD, PREFUSE, fused_head),
        ("objective alone", PLAIN, plain_objective),
        ("objective alone", PREFUSE, lambda: objectives.dpo.value_and_grad(**columns)),
    ]


def _steps(passes: Passes, batch: Batch) -> _Cases:
    objective = objectives.get("dpo")

    def fused(given: Passes) -> Callable[[], None]:
        return lambda: given.score(objective, batch).score.loss.backward()

    def plain() -> None:
        inputs = passes.inputs(batch)

        def logps() -> Tensor:
            return _plain_logps(passes.model(**inputs, use_cache=False).logits, batch.labels)

        there = passes.reference(logps)
        _plain_loss(logps(), there).backward()  # type: ignore[no-untyped-call]

    whole = passes._replace(head=replace(passes.head, share_prompts=False), sparse=None)
    steps: _Cases = [(STEP, PLAIN, plain), (STEP, PREFUSE, fused(whole))]
    if passes.sparse is not None:
        steps.append((STEP, SPARSE, fused(whole._replace(sparse=passes.sparse))))
    if passes.head.share_prompts:
        steps.append((STEP, SHARED, fused(passes._replace(sparse=None))))
    return steps


_COLUMNS = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")


def _weight(passes: Passes, batch: Batch) -> Tensor:
    few = Batch(batch.tokens[:1], batch.labels[:1], 1)
    with torch.no_grad():
        weight: Tensor = passes.head.run(
            lambda hidden, tensors: (hidden, tensors.weight), labels=few.labels, inputs=passes.inputs(few)
        )[1]
    return weight


def _plain_logps(logits: Tensor, labels: Tensor) -> Tensor:
    scored = labels[:, 1:] != IGNORED
    logps = logits[:, :-1].log_softmax(-1).gather(-1, labels[:, 1:].clamp(min=0)[..., None]).squeeze(-1)
    return (logps * scored).sum(-1)


def _plain_loss(logps: Tensor, reference: Tensor) -> Tensor:
    chosen, rejected = (logps - reference).chunk(2)
    return -functional.logsigmoid(_BETA * (chosen - rejected)).mean()
