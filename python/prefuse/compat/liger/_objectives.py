"""Liger's losses in the objective language: the catalogue's formulas on the log-probabilities that Liger gives them.

Liger decides before the formula whether a response's log-probability is a sum or a mean and whether a reference model
counts. Here a response is therefore wrapped before the catalogue's function reads it; the formulas stay where they are.
What Liger returns beside the loss comes out as rewards, under the names it has here.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import prefuse.objectives as objectives
from prefuse.language import Expression, Objective, PairView, ResponseView, log_sigmoid, pair_objective, point_objective
from prefuse.objectives._terms import log_odds, logistic

Scored = tuple[Expression, dict[str, Expression]]

LOSS_TYPES = (
    "sigmoid",
    "hinge",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "discopop",
)
"""What `dpo` may be."""

SMOOTHED = ("exo_pair", "robust")
"""The loss types that read Liger's label smoothing."""


@pair_objective
def dpo(
    pair: PairView,
    *,
    loss_type: str = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    tau: float = 0.05,
    average: bool = False,
    referenced: bool = True,
    alpha: float | None = None,
) -> Scored:
    """Liger's DPO losses: those of the catalogue, on summed or mean log-probabilities, with or without a reference."""
    view = _view(pair, average, referenced)
    own = {"label_smoothing": label_smoothing} if loss_type in SMOOTHED else {}
    own |= {"tau": tau} if loss_type == "discopop" else {}
    own |= {"delta": 0.0} if loss_type == "bco_pair" else {}
    loss = _formula(objectives.get(loss_type))(view, beta=beta, **own)
    return _scored(pair, view, loss, beta, alpha)


@pair_objective
def cpo(
    pair: PairView,
    *,
    beta: float = 0.1,
    label_smoothing: float | None = None,
    average: bool = False,
    alpha: float | None = None,
) -> Scored:
    """Liger's CPO: DPO's link on the policy's log-probabilities alone."""
    view = _view(pair, average, referenced=False)
    loss = logistic(beta * (view.chosen.logp - view.rejected.logp), label_smoothing)
    return _scored(pair, view, loss, beta, alpha)


@pair_objective
def simpo(
    pair: PairView,
    *,
    beta: float = 0.1,
    gamma: float = 0.5,
    label_smoothing: float | None = None,
    alpha: float | None = None,
) -> Scored:
    """Liger's SimPO: that of the catalogue, whose γ is the absolute one."""
    view = _view(pair, average=True, referenced=False)
    loss = _formula(objectives.simpo)(pair, beta=beta, gamma=gamma, label_smoothing=label_smoothing)
    return _scored(pair, view, loss, beta, alpha)


@pair_objective
def orpo(pair: PairView, *, beta: float = 0.1, alpha: float | None = None, own_likelihood: bool = False) -> Scored:
    """Liger's ORPO, the odds ratio and its logarithm beside it.

    own_likelihood: the likelihood has labels of its own. Where they are the chosen response's, ``chosen_token_counts``
    is 1; the others are scored as a third response, ``likelihood``, on the chosen one's hidden states.
    """
    view = _view(pair, average=True, referenced=False)
    odds = log_odds(view.chosen.logp) - log_odds(view.rejected.logp)
    ratio = log_sigmoid(odds)
    chosen = pair.chosen.logp
    if own_likelihood:
        shared = (pair.chosen.token.logp * pair.chosen.token["counts"]).sum()
        chosen = shared + pair.response("likelihood").logp
    loss, named = _scored(pair, view, -beta * ratio, beta, alpha, chosen)
    return loss, named | {"log_odds_ratio": ratio, "log_odds_chosen": odds}


@point_objective
def kto(
    response: ResponseView,
    *,
    beta: float = 0.1,
    average: bool = False,
    referenced: bool = False,
    shifted: bool = False,
) -> Scored:
    """Liger's KTO: without weights, and with the caller's ``kl`` as it is, negative ones too."""
    view = _response(response, average, referenced)
    reward = beta * view.logratio
    gained = view.logratio - response["kl"] if shifted else view.logratio
    anchored = _Labelled(gained, response["label"])
    loss = _formula(objectives.apo_zero_unpaired)(anchored, beta=beta, desirable_weight=1.0, undesirable_weight=1.0)
    return loss, {"": reward, "logps": view.logp}


def _formula(objective: Objective) -> Any:
    """The function that an objective of the catalogue is made of."""
    return objective.__wrapped__


class _Labelled:
    """What `apo_zero_unpaired` reads: a log-ratio and a label."""

    def __init__(self, logratio: Expression, label: Expression) -> None:
        self.logratio = logratio
        self.label = label

    def __getitem__(self, name: str) -> Expression:
        return {"label": self.label}[name]


def _response(response: ResponseView, average: bool, referenced: bool) -> SimpleNamespace:
    """A response's log-probability and log-ratio as Liger has them."""
    logp = response.avg_logp if average else response.logp
    if not referenced:
        return SimpleNamespace(logp=logp, logratio=logp)
    reference = response.ref_logp / response.length if average else response.ref_logp
    return SimpleNamespace(logp=logp, logratio=logp - reference)


def _view(pair: PairView, average: bool, referenced: bool) -> SimpleNamespace:
    chosen, rejected = (_response(response, average, referenced) for response in (pair.chosen, pair.rejected))
    return SimpleNamespace(chosen=chosen, rejected=rejected)


def _scored(
    pair: PairView,
    view: SimpleNamespace,
    loss: Expression,
    beta: float,
    alpha: float | None,
    likelihood: Expression | None = None,
) -> Scored:
    """The loss with α times the chosen responses' negative log-likelihood, and what is returned beside it.

    The batch column ``pairs_per_token`` makes a token mean over the batch out of the mean over pairs, without that one
    pair's loss depends on another's.
    """
    named = {
        "chosen": beta * view.chosen.logratio,
        "rejected": beta * view.rejected.logratio,
        "chosen_logps": view.chosen.logp,
        "rejected_logps": view.rejected.logp,
    }
    if alpha is None:
        return loss, named
    nll = -pair.batch["pairs_per_token"] * (pair.chosen.logp if likelihood is None else likelihood)
    return loss + alpha * nll, named | {"nll": nll}
