"""Intervals that hyper-parameters must lie in, written as in mathematics: "(0, inf)", "[0, 0.5)"."""

from __future__ import annotations

import re
from typing import Any

import torch

from ..errors import LanguageError

_INTERVAL = re.compile(r"([\[(])\s*([^,\s]+)\s*,\s*([^,\s]+)\s*([\])])")


class Bounds:
    """One hyper-parameter's interval.

    Args:
        parameter: the hyper-parameter's name, for messages.
        interval: e.g. "[0, 0.5)"; a round bracket excludes the end.

    Raises:
        LanguageError: the text is no interval.
    """

    def __init__(self, parameter: str, interval: str) -> None:
        match = _INTERVAL.fullmatch(interval.strip())
        if match is None:
            raise LanguageError(f"bounds of {parameter}: expected an interval such as '[0, 0.5)', got {interval!r}")
        self.parameter = parameter
        self.interval = interval
        self._low, self._high = float(match[2]), float(match[3])
        self._open_low, self._open_high = match[1] == "(", match[4] == ")"

    def check(self, value: Any) -> None:
        """Refuse a number outside, or an array with an element outside.

        Raises:
            ValueError: names the hyper-parameter, the value and the interval.
        """
        for end in _extremes(value):
            if not self._contains(end):
                raise ValueError(f"{self.parameter}: expected a value in {self.interval}, got {end!r}")

    def _contains(self, value: float) -> bool:
        above = value > self._low if self._open_low else value >= self._low
        below = value < self._high if self._open_high else value <= self._high
        return above and below


def _extremes(value: Any) -> tuple[float, ...]:
    """The least and the largest number; of what holds none, nothing."""
    if not hasattr(value, "shape"):
        return (float(value),)
    if 0 in value.shape or getattr(value, "is_meta", False):
        return ()
    wide = value.double() if isinstance(value, torch.Tensor) else value
    return wide.min().item(), wide.max().item()
