"""`python -m prefuse bench device`: checks the CUDA kernels, then measures them beside what else is in use.

Rows and the LM head are timed between two events of the device, all hands in turns, with a cold second-level cache.
GB/s counts the least traffic there can be: forward reads the logits once, backward reads them and writes the gradient,
both together read twice and write once. The share is of what reading a tensor, or copying one where something is
written, reaches on the same device. The file is written after every part, and a part that fails is named in it: what
was measured is kept whenever it is cut off.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefuse._display import tables

from . import (
    denoising,
    device_checks,
    first_light,
    gather,
    head_device,
    launches,
    machine,
    prompts,
    results,
    scoring,
    timing,
)

FORWARD, BACKWARD, BOTH = "forward", "backward", "forward+backward"
TRAFFIC = {FORWARD: 1, BACKWARD: 2, BOTH: 3}
NO_DEVICE = "bench device needs a CUDA device, and PyTorch sees none; `python -m prefuse doctor` shows what is missing"
LIBRARIES = ("trl", "liger-kernel", "quack-kernels", "flash-attn", "cut-cross-entropy", "verl", "triton")
PARTS = ("checks", "bandwidth", "rows", "scoring", "denoising", "head", "prompts")
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
_PAIRS = 64
_LOGITS_AT_ONCE = 8  # tensors of the logits' size that the greediest hand and the others' copies take together


class Size(NamedTuple):
    """How much is measured."""

    shapes: tuple[tuple[int, int], ...]
    dtypes: tuple[torch.dtype, ...]
    rounds: int
    copied: int
    latents: tuple[tuple[int, ...], ...]
    head: head_device.Size
    prompts: prompts.Size
    against: tuple[str, ...] = ()


LATENTS = ((32, 4, 64, 64), (32, 16, 128, 128), (8, 16, 21, 90, 160))
"""Of a small and a large image model and of a video model."""

FULL = Size(
    ((8192, 128256), (4096, 151936)),
    (torch.bfloat16, torch.float32),
    30,
    1 << 31,
    LATENTS,
    head_device.FULL,
    prompts.FULL,
)
QUICK = Size(((1024, 32000),), (torch.bfloat16,), 10, 1 << 28, LATENTS[:1], head_device.QUICK, prompts.QUICK)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("--quick", action="store_true", help="one small shape and few rounds, to see that all works")
    parser.add_argument("--rounds", type=_at_least_two, help="samples of each hand")
    parser.add_argument("--only", type=_parts, default=PARTS, help=f"parts, out of {','.join(PARTS)} (all)")
    parser.add_argument("--shapes", type=_shapes, help="of logits, such as 8192x128256,4096x151936")
    parser.add_argument("--dtypes", type=_dtypes, help="of logits and latents, such as bf16,f32")
    parser.add_argument(
        "--against",
        type=_words,
        default=(),
        help="the others in rows and head, by parts of their names, such as trl,liger,compile (all)",
    )
    parser.add_argument("--budget-seconds", type=float, default=math.inf, help="begin no part after so long")
    parser.add_argument(
        "--first-light", type=Path, metavar="OUT", help="all of a first run into this folder, by steps, within 600 s"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("benchmarks/results"), help="folder of the JSON file (%(default)s)"
    )


def main(options: argparse.Namespace) -> int:
    """Checks, measures, prints, writes; 0 where all is well, 1 where a part or a check fails, 2 without a device."""
    if not torch.cuda.is_available():
        print(NO_DEVICE)
        return 2
    if options.first_light:
        budget = options.budget_seconds if math.isfinite(options.budget_seconds) else first_light.SECONDS
        status = first_light.first_light(options.first_light, budget)
        print((options.first_light / "summary.txt").read_text())
        return status
    size = QUICK if options.quick else FULL
    size = size._replace(
        rounds=options.rounds or size.rounds,
        shapes=options.shapes or size.shapes,
        dtypes=options.dtypes or size.dtypes,
        against=options.against,
    )
    device = torch.device("cuda", torch.cuda.current_device())
    about = machine.describe_device(device)
    print(f"{about['name']}, driver for CUDA {about['driver_supports_cuda']}, torch {torch.__version__}")
    report: dict[str, Any] = {"comparison": "CUDA kernels", "machine": machine.describe(), "device": about}

    def keep() -> Path:
        return results.write(options.results, "device", report, str(about["name"]))

    measure(report, size, device, options.only, time.monotonic() + options.budget_seconds, keep)
    print(f"written to {keep()}")
    return 1 if report["failed"] or report.get("checks") else 0


def measure(
    report: dict[str, Any],
    size: Size,
    device: torch.device,
    parts: Sequence[str] = PARTS,
    until: float = math.inf,
    keep: Callable[[], object] = lambda: None,
) -> None:
    """Measures part after part into `report`, as JSON values, printing a table of each.

    Args:
        report: gets a key per part; ``failed``, what raised what; ``left_out``, for which no time was left.
        size: how much.
        device: a CUDA device.
        parts: out of `PARTS`.
        until: by `time.monotonic`; no part begins after it.
        keep: called whenever there is more in the report.
    """
    report |= {"libraries": {name: _version(name) for name in LIBRARIES}, "failed": {}, "left_out": []}
    ways: dict[str, Callable[[], Any]] = {
        "checks": lambda: _checks(device),
        "bandwidth": lambda: bandwidth(size, device),
        "rows": lambda: _all_rows(report, size, device, until, keep),
        "scoring": lambda: measure_scoring(device),
        "denoising": lambda: measure_denoising(size, _speeds(report), device),
        "head": lambda: head_device.measure(size.head, size.rounds, device, size.against),
        "prompts": lambda: prompts.measure(size.prompts, size.rounds, device),
    }
    for part in (part for part in PARTS if part in parts):
        if time.monotonic() > until:
            report["left_out"].append(part)
            print(f"{part}: left out, no time is left")
            continue
        try:
            report[part] = ways[part]()
        except Exception as error:  # whatever a library or the device raises: the other parts go on
            report["failed"][part] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            print(f"{part}: failed, {report['failed'][part]}")
        keep()


def _checks(device: torch.device) -> list[str]:
    wrong = device_checks.failures(device)
    passed = "checks passed: statistics, gradients, objective, head"
    print("\n".join(["checks failed:", *wrong] if wrong else [passed]))
    return wrong


def _speeds(report: Mapping[str, Any]) -> dict[str, float]:
    """Bytes per second of reading and copying, where they were measured."""
    return dict(report.get("bandwidth") or {})


def _all_rows(
    report: dict[str, Any], size: Size, device: torch.device, until: float, keep: Callable[[], object]
) -> list[dict[str, Any]]:
    """All shapes and dtypes; what there is so far is in the report."""
    found, absent = gather.on_device()
    for name, reason in absent.items():
        print(f"absent: {name} ({reason})")
    measured = gather.against(found, size.against)
    report |= {"absent": absent, "rows": []}
    for shape in size.shapes:
        for dtype in size.dtypes:
            if time.monotonic() > until:
                report["left_out"].append(f"rows {shape[0]}x{shape[1]} {dtype}")
                continue
            report["rows"] += measure_rows(shape, dtype, measured, size.rounds, _speeds(report), device)
            keep()
    return list(report["rows"])


def bandwidth(size: Size, device: torch.device) -> dict[str, float]:
    """Bytes per second of reading and of copying, printed and returned."""
    cases = machine.bandwidth_cases(min(size.copied, torch.cuda.mem_get_info(device)[0] // 4), device)
    timings = timing.interleaved_on_device({name: timing.ready(run) for name, (run, _) in cases.items()}, size.rounds)
    speeds = {name: moved / timings[name].median for name, (_, moved) in cases.items()}
    tables.show("memory", ("what", "GB/s"), [(name, f"{speed / 1e9:.0f}") for name, speed in speeds.items()])
    return speeds


def measure_rows(
    shape: tuple[int, int],
    dtype: torch.dtype,
    names: Sequence[str],
    rounds: int,
    speeds: Mapping[str, float],
    device: torch.device,
) -> list[dict[str, Any]]:
    """All hands on one shape and dtype, forward, backward and both, printed and returned."""
    title = f"[{shape[0]} × {shape[1]}] {str(dtype).removeprefix('torch.')}"
    release()
    free, needed = torch.cuda.mem_get_info(device)[0], _LOGITS_AT_ONCE * shape[0] * shape[1] * dtype.itemsize
    if free < needed:
        print(f"{title}: skipped, needs {needed / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are free")
        return []
    logits, labels = gather.inputs(*shape, dtype, device=device)
    able = []
    for name in names:
        reason = device_checks.disagreement(name, logits, labels)
        able += [] if reason else [name]
        if reason:
            print(f"{title}: {name} not measured ({reason})")
    cases = []
    for direction in TRAFFIC:
        hands = {name: case(name, logits, labels, direction) for name in able if takes_part(name, direction)}
        timings = timing.interleaved_on_device(hands, rounds)
        moved = TRAFFIC[direction] * logits.numel() * logits.element_size()
        part = compared(timings, logits, direction, moved, speeds)
        show_rows(f"{title}, {direction}", part)
        cases += part
    return cases


def compared(
    timings: dict[str, timing.Timing], given: Tensor, direction: str, moved: int, speeds: Mapping[str, float]
) -> list[dict[str, Any]]:
    """What is written of the hands of one comparison that move so many bytes at least."""
    limit = "read" if direction == FORWARD else "copy"
    return [
        {
            "hand": name,
            "shape": list(given.shape),
            "dtype": str(given.dtype).removeprefix("torch."),
            "pass": direction,
            "seconds": seconds.as_dict(),
            "gigabytes_per_second": moved / seconds.median / 1e9,
            "share": moved / seconds.median / speeds[limit] if limit in speeds else None,
            "share_of": limit,
            "times_prefuse": seconds.median / timings[gather.PREFUSE].median,
        }
        for name, seconds in timings.items()
    ]


def takes_part(name: str, direction: str) -> bool:
    """In place differs in the backward pass only; Liger's backward pass is a part of its forward pass."""
    return (name, direction) not in ((gather.PREFUSE_INPLACE, FORWARD), (gather.LIGER, BACKWARD))


