"""Wall-clock timing of cases that are compared with each other."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

_SHORTEST_SAMPLE = 1e-3  # seconds; below it the clock and the call weigh in, so a sample repeats the case


@dataclass(frozen=True)
class Timing:
    """Seconds per run: median, quartiles and the fastest of `rounds` samples of `repeats` runs each."""

    median: float
    lower_quartile: float
    upper_quartile: float
    fastest: float
    rounds: int
    repeats: int

    def as_dict(self) -> dict[str, float]:
        """The fields by name."""
        return asdict(self)


def interleaved(cases: Mapping[str, Callable[[], object]], rounds: int = 15, warm_up: int = 2) -> dict[str, Timing]:
    """Times every case once per round, in an order that turns from round to round.

    What else the machine does then falls on all cases alike, and none always follows the same other. `rounds` is 2 or
    more. Each case runs `warm_up` times first. The garbage collector is off meanwhile.
    """
    repeats = {name: _repeats(run, warm_up) for name, run in cases.items()}
    samples: dict[str, list[float]] = {name: [] for name in cases}
    order = list(cases)
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for name in order:
                samples[name].append(_sample(cases[name], repeats[name]))
            order = [*order[1:], order[0]]
    finally:
        if was_enabled:
            gc.enable()
    return {name: _summary(samples[name], repeats[name]) for name in cases}


def _repeats(run: Callable[[], object], warm_up: int) -> int:
    for _ in range(warm_up):
        run()
    return max(1, round(_SHORTEST_SAMPLE / max(_sample(run, 1), 1e-7)))


def _sample(run: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def _summary(samples: list[float], repeats: int) -> Timing:
    lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, lower, upper, min(samples), len(samples), repeats)
