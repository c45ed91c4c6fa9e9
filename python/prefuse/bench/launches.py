"""What one run makes a CUDA device do, as its profiler sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile


class Launches(NamedTuple):
    """Of one run on average: seconds that kernels ran, how many kernels, how many copies and fills of memory."""

    seconds: float
    kernels: float
    memory_operations: float


def profiled(run: Callable[[], object], runs: int = 50, warm_up: int = 10) -> Launches | None:
    """The launches of `run`; None where the profiler sees nothing (it may lack permission to)."""
    for _ in range(warm_up):
        run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(runs):
            run()
        torch.cuda.synchronize()
    seen = [
        event
        for event in profiler.events() or ()
        if event.device_type.name == "CUDA" and not getattr(event, "is_user_annotation", False)
    ]
    kernels = [event for event in seen if not event.name.startswith(("Memcpy", "Memset"))]
    if not kernels:
        return None
    seconds = sum(event.time_range.elapsed_us() for event in kernels) / 1e6
    return Launches(seconds / runs, len(kernels) / runs, (len(seen) - len(kernels)) / runs)