def case(name: str, logits: Tensor, labels: Tensor, direction: str) -> Callable[[], Callable[[], object]]:
    """A hand for `timing.interleaved_on_device`."""
    if direction != BACKWARD:
        return timing.ready(gather.bound(name, logits, labels, direction == BOTH))
    own = logits.clone() if name in gather.OVERWRITES else logits
    hand, upstream = gather.hand(name), torch.ones(len(labels), device=labels.device)
    return lambda: gather.before_backward(hand, own, labels, upstream)


def measure_scoring(device: torch.device) -> list[dict[str, Any]]:
    """DPO on 64 pairs with metrics and gradient: the time that kernels run and their number, printed and returned."""
    parts, rows = [], []
    for name, run in scoring.ways(scoring.columns(_PAIRS, device)).items():
        seen = launches.profiled(run)
        parts.append({"hand": name, "pairs": _PAIRS, "launches": None if seen is None else seen._asdict()})
        figures = ("not seen",) * 3
        if seen is not None:
            figures = (f"{seen.seconds * 1e6:.1f}", f"{seen.kernels:.1f}", f"{seen.memory_operations:.1f}")
        rows.append((name, *figures))
    headings = ("hand", "device µs", "kernels", "copies and fills")
    tables.show(f"scoring {_PAIRS} pairs: loss, gradient, metrics", headings, rows)
    return parts


