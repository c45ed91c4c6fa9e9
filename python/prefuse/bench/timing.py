"""Timing of cases that are compared with each other: by the clock, or by the events of a CUDA device."""

from __future__ import annotations

import functools
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch

from prefuse._display.progress import track

_FLUSH_NUMBERS = 1 << 26  # float32: more than the second-level cache of any GPU so far
_CYCLES_PER_SECOND = 2e9  # of a GPU's clock, about
_SHORTEST_WAIT = 1e-3  # seconds that the device waits at least while the host queues a run
_SHORTEST_SAMPLE = 1e-2  # seconds; below it the call and single interrupts weigh in, so a sample repeats the case
_SETTLING = 2e-2  # seconds, longer than PyTorch's threads look for more work before they sleep


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


def interleaved(
    cases: Mapping[str, Callable[[], object]],
    rounds: int = 15,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times every case once per round, in an order that turns from round to round.

    What else the machine does then falls on all cases alike. Before each sample its case runs untimed for a while:
    PyTorch's threads keep their processors for some milliseconds, looking for more work, which would fall on whoever
    comes next.
    `clock` is `time.process_time` for what one thread takes of a processor, on a machine that is busy otherwise.
    `rounds` is 2 or more. Each case runs `warm_up` times first. The garbage collector is off meanwhile.
    """
    repeats = {name: _repeats(run, warm_up) for name, run in cases.items()}
    samples = _in_turns(
        {name: functools.partial(_settled, run, repeats[name], clock) for name, run in cases.items()}, rounds
    )
    return {name: _summary(samples[name], repeats[name]) for name in cases}


def in_rounds(
    cases: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Timing]:
    """As `interleaved` for runs of seconds, which need neither repetition nor settling: each once per round."""
    sample = {name: functools.partial(_sample, run, 1, clock) for name, run in cases.items()}
    samples = _in_turns(sample, max(2, rounds))
    return {name: _summary(samples[name], 1) for name in cases}


def interleaved_on_device(
    cases: Mapping[str, Callable[[], Callable[[], object]]], rounds: int = 30, warm_up: int = 3
) -> dict[str, Timing]:
    """As `interleaved`, on the current CUDA device and stream, between two events; one run per sample.

    A case is called to get ready, which is not timed, and returns what is. Before each run a buffer larger than the
    second-level cache is read, so that nothing of the case is found there and nothing is left to be written back. Then
    the device waits for longer than the host took to queue the run before: no host time is within the sample.
    """
    flush = torch.zeros(_FLUSH_NUMBERS, device="cuda")
    waits = {name: _wait(case, warm_up) for name, case in cases.items()}
    samples = _in_turns(
        {name: functools.partial(_device_sample, case, flush, waits[name]) for name, case in cases.items()}, rounds
    )
    return {name: _summary(samples[name], 1) for name in cases}


def ready(run: Callable[[], object]) -> Callable[[], Callable[[], object]]:
    """A case of `interleaved_on_device` that has nothing to get ready."""
    return lambda: run


def _in_turns(sample: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {name: [] for name in sample}
    order = list(sample)
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for _ in track(range(rounds), "rounds"):
            for name in order:
                samples[name].append(sample[name]())
            order = [*order[1:], order[0]]
    finally:
        if was_enabled:
            gc.enable()
    return samples


def _repeats(run: Callable[[], object], warm_up: int) -> int:
    for _ in range(warm_up):
        run()
    return max(1, round(_SHORTEST_SAMPLE / max(_sample(run, 1), 1e-7)))


def _settled(run: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    end = time.perf_counter() + _SETTLING
    run()
    while time.perf_counter() < end:
        run()
    return _sample(run, repeats, clock)


def _sample(run: Callable[[], object], repeats: int, clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    for _ in range(repeats):
        run()
    return (clock() - start) / repeats


def _wait(case: Callable[[], Callable[[], object]], warm_up: int) -> int:
    """Cycles of the device, twice as long as the host takes to queue a run; the case is warm after it."""
    host = 0.0
    for _ in range(max(1, warm_up)):
        run = case()
        torch.cuda.synchronize()
        before = time.perf_counter()
        run()
        host = time.perf_counter() - before
        torch.cuda.synchronize()
    return int(max(_SHORTEST_WAIT, 2 * host) * _CYCLES_PER_SECOND)


def _device_sample(case: Callable[[], Callable[[], object]], flush: torch.Tensor, wait: int) -> float:
    run = case()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    flush.sum()
    torch.cuda._sleep(wait)  # type: ignore[no-untyped-call]
    start.record()
    result = run()
    end.record()
    end.synchronize()
    del result
    return float(start.elapsed_time(end)) / 1e3


def _summary(samples: list[float], repeats: int) -> Timing:
    lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, lower, upper, min(samples), len(samples), repeats)
