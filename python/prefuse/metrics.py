"""Measures of what preference learning did, as functions of log-probabilities. Plain PyTorch, no gradients.

Log-probabilities are sums over a response in nats, one per pair unless a function says otherwise;
``h = log π - log π_ref``. The tensors of one call have one shape: another is a ``ValueError``, and what is no tensor of
numbers a ``TypeError``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from prefuse._arguments.checks import FLOATS, INTEGERS, check_tensor, positive_number

__all__ = [
    "Line",
    "OveroptimisationFit",
    "fit_overoptimisation",
    "idealised_log_odds",
    "idealised_ranking_accuracy",
    "implicit_reward_accuracy",
    "kl_estimate",
    "length_extrapolation",
    "list_ranking_accuracy",
    "ranking_accuracy",
    "ranking_threshold",
    "token_advantages",
]


def ranking_accuracy(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    *,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
) -> Tensor:
    """Share of pairs whose chosen response the model finds at least as likely (Chen et al. 2024, arXiv:2405.19534).

    With lengths, log-probabilities per token are compared. It is not what trainers log: that is
    `implicit_reward_accuracy`.

    Args:
        chosen_logps: of the model, [B].
        rejected_logps: [B].
        chosen_lengths: numbers of tokens, [B]; None: sums are compared.
        rejected_lengths: [B]; both lengths or neither.

    Returns:
        A share from 0 to 1, float64, as every accuracy here.

    Raises:
        ValueError: one of the lengths is missing.
    """
    _check(chosen_logps=chosen_logps, rejected_logps=rejected_logps)
    chosen, rejected = _by_token(chosen_logps, rejected_logps, chosen_lengths, rejected_lengths)
    return _share(chosen >= rejected)


def list_ranking_accuracy(logps: Tensor, labels: Tensor) -> Tensor:
    """Share of lists [G, K] that the log-probabilities put in exactly the order of the labels.

    Args:
        logps: of the model, [G, K].
        labels: scores of the same responses, [G, K]; the larger the better.
    """
    _check(logps=logps, labels=labels)
    if logps.ndim != 2:
        raise ValueError(f"logps: expected shape [G, K], got {tuple(logps.shape)}")
    return _share((logps.argsort(1, descending=True) == labels.argsort(1, descending=True)).all(1))


def idealised_ranking_accuracy(
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    rater_share: Tensor | float = 0.999,
    *,
    beta: float = 0.1,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
) -> Tensor:
    """Ranking accuracy a perfectly optimised DPO would reach (Chen et al. 2024, arXiv:2405.19534).

    Share of pairs with ``log π_ref(w) - log π_ref(l) + 1/β log(α/(1-α)) > 0``.

    Args:
        ref_chosen_logps: of the reference, [B].
        ref_rejected_logps: [B].
        rater_share: α, the share of raters who prefer the chosen response, above 0 and below 1: a number, or one
            per pair; the paper takes 0.999 for 1.
        beta: of DPO.
        chosen_lengths, rejected_lengths: with both, the reference's log-probabilities are per token.

    Raises:
        ValueError: one of the lengths is missing, or a share or `beta` is out of range.
    """
    lengths = {"chosen_lengths": chosen_lengths, "rejected_lengths": rejected_lengths}
    odds = idealised_log_odds(ref_chosen_logps, ref_rejected_logps, rater_share, beta=beta, **lengths)
    return _share(odds > 0.0)


def idealised_log_odds(
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    rater_share: Tensor | float = 0.999,
    *,
    beta: float = 0.1,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
) -> Tensor:
    """The log-odds of chosen over rejected under DPO's optimum: [B], in nats.

    Arguments and errors are those of `idealised_ranking_accuracy`, the share of pairs in which they are above 0.
    """
    _check(ref_chosen_logps=ref_chosen_logps, ref_rejected_logps=ref_rejected_logps)
    chosen, rejected = _by_token(ref_chosen_logps, ref_rejected_logps, chosen_lengths, rejected_lengths)
    share = torch.as_tensor(rater_share, dtype=torch.float64, device=chosen.device)
    if not bool(((share > 0) & (share < 1)).all()):
        raise ValueError(f"rater_share: expected values above 0 and below 1, got {share.tolist()}")
    if share.ndim and share.shape != chosen.shape:
        raise ValueError(f"rater_share: expected a number or shape {tuple(chosen.shape)}, got {tuple(share.shape)}")
    return chosen - rejected + torch.logit(share) / positive_number("beta", beta)


def ranking_threshold(ref_chosen_logps: Tensor, ref_rejected_logps: Tensor, *, beta: float = 0.1) -> Tensor:
    """The DPO loss a pair must not exceed to be ranked right (Chen et al. 2024, arXiv:2405.19534).

    ``-log σ(β c)`` with the difficulty ``c = log π_ref(l) - log π_ref(w)``: the pair is ranked right exactly if its
    loss is at most this.

    Args:
        ref_chosen_logps: of the reference, [B].
        ref_rejected_logps: [B].
        beta: of DPO, above 0.

    Returns:
        [B], in nats.
    """
    _check(ref_chosen_logps=ref_chosen_logps, ref_rejected_logps=ref_rejected_logps)
    return softplus(positive_number("beta", beta) * (ref_chosen_logps - ref_rejected_logps).detach())


def implicit_reward_accuracy(
    chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor
) -> Tensor:
    """Share of pairs with ``h(w) > h(l)``: ``rewards/accuracies`` of TRL. Ties count as wrong.

    Args:
        chosen_logps: of the policy, [B].
        rejected_logps: [B].
        ref_chosen_logps: of the reference, [B].
        ref_rejected_logps: [B].
    """
    _check(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        ref_chosen_logps=ref_chosen_logps,
        ref_rejected_logps=ref_rejected_logps,
    )
    return _share(chosen_logps - ref_chosen_logps > rejected_logps - ref_rejected_logps)


def kl_estimate(logps: Tensor, ref_logps: Tensor, *, estimator: str = "k3") -> Tensor:
    """Estimates of KL(π‖π_ref) from samples of π, element by element (Schulman 2020).

    Args:
        logps, ref_logps: log-probabilities of the samples, by token or by response.
        estimator: ``"k1"`` h, unbiased; ``"k2"`` h²/2, biased with little variance; ``"k3"`` ``e^{-h} + h - 1``,
            unbiased and never negative.

    Raises:
        ValueError: there is no such estimator.
    """
    _check(logps=logps, ref_logps=ref_logps)
    h = (logps - ref_logps).detach()
    if estimator == "k1":
        return h
    if estimator == "k2":
        return h.square() / 2
    if estimator == "k3":
        return torch.expm1(-h) + h
    raise ValueError(f'estimator: expected "k1", "k2" or "k3", got {estimator!r}')


def token_advantages(logps: Tensor, ref_logps: Tensor, *, beta: float = 0.1) -> Tensor:
    """What a DPO policy says of each token, ``β h_t``: its implicit reward, which is its advantage.

    With r' the reward into which the reference is folded, ``β h_t = r_t + V*(s_{t+1}) - V*(s_t)``; the sum over a
    response is its reward minus V* of the prompt (Rafailov et al. 2024, arXiv:2404.12358).

    Args:
        logps, ref_logps: by token.
        beta: of the DPO training.
    """
    _check(logps=logps, ref_logps=ref_logps)
    return positive_number("beta", beta) * (logps - ref_logps).detach()


class Line(NamedTuple):
    """A least-squares line and how much of the variance it explains."""

    slope: float
    intercept: float
    r_squared: float


def length_extrapolation(logratios: Tensor, lengths: Tensor) -> Line:
    """Regress log-ratios on response lengths: how far the implicit reward is a reward for length (arXiv:2406.02900).

    Args:
        logratios: h of each response, [R].
        lengths: tokens of each response, [R]; at least two different ones.

    Raises:
        ValueError: all lengths are equal.
    """
    _check(logratios=logratios, lengths=lengths)
    x, y = lengths.detach().double(), logratios.detach().double()
    x_centred, y_centred = x - x.mean(), y - y.mean()
    spread = x_centred.square().sum()
    if spread == 0.0:
        raise ValueError("lengths: expected at least two different lengths")
    slope = float((x_centred * y_centred).sum() / spread)
    residual = (y_centred - slope * x_centred).square().sum()
    total = y_centred.square().sum()
    explained = 1.0 - float(residual / total) if total > 0.0 else 1.0
    return Line(slope, float(y.mean()) - slope * float(x.mean()), explained)


class OveroptimisationFit(NamedTuple):
    """``R(d) = d (a - b log d)`` with d the root of the KL divergence; the fit's best d is `optimum`."""

    a: float
    b: float

    @property
    def optimum(self) -> float:
        """The distance at which R is largest, ``e^{a/b - 1}``."""
        return math.exp(self.a / self.b - 1.0)

    def __call__(self, kl: Tensor) -> Tensor:
        """R at these KL divergences, in nats."""
        distance = kl.sqrt()
        return distance * (self.a - self.b * distance.log())


