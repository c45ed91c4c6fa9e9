"""Which pairs to trust, and which to ask about: from several opinions on each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ._numbers import Array, Seed, above_zero, at_least, count, floats, generator, like, probabilities
from ._rows import Floats, Rows, table


def information_gain(passes: Array) -> Array:
    """How far passes of a classifier under dropout disagree, in nats (BALD, Houlsby et al. 2011, arXiv:1112.5745).

    ``H(mean_t p_t) - mean_t H(p_t)`` with H the entropy of a yes-or-no answer: 0 where all passes agree, log 2 where
    half are sure of yes and half of no.

    Args:
        passes: p, the probability that the chosen response is the better one, [..., T] over T passes; 10 in UPO.

    Returns:
        In [0, log 2], [...].
    """
    p = probabilities("passes", passes)
    if p.ndim == 0 or p.shape[-1] == 0:
        raise ValueError(f"passes: expected shape (..., T) with T >= 1, got {p.shape}")
    gain = _entropy(p.mean(-1)) - _entropy(p).mean(-1)
    return like(passes, np.clip(gain, 0.0, math.log(2.0)))


def certainty_weights(gain: Array, *, exponent: float = 1.0) -> Array:
    """How likely each pair is to be sampled in UPO (Wang et al. 2024, arXiv:2409.11212): ``(1-B)^μ``, summing to 1.

    Args:
        gain: B, the `information_gain` of each pair in nats, [N].
        exponent: μ; 0 samples uniformly. The paper prints μ as a factor, which would cancel.
    """
    values = floats("gain", gain)
    at_least("exponent", exponent, 0.0)
    outside = np.flatnonzero((values < 0.0) | (values > 1.0))
    if len(outside):
        raise ValueError(f"gain: {values.flat[outside[0]]} at {outside[0]}, expected nats in [0, log 2]")
    weights = (1.0 - values) ** exponent
    return like(gain, weights / weights.sum() if weights.any() else weights)


def certain_pairs(rows: Rows, keep: int, *, passes: str = "passes", exponent: float = 1.0, seed: Seed = 0) -> Rows:
    """Sample pairs that a preference classifier is sure of, as UPO does (Wang et al. 2024, arXiv:2409.11212).

    Args:
        rows: one per pair.
        keep: how many to draw, without replacement; all if there are no more.
        passes: the column of a list of T probabilities each, from T passes under dropout.
        exponent: μ of `certainty_weights`.
        seed: int or generator.

    Returns:
        The pairs drawn, in the order they had, with their `information_gain` as `uncertainty`: the column that the
        objective `upo` reads.
    """
    count("keep", keep, least=0)
    given = table(rows)
    opinions = given.values(passes)
    if len({len(one) for one in opinions}) > 1:
        raise ValueError(f"{passes}: expected equally many passes in all rows")
    gain = information_gain(floats(passes, opinions)) if opinions else np.zeros(0)
    weights = certainty_weights(gain, exponent=exponent)
    with np.errstate(divide="ignore"):
        arrivals = generator(seed).exponential(size=len(weights)) / weights
    drawn = np.sort(np.argsort(arrivals, kind="stable")[:keep])
    return table(given.selected(drawn)).with_columns({"uncertainty": gain[drawn]})


def posterior_disagreement(difference: Array, covariance: Any, *, scale: float = 1.0) -> Array:
    """By how much two draws of a linear reward differ on a pair, on average (PR-LSVI, arXiv:2310.14554).

    ``E |(θ - θ')ᵀ Δφ|`` for θ, θ' from N(θ̂, σ²Σ⁻¹), which is ``(2σ/√π) (Δφᵀ Σ⁻¹ Δφ)^½`` (Wu and Sun 2023).

    Args:
        difference: Δφ, the features of one response less those of the other, [..., D].
        covariance: Σ⁻¹, symmetric and positive semi-definite, [D, D].
        scale: σ.

    Returns:
        In units of the reward, [...].
    """
    delta, matrix = floats("difference", difference), floats("covariance", covariance)
    above_zero("scale", scale)
    if delta.ndim == 0 or matrix.shape != (delta.shape[-1],) * 2:
        raise ValueError(f"covariance: expected shape (D, D) for differences (..., D), got {matrix.shape}")
    variance = np.einsum("...i,ij,...j->...", delta, matrix, delta)
    if (variance < -1e-9 * np.abs(matrix).max(initial=0.0)).any():
        raise ValueError("covariance: expected a positive semi-definite matrix, got a negative variance")
    return like(difference, 2.0 * scale / math.sqrt(math.pi) * np.sqrt(np.maximum(variance, 0.0)))


def ensemble_disagreement(margins: Array) -> Array:
    """As `posterior_disagreement` where an ensemble is the posterior: the mean of ``|Δ_i - Δ_j|`` over members i ≠ j.

    Args:
        margins: Δ, each member's reward of one response less that of the other, [..., k] with k >= 2.

    Returns:
        [...].
    """
    ordered = np.sort(floats("margins", margins), axis=-1)
    if ordered.ndim == 0 or ordered.shape[-1] < 2:
        raise ValueError(f"margins: expected shape (..., k) with k >= 2, got {ordered.shape}")
    k = ordered.shape[-1]
    return like(margins, (ordered * (2.0 * np.arange(k) - k + 1.0)).sum(-1) * 2.0 / (k * (k - 1)))


def to_query(disagreement: Array, *, threshold: float) -> Array:
    """The pairs worth asking about, as indices: those on which the posterior disagrees by more than the threshold.

    The query rule of PR-LSVI (Wu and Sun 2023, arXiv:2310.14554), from either measure above.

    Args:
        disagreement: of the posterior on each pair, [P].
        threshold: 0 or more, in the measure's unit.
    """
    at_least("threshold", threshold, 0.0)
    return like(disagreement, np.flatnonzero(floats("disagreement", disagreement) > threshold))


def _entropy(p: Floats) -> Floats:
    q = 1.0 - p
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0.0, p * np.log(p), 0.0) + np.where(q > 0.0, q * np.log(q), 0.0)
    return np.asarray(-terms)