def measure_denoising(size: Size, speeds: Mapping[str, float], device: torch.device) -> list[dict[str, Any]]:
    """Squared errors of latents by all hands, forward and with the gradient, printed and returned."""
    found = []
    for shape in size.latents:
        for dtype in size.dtypes:
            release()
            predicted, target = denoising.inputs(shape, dtype, device)
            for task in denoising.VISITS:
                hands = {name: timing.ready(run) for name, run in denoising.cases(predicted, target, task).items()}
                timings = timing.interleaved_on_device(hands, size.rounds)
                moved = denoising.least_bytes(predicted, task)
                part = compared(timings, predicted, task, moved, speeds)
                show_rows(f"squared errors of {' × '.join(map(str, shape))} {part[0]['dtype']}, {task}", part)
                found += part
    return found


def show_rows(title: str, cases: list[dict[str, Any]]) -> None:
    """Prints one comparison."""
    rows = [
        (
            case["hand"],
            f"{case['seconds']['median'] * 1e3:.3f}",
            f"{case['gigabytes_per_second']:.0f}",
            "" if case["share"] is None else f"{case['share']:.0%} of {case['share_of']}",
            f"{case['times_prefuse']:.2f}",
        )
        for case in cases
    ]
    tables.show(title, ("hand", "ms", "GB/s", "share", "time / prefuse"), rows)


def release() -> None:
    """Gives back what the last shape held, compiled code included, which else would be generalised to the next."""
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"got {unknown[0]!r}, expected names out of {','.join(PARTS)}")
    return parts


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _shapes(text: str) -> tuple[tuple[int, int], ...]:
    found = [re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", part) for part in text.split(",")]
    if None in found:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected shapes such as 8192x128256,4096x151936")
    return tuple((int(match[1]), int(match[2])) for match in found if match)


def _dtypes(text: str) -> tuple[torch.dtype, ...]:
    unknown = [part for part in text.split(",") if part not in DTYPES]
    if unknown:
        raise argparse.ArgumentTypeError(f"got {unknown[0]!r}, expected names out of {','.join(DTYPES)}")
    return tuple(DTYPES[part] for part in text.split(","))


def _at_least_two(text: str) -> int:
    count = int(text)
    if count < 2:
        raise argparse.ArgumentTypeError(f"got {count}, expected 2 or more")
    return count