def fit_overoptimisation(kl: Tensor, win_rate: Tensor) -> OveroptimisationFit:
    """Fit win rate (or gold reward) to KL by least squares (Gao et al. 2022; Rafailov et al. 2024, arXiv:2406.02900).

    Args:
        kl: KL(π‖π_ref) of checkpoints in nats, above 0, [N]; at least two different ones.
        win_rate: what each checkpoint reached, over what the reference reaches, [N].

    Raises:
        ValueError: a KL is not above 0, or there are fewer than two.
    """
    _check(kl=kl, win_rate=win_rate)
    if kl.numel() < 2 or bool((kl <= 0).any()):
        raise ValueError(f"kl: expected at least two values above 0, got {kl.tolist()}")
    distance = kl.detach().double().sqrt()
    design = torch.stack([distance, -distance * distance.log()], 1)
    a, b = torch.linalg.lstsq(design, win_rate.detach().double()[:, None]).solution.flatten().tolist()
    return OveroptimisationFit(a, b)


def _by_token(
    chosen: Tensor, rejected: Tensor, chosen_lengths: Tensor | None, rejected_lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Divide by lengths, if both are given."""
    if chosen_lengths is not None and rejected_lengths is not None:
        _check(chosen_logps=chosen, chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths)
        return chosen / chosen_lengths, rejected / rejected_lengths
    if chosen_lengths is None and rejected_lengths is None:
        return chosen, rejected
    given = "rejected_lengths" if chosen_lengths is None else "chosen_lengths"
    raise ValueError(f"chosen_lengths, rejected_lengths: expected both or neither, got {given} alone")


def _check(**tensors: Tensor) -> None:
    """Refuse what are not tensors of numbers on one device, and shapes that differ, which would broadcast."""
    (first, like), *_ = tensors.items()
    for name, tensor in tensors.items():
        check_tensor(name, tensor, (*FLOATS, *INTEGERS), "a float or integer", like=None if name == first else like)
        if tensor.shape != like.shape:
            raise ValueError(f"{name}: expected the shape of {first}, {tuple(like.shape)}, got {tuple(tensor.shape)}")


def _share(condition: Tensor) -> Tensor:
    return condition.double().mean()
