"""The LM head of a step on a CUDA device, by several hands, over the time of the bare GEMMs.

A run is forward and backward, from hidden states and weight to their gradients. Every hand is checked, and runs once at
full size for its peak memory, before any is timed. The bare GEMMs write into memory that is there, all rows at once.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from unittest import mock

import torch

from prefuse._backends import columns
from prefuse._display import tables

from . import gather, head, quality, timing

BARE = "bare GEMMs"
BY_PYTORCH = "prefuse, sparse=2**-12, products by PyTorch"
TITLES = {head.DPO: "DPO", head.NLL: "mean log-probability"}
_LOGITS_AT_ONCE = 6  # tensors of the logits' size that a hand with whole logits takes, and the bare GEMMs' one
_MEBIBYTE = 1 << 20


class Size(NamedTuple):
    """Of the step that is measured, in bfloat16."""

    pairs: int
    tokens: int
    features: int
    classes: int

    @property
    def needed_bytes(self) -> int:
        """About how much memory measuring takes: whole logits, and weights in float64 for the check."""
        logits = 2 * self.pairs * self.tokens * self.classes * 2
        return _LOGITS_AT_ONCE * logits + 3 * self.features * self.classes * 8


FULL = Size(pairs=16, tokens=256, features=4096, classes=128256)
QUICK = Size(pairs=4, tokens=64, features=512, classes=32000)


def measure(size: Size, rounds: int, device: torch.device, against: Sequence[str] = ()) -> dict[str, Any]:
    """Measures every task with the weight frozen and trained, prints a table for each, returns the figures.

    `against` are the others to measure, as in `gather.against`.
    """
    free = torch.cuda.mem_get_info(device)[0]
    if free < size.needed_bytes:
        print(f"head: skipped, needs {size.needed_bytes / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are free")
        return {"size": size._asdict(), "tasks": [], "quality": None}
    tasks = [
        measure_task(size, task, trainable, rounds, device, against)
        for trainable in (False, True)
        for task in (head.DPO, head.NLL)
    ]
    tasks += [measure_task(size, head.DPO, trainable, rounds, device, sparse=True) for trainable in (False, True)]
    has_trl = head.TRL in head.available((head.TRL,), head.DPO)[0]
    return {
        "size": size._asdict(),
        "tasks": tasks,
        "quality": quality.report(torch.bfloat16, device) if has_trl else None,
    }


def measure_task(
    size: Size,
    task: str,
    trainable: bool,
    rounds: int,
    device: torch.device,
    against: Sequence[str] = (),
    sparse: bool = False,
) -> dict[str, Any]:
    """All hands that are there and right, printed and returned; of the others, why they are not measured.

    `sparse`: ours with sparse gradients and without, on probabilities like a model's.
    """
    title = f"{TITLES[task]}, weight {'trained' if trainable else 'frozen'}"
    torch.compiler.reset()
    if sparse:
        title += ", probabilities like a model's"
        batch = head.like_a_model(*size, trainable=trainable, device=device)
        names, absent = head.available((head.PREFUSE, *head.SPARSE), task)
    else:
        batch = head.inputs(*size, trainable=trainable, device=device)
        names, absent = head.available(gather.against(head.ON_DEVICE, against), task)
    reasons = absent | {name: reason for name in names if (reason := head.disagreement(name, task, batch))}
    runs: dict[str, Callable[[], object]] = {BARE: head.bare(batch)}
    peaks = {BARE: peak_bytes(runs[BARE])}
    for name in [name for name in names if name not in reasons]:
        runs[name] = head.step(name, task, batch)
        try:
            peaks[name] = peak_bytes(runs[name]) - batch.output_bytes
        except Exception as error:  # what a library raises at this size, be it that memory does not suffice
            reasons[name] = head.first_line(error)
    if sparse and (name := "prefuse, sparse=2**-12") in runs:
        runs[BY_PYTORCH] = _by_pytorch(runs[name])
        peaks[BY_PYTORCH] = peak_bytes(runs[BY_PYTORCH]) - batch.output_bytes
    for name, reason in reasons.items():
        print(f"head, {title}: {name} not measured ({reason})")
    timings = timing.interleaved_on_device({name: _ready(runs[name]) for name in peaks}, rounds)
    cases = [case_of(name, batch, timings, peaks[name]) for name in timings]
    _show(f"LM head, {title}: {batch.labels.numel()} tokens, H={size.features}, V={size.classes}", cases)
    return {
        "task": task,
        "weight": "trained" if trainable else "frozen",
        "like_a_model": sparse,
        "not_measured": reasons,
        "cases": cases,
    }


def case_of(name: str, batch: head.Batch, timings: dict[str, timing.Timing], peak: int) -> dict[str, Any]:
    """One hand's figures as JSON values; of ours, how much memory it may take too."""
    seconds, trl = timings[name].median, timings.get(head.TRL)
    return {
        "hand": name,
        "seconds": timings[name].as_dict(),
        "times_gemms": seconds / timings[BARE].median,
        "trl_over_this": None if trl is None else trl.median / seconds,
        "peak_beyond_gradients_bytes": peak,
        "allowed_bytes": head.allowed_bytes(name, batch),
    }


def _by_pytorch(run: Callable[[], object]) -> Callable[[], object]:
    """The same where columns are multiplied strip by strip by PyTorch, as on devices without our products."""

    def by_pytorch() -> object:
        with mock.patch.object(columns, "has_tensor_cores", return_value=False):
            return run()

    return by_pytorch


def peak_bytes(run: Callable[[], object]) -> int:
    """By how much a run raises the memory that PyTorch has given out at most; the first of two runs warms up."""
    run()
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _show(title: str, cases: list[dict[str, Any]]) -> None:
    rows = [
        (
            case["hand"],
            f"{case['seconds']['median'] * 1e3:.2f}",
            f"{case['times_gemms']:.2f}",
            "" if case["trl_over_this"] is None else f"{case['trl_over_this']:.2f}",
            f"{case['peak_beyond_gradients_bytes'] / _MEBIBYTE:.0f}",
            "" if case["allowed_bytes"] is None else f"{case['allowed_bytes'] / _MEBIBYTE:.0f}",
        )
        for case in cases
    ]
    headings = ("hand", "ms", "time / GEMMs", "TRL / time", "MiB without the gradients", "allowed")
    tables.show(title, headings, rows)


def _ready(run: Callable[[], object]) -> Callable[[], Callable[[], object]]:
    return lambda: run
