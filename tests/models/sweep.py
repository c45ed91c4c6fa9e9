"""`prefuse.head` beside the model's own logits, family by family."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import prefuse
from tests.models.cases import Case, case
from tests.models.families import build, families
from tests.models.pictures import picture

NATS, GRADIENT = 1e-4, 1e-2
"""Largest errors of what is exact: of a log-prob, and of a gradient relative to its largest entry."""

PADDINGS = ("no", "right", "left")


Outcome = tuple[Tensor, list[Any]]
"""log p [B, T - 1], and the gradients of all trainable parameters."""


@dataclass(frozen=True)
class Verdict:
    """The outcome for one family.

    Attributes:
        what: "exact, fused", "exact, by logits", "refused", "wrong", "crash" or "not built".
        why: may be empty.
        image: whether an image was tried, too.
    """

    family: str
    model: str
    what: str
    why: str = ""
    image: bool = False


def sweep(only: set[str] | None = None) -> list[Verdict]:
    """The verdict on each family, or on those named."""
    return [verdict(*pair) for pair in families() if only is None or pair[0] in only]


def verdict(family: str, name: str) -> Verdict:
    """The verdict on one family.

    What differs in float32 is tried in float64: gradients that are 0 by theory (of a bias of attention keys, say) are
    nothing but rounding in float32, in the model's own pass as well.
    """
    found = _verdict(family, name, torch.float32)
    return _verdict(family, name, torch.float64) if found.what == "wrong" else found


def _verdict(family: str, name: str, dtype: torch.dtype) -> Verdict:
    """Untied and tied, in evaluation for each padding and with an image, and in training, dropout and all."""
    verdicts, failures, seen = [], [], False
    for tied, train in itertools.product((False, True), (False, True)):
        try:
            model = build(family, name, tied).to(dtype)
            check_causal_lm(model)
            image = picture(model) if hasattr(model.config, "vision_config") else None
        except Refused as refusal:
            return Verdict(family, name, "refused", str(refusal))
        except Exception as error:
            failures.append(line(error))
            continue
        model.train(train)
        texts = [case(padding) for padding in (PADDINGS[1:2] if train else PADDINGS)]
        for cases in (texts,) if image is None else (texts, [image]):
            try:
                wanted = [own(model, each) for each in cases]
            except Exception as error:
                failures.append(line(error))
            else:
                verdicts.append(compare(model, cases, wanted))
                seen |= cases is not texts
    if not verdicts:
        return Verdict(family, name, "not built", failures[0])
    worst = next((each for each in verdicts if not each[0].startswith("exact")), max(verdicts))
    return Verdict(family, name, *worst, image=seen)


class Refused(Exception):
    """A model is no causal LM to prefuse."""


def check_causal_lm(model: nn.Module) -> None:
    try:
        prefuse.head(model).remove()
    except (TypeError, ValueError) as error:
        raise Refused(line(error)) from None


def compare(model: nn.Module, cases: list[Case], wanted: list[Outcome]) -> tuple[str, str]:
    """What the head of a model is, and why: beside the outcomes of its own logits."""
    errors = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            head = prefuse.head(model)
            for each, right in zip(cases, wanted, strict=True):
                errors.append(difference(fused(head, model, each), right))
        except (TypeError, ValueError) as error:
            return raised(error)
        except Exception as error:
            return "crash", line(error)
    said = [str(w.message) for w in caught if issubclass(w.category, UserWarning) and "by its logits" in str(w.message)]
    value, gradient = (max(column) for column in zip(*errors, strict=True))
    if not (value < NATS and gradient < GRADIENT):
        return "wrong", f"{value:.2g} nats, gradients {gradient:.2g}"
    return ("exact, by logits", reason(said[0])) if said else ("exact, fused", "")


def reason(warning: str) -> str:
    """Why a head is not fused, of the warning that says so."""
    return warning.partition("cannot be fused: ")[2].partition(". The numbers")[0]


def raised(error: Exception) -> tuple[str, str]:
    """A refusal is raised by a line of prefuse itself; the same type from anywhere deeper is a crash."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else trace.tb_frame.f_globals.get("__name__", "")
    return "refused" if module.partition(".")[0] == "prefuse" else "crash", line(error)


def own(model: Any, given: Case) -> Outcome:
    """From the model's own logits."""
    torch.manual_seed(4)
    logits = model(**given.inputs).logits[:, -given.labels.shape[1] :]  # past virtual tokens
    every = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    moved = given.labels[:, 1:]
    logps = every.gather(-1, moved.clamp(min=0)[..., None])[..., 0]
    logps = torch.where(moved == -100, 0.0, logps)
    return logps.detach(), _gradients(model, (logps * given.weights[:, 1:]).sum())


def fused(head: Any, model: nn.Module, given: Case) -> Outcome:
    """From the head."""
    torch.manual_seed(4)
    logps = head.token_logps(given.labels, inputs=given.inputs)[:, 1:]
    return logps.detach(), _gradients(model, (logps * given.weights[:, 1:]).sum())


def _gradients(model: nn.Module, loss: Tensor) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True))


def difference(got: Outcome, wanted: Outcome) -> tuple[float, float]:
    """Largest error in nats, and of the gradients; not a number counts as infinite."""
    largest = 0.0
    for left, right in zip(got[1], wanted[1], strict=True):
        if left is None and right is None:
            continue
        left, right = (torch.zeros_like(right if left is None else left) if x is None else x for x in (left, right))
        if right.numel():
            scale = max(float(right.abs().max()), 1e-4)
            largest = max(largest, _finite(float((left - right).abs().max()) / scale))
    return _finite(float((got[0] - wanted[0]).abs().max())), largest


def _finite(error: float) -> float:
    return error if error == error else float("inf")


def line(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split()).replace("|", "\\|")
    return text if len(text) <= 160 else text[:157] + "..."
