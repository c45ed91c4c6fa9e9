"""What lengths tell: a preference for long responses, and a length at which many were cut."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from prefuse.curate._rows import Floats, Indices
from prefuse.curate.inspection.results import Check

UNBIASED = 0.6
"""A share of longer responses whose interval is above this, or below one minus this, is a bias."""
_Z = 2.576  # of a 99 % interval
_ENDS = tuple(".!?…。！？।؟:;\"'”’»`)]}>*|")
_LEAST_CAPPED = 8
_SURPRISE = 1e-6


def wilson(share: float, count: float) -> tuple[float, float]:
    """Wilson's 99 % interval of a share of so many draws; (0, 1) for none."""
    if not count > 0.0:
        return 0.0, 1.0
    centre, scale = share + _Z**2 / (2 * count), 1 + _Z**2 / count
    half = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return (centre - half) / scale, (centre + half) / scale


def bias(better: Indices, worse: Indices, unit: str, rows: int, *, paired: bool = True) -> Check:
    """The check `length`: how often the better response is the longer.

    Args:
        better, worse: lengths of both responses of each pair [P]; unpaired, of all good and of all bad responses.
        unit: what lengths count.
        rows: of the data.
        paired: False compares every good with every bad response (the area under the ROC curve).
    """
    if not (len(better) and len(worse)):
        missing = "no row prefers a response" if paired else "all rows have one label"
        return Check("length", 0, 0, missing)
    if paired:
        apart = int((better != worse).sum())
        share = float((better > worse).sum() / apart) if apart else 0.5
        low, high = wilson(share, apart)
    else:
        share, draws = _area(better, worse)
        low, high = wilson(share, draws)
    biased = low > UNBIASED or high < 1 - UNBIASED
    what = (
        f"the better response is the longer in {share:.1%} ({low:.1%} to {high:.1%}); "
        f"means {better.mean():.0f} and {worse.mean():.0f} {unit}"
    )
    advice = (
        "match lengths, or use a loss that takes them out (r_dpo, simpo, or averages over tokens): "
        f"the model will learn to write {'longer' if share > 0.5 else 'shorter'}"
    )
    numbers = {
        "share": share,
        "low": low,
        "high": high,
        "better mean": float(better.mean()),
        "worse mean": float(worse.mean()),
    }
    sided = share if share > 0.5 else 1 - share
    return Check("length", round(sided * rows) if biased else 0, rows, what, advice * biased, (), numbers)


def _area(good: Indices, bad: Indices) -> tuple[float, float]:
    """P(good longer than bad), ties half; and of how many draws its variance (DeLong's) would be that of a share."""
    above = _placed(good, bad)
    below = 1.0 - _placed(bad, good)
    share = float(above.mean())
    least = float(min(len(good), len(bad)))
    variance = float(above.var() / len(good) + below.var() / len(bad))
    if variance <= 0.0:
        return share, least
    return share, min(max(share * (1 - share) / variance, 1.0), float(len(good) + len(bad)))


def _placed(values: Indices, among: Indices) -> Floats:
    ordered = np.sort(among)
    ends = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    placed: Floats = ends / (2.0 * len(among))
    return placed


def capped(texts: Sequence[str], lengths: Indices, unit: str, least: int) -> tuple[Indices, str]:
    """Which texts were cut at the greatest length: where more have exactly that than could be by chance.

    As chance counts a length that is no rarer than any other within 5 % below it; texts that end as sentences do are
    not counted. Lengths below `least` tell nothing, and neither do those that are all the same: a form, not a cut.

    Returns:
        The indices of the texts that were cut, and how that is said; none and "" where there was no cut.
    """
    nothing = np.zeros(0, np.int64)
    most = int(lengths.max(initial=0))
    if most < least or lengths.min() == most:
        return nothing, ""
    window = max(3, most // 20)
    near = int((lengths > most - window).sum())
    cut = np.flatnonzero(lengths == most)
    cut = np.array([index for index in cut.tolist() if not texts[index].rstrip().endswith(_ENDS)], np.int64)
    if len(cut) < _LEAST_CAPPED or _tail(len(cut), near, 1 / window) > _SURPRISE:
        return nothing, ""
    return cut, f"{len(cut)} end within a sentence at exactly {most} {unit}"


def _tail(successes: int, draws: int, chance: float) -> float:
    """An upper bound of P(at least so many successes), by Chernoff's inequality."""
    share = successes / draws
    if share <= chance:
        return 1.0
    gap = share * math.log(share / chance)
    if share < 1.0:
        gap += (1 - share) * math.log((1 - share) / (1 - chance))
    return math.exp(-draws * gap)
