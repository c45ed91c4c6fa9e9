"""What pairs and samples tell besides preference: how it goes with length, and how far a policy has come."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from prefuse.metrics import Line, kl_estimate, length_extrapolation

from ._rows import Floats, Rows, table


class LengthReport(NamedTuple):
    """How length goes with preference over pairs.

    Attributes:
        pairs: how many.
        chosen_longer, rejected_longer: shares of pairs; the rest are equally long.
        chosen_mean, rejected_mean: mean lengths.
        correlation: of the gap in length with the gap in score; NaN without scores, or where one does not vary.
    """

    pairs: int
    chosen_longer: float
    rejected_longer: float
    chosen_mean: float
    rejected_mean: float
    correlation: float


class DriftReport(NamedTuple):
    """How far a policy has come from its reference, over samples of its own.

    Attributes:
        samples: how many.
        kl: KL(π‖π_ref) in nats per response, the mean of ``log π - log π_ref``.
        kl_error: its standard error.
        kl_per_token: the sum of log-ratios over that of lengths, in nats per token.
        length_mean: mean length.
        length_line: the log-ratio regressed on length (arXiv:2406.02900): where it explains much, the implicit reward
            is one for length. None where all are equally long.
    """

    samples: int
    kl: float
    kl_error: float
    kl_per_token: float
    length_mean: float
    length_line: Line | None


def length_report(
    rows: Rows,
    *,
    chosen_length: str = "chosen_length",
    rejected_length: str = "rejected_length",
    chosen_score: str | None = None,
    rejected_score: str | None = None,
) -> LengthReport:
    """Compare lengths of chosen and rejected responses (Park et al. 2024, arXiv:2403.19159).

    Args:
        rows: one per pair.
        chosen_length, rejected_length: the columns of lengths, in tokens or whatever counts.
        chosen_score, rejected_score: with both, the gaps are correlated.

    Raises:
        ValueError: there is no pair, or one score column without the other.
    """
    given = table(rows)
    chosen, rejected = given.numbers(chosen_length), given.numbers(rejected_length)
    if not len(chosen):
        raise ValueError("rows: expected at least one pair")
    if (chosen_score is None) != (rejected_score is None):
        raise ValueError("chosen_score, rejected_score: expected both or neither")
    correlation = float("nan")
    if chosen_score is not None and rejected_score is not None:
        gap = given.numbers(chosen_score) - given.numbers(rejected_score)
        correlation = _correlation(chosen - rejected, gap)
    longer, shorter = float((chosen > rejected).mean()), float((chosen < rejected).mean())
    return LengthReport(len(chosen), longer, shorter, float(chosen.mean()), float(rejected.mean()), correlation)


def drift_report(
    rows: Rows, *, logps: str = "logps", ref_logps: str = "ref_logps", length: str = "length"
) -> DriftReport:
    """Estimate the KL divergence from samples of the policy, per response and per token, and how it goes with length.

    Args:
        rows: one per response, sampled from the policy.
        logps, ref_logps: the columns of log-probabilities of whole responses, in nats.
        length: the column of lengths in tokens.

    Raises:
        ValueError: there is no row, or a length is not above 0.
    """
    given = table(rows)
    lengths = given.numbers(length)
    if not len(lengths):
        raise ValueError("rows: expected at least one response")
    if lengths.min() <= 0.0:
        raise ValueError(f"{length}: expected numbers above 0, got {lengths.min()} in row {int(lengths.argmin())}")
    policy, reference = torch.tensor(given.numbers(logps)), torch.tensor(given.numbers(ref_logps))
    ratios = kl_estimate(policy, reference, estimator="k1")
    samples = len(lengths)
    error = float(ratios.std(correction=1)) / samples**0.5 if samples > 1 else float("nan")
    varied = lengths.min() < lengths.max()
    return DriftReport(
        samples,
        float(ratios.mean()),
        error,
        float(ratios.sum()) / float(lengths.sum()),
        float(lengths.mean()),
        length_extrapolation(ratios, torch.tensor(lengths)) if varied else None,
    )


def _correlation(x: Floats, y: Floats) -> float:
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / scale if scale > 0.0 else float("nan")
