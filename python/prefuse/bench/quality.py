"""How far the head's gradients are from float64's on the same inputs, plan by plan, beside TRL's.

The loss is a fixed combination of the responses' log-probabilities, so the upstream gradients are known beforehand and
the same for all: what differs is what each makes of them. An error is relative, in the Frobenius norm.

TRL 1.16 is the measure. It rounds the logits and their gradient to the inputs' dtype, adds up in float32 and rounds the
sums once; on the CPU it multiplies in float32 too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefuse._display import tables
from prefuse.functional import token_logps
from prefuse.language import Expression, PairView, pair_objective
from prefuse.linear.functions import linear_token_stats
from prefuse.linear.plans import Plan
from prefuse.losses.preference import preference_loss

from . import head

CONFIDENT = 0.999
"""About the probability of every label in a problem of confident tokens."""

_TILES = 3


class Problem(NamedTuple):
    """Inputs of the head, [R, T, H], [V, H] and [R, T], and how much each pair counts, [R / 2]."""

    hidden: Tensor
    weight: Tensor
    labels: Tensor
    importance: Tensor


class Way(NamedTuple):
    """A plan, whether the weight is trained, and how else the head is called; `tiled` has it run in several tiles."""

    plan: str
    trainable: bool
    narrow: bool = False
    tiled: bool = False


WAYS = {
    "single-pass": Way("single-pass", trainable=False),
    "single-pass, kept in 16 bits": Way("single-pass", trainable=False, narrow=True),
    "recompute, frozen": Way("recompute", trainable=False),
    "grouped": Way("grouped", trainable=True),
    "grouped, tiled": Way("grouped", trainable=True, tiled=True),
    "keep": Way("keep", trainable=True),
    "recompute": Way("recompute", trainable=True),
    "recompute, tiled": Way("recompute", trainable=True, tiled=True),
}
"""Every plan that makes a gradient, as one calls for it."""

Gradients = dict[str, Tensor]
HIDDEN, WEIGHT = "hidden", "weight"


@pair_objective
def weighted_margin(pair: PairView) -> Expression:
    """The weighted difference of two log-probabilities, a loss whose gradient does not depend on them."""
    return pair["importance"] * (pair.rejected.logp - pair.chosen.logp)


def problem(
    dtype: torch.dtype,
    confident: bool = False,
    pairs: int = 6,
    tokens: int = 16,
    features: int = 512,
    classes: int = 8192,
    device: torch.device | str = "cpu",
) -> Problem:
    """Random inputs; where `confident`, hidden states lean towards their label until it has nearly all of the mass."""
    batch = head.inputs(pairs, tokens, features, classes, torch.float64, seed=1)
    hidden, weight = batch.hidden.detach(), batch.weight
    if confident:
        at_label = weight[batch.labels]
        wanted = (hidden @ weight.t()).logsumexp(-1) + math.log(CONFIDENT / (1 - CONFIDENT))
        lacking = wanted - (hidden * at_label).sum(-1)
        hidden = hidden + lacking[..., None] * at_label / at_label.square().sum(-1, keepdim=True)
    importance = torch.empty(pairs).uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(2))
    return Problem(hidden.to(device, dtype), weight.to(device, dtype), batch.labels.to(device), importance.to(device))


def exact(given: Problem) -> Gradients:
    """The gradients in float64."""
    whole = Problem(given.hidden.double(), given.weight.double(), given.labels, given.importance)
    return _gradients(_through(lambda hidden, weight, labels: token_logps(hidden @ weight.t(), labels)), whole, True)


def by_trl(given: Problem) -> Gradients:
    """TRL's gradients.

    Raises:
        ImportError: TRL is not installed.
    """
    return _gradients(_through(head.logps_by_trl()), given, True)


def by_prefuse(name: str, given: Problem) -> tuple[Gradients, Plan]:
    """The gradients by one of `WAYS`, and the plan that ran."""
    way = WAYS[name]
    plans = []

    def loss(given: Problem) -> Tensor:
        value, plan = _grouped(given, way) if way.plan == "grouped" else _ungrouped(given, way)
        plans.append(plan)
        return value

    return _gradients(loss, given, way.trainable), plans[0]


def errors(got: Gradients, wanted: Gradients) -> dict[str, float]:
    """Relative errors of the gradients in `got`."""
    return {name: float((got[name].double() - wanted[name]).norm() / wanted[name].norm()) for name in got}


def compare(given: Problem) -> list[dict[str, Any]]:
    """Every way's errors, and how many times TRL's they are, as JSON values; TRL's own come first."""
    wanted = exact(given)
    measure = errors(by_trl(given), wanted)
    found = [{"way": head.TRL, "errors": measure, "times_trl": dict.fromkeys(measure, 1.0)}]
    for name in WAYS:
        own = errors(by_prefuse(name, given)[0], wanted)
        found.append({"way": name, "errors": own, "times_trl": {what: own[what] / measure[what] for what in own}})
    return found


def report(dtype: torch.dtype, device: torch.device | str = "cpu") -> list[dict[str, Any]]:
    """`compare` on random and on confident tokens, printed and returned."""
    found = []
    for confident in (False, True):
        cases = compare(problem(dtype, confident, device=device))
        name = f"{str(dtype).removeprefix('torch.')}, {'confident' if confident else 'random'} tokens"
        rows = [(case["way"], *_cells(case, HIDDEN), *_cells(case, WEIGHT)) for case in cases]
        headings = ("plan", "d(hidden)", "/ TRL", "d(weight)", "/ TRL")
        tables.show(f"relative error of the gradient, {name}", headings, rows)
        found += [{"dtype": str(dtype).removeprefix("torch."), "confident": confident, **case} for case in cases]
    return found


def _cells(case: dict[str, Any], what: str) -> tuple[str, str]:
    if what not in case["errors"]:
        return "", ""
    return f"{case['errors'][what]:.2e}", f"{case['times_trl'][what]:.2f}"


def _gradients(loss: Callable[[Problem], Tensor], given: Problem, trainable: bool) -> Gradients:
    hidden, weight = given.hidden.clone().requires_grad_(), given.weight.clone().requires_grad_(trainable)
    leaves = {HIDDEN: hidden, WEIGHT: weight} if trainable else {HIDDEN: hidden}
    value = loss(given._replace(hidden=hidden, weight=weight))
    return dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))


def _through(logps: head.LogProbs) -> Callable[[Problem], Tensor]:
    def loss(given: Problem) -> Tensor:
        found = logps(given.hidden.flatten(0, 1), given.weight, given.labels.flatten()).reshape(given.labels.shape)
        chosen, rejected = found.sum(-1).chunk(2)
        return (given.importance * (rejected - chosen)).mean()

    return loss


def _grouped(given: Problem, way: Way) -> tuple[Tensor, Plan]:
    score = preference_loss(
        weighted_margin,
        hidden=given.hidden,
        weight=given.weight,
        labels=given.labels,
        importance=given.importance,
        plan=way.plan,
        workspace_bytes=_workspace(given, way),
    )
    return score.loss, score.plan


def _ungrouped(given: Problem, way: Way) -> tuple[Tensor, Plan]:
    plans = []

    def logps(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        stats = linear_token_stats(
            hidden,
            weight,
            labels,
            plan=way.plan,
            gradient_dtype=given.hidden.dtype if way.narrow else None,
            workspace_bytes=_workspace(given, way),
        )
        assert stats.plan is not None
        plans.append(stats.plan)
        return stats.logp

    return _through(logps)(given), plans[0]


def _workspace(given: Problem, way: Way) -> int:
    """Room for all rows in one tile, or for a part of them."""
    classes, features = given.weight.shape
    whole = given.labels.numel() * (classes + 3 * features) * given.weight.element_size()
    return whole // _TILES if way.tiled else whole
