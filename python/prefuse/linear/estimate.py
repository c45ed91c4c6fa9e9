"""What a plan should take on a named device, by arithmetic: nothing is measured, and no device is needed.

A GEMM is counted in waves: blocks of 128 x 256 results, one for each multiprocessor at a time, at the specified peak of
16-bit arithmetic; traffic at the specified bandwidth. Nothing overlaps, and launches, small kernels and the host cost
nothing. So figures say where a plan loses, not how long it takes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from prefuse._display.html import table

from .plans import Plan

BLOCK_ROWS, BLOCK_COLUMNS = 128, 256
"""Results of a block of a GEMM."""


@dataclass(frozen=True)
class Device:
    """What a device's maker specifies.

    Attributes:
        multiprocessors: their number.
        flops: 16-bit operations per second, dense, summed in float32.
        bandwidth: bytes per second of its memory.
    """

    multiprocessors: int
    flops: float
    bandwidth: float


DEVICES = {
    "a100": Device(108, 312e12, 2.04e12),
    "h100": Device(132, 989e12, 3.35e12),
    "h200": Device(132, 989e12, 4.8e12),
    "b200": Device(148, 2250e12, 8.0e12),
    "rtx4090": Device(128, 165e12, 1.01e12),
}
"""By name: A100 80 GB SXM, H100 SXM, H200 SXM, B200 SXM, RTX 4090."""


@dataclass(frozen=True, repr=False)
class Estimate:
    """Arithmetic about a plan on a device; prints as a table.

    Attributes:
        device: its name.
        waves: of all GEMMs, tile by tile.
        bare_waves: of the same GEMMs, each in one piece.
        traffic_bytes: that row kernels and sums of the weight's gradient move beside the GEMMs.
        seconds: of all.
        bare_seconds: of the GEMMs in one piece.
    """

    device: str
    waves: int
    bare_waves: int
    traffic_bytes: int
    seconds: float
    bare_seconds: float

    @property
    def over_bare(self) -> float:
        """The time over that of the bare GEMMs."""
        return self.seconds / self.bare_seconds if self.bare_seconds else 1.0

    def _lines(self) -> list[tuple[str, str]]:
        return [
            ("device", f"{self.device}, by arithmetic from its specification; nothing was measured"),
            ("waves", f"{self.waves}; {self.bare_waves} of the bare GEMMs"),
            ("traffic", f"{self.traffic_bytes / 1e9:.2f} GB beside the GEMMs"),
            ("over bare", f"{self.over_bare:.2f} x the bare GEMMs"),
        ]

    def __repr__(self) -> str:
        return "\n".join(f"{name:<11}{value}" for name, value in self._lines())

    def _repr_html_(self) -> str:
        return table(self._lines())


def estimate(plan: Plan, device: str) -> Estimate:
    """Counts what `plan` takes on a device of `DEVICES`.

    Raises:
        ValueError: the name is not one of `DEVICES`, or lists of probabilities take the place of GEMMs.
    """
    if device not in DEVICES:
        raise ValueError(f"device: expected one of {', '.join(DEVICES)}, got {device!r}")
    if plan.name == "lists":
        raise ValueError("plan: lists are made on the CPU; expected a plan of GEMMs")
    on, job = DEVICES[device], plan.job
    pieces = [gemm for rows, classes in _tiles(plan, False) for gemm in _forward_gemms(plan, rows, classes)]
    pieces += [gemm for rows, classes in _tiles(plan, True) for gemm in _backward_gemms(plan, rows, classes)]
    whole = _forward_gemms(plan, job.rows, job.classes)
    whole += [gemm for gemm in _backward_gemms(plan, job.rows, job.classes) if plan.name != "forward"]
    traffic = _row_bytes(plan) + _sum_bytes(plan)
    seconds = sum(_seconds(gemm, on) for gemm in pieces) + traffic / on.bandwidth
    return Estimate(
        device,
        sum(_waves(gemm, on) for gemm in pieces),
        sum(_waves(gemm, on) for gemm in whole),
        traffic,
        seconds,
        sum(_seconds(gemm, on) for gemm in whole),
    )


Gemm = tuple[int, int, int]
"""Rows and columns of the result, and what is summed over."""


def _tiles(plan: Plan, backward: bool) -> list[tuple[int, int]]:
    """Rows and classes of each tile of the forward pass, or of a backward pass of its own."""
    job, (rows, classes) = plan.job, plan.backward_tile if backward else plan.tile
    if backward and plan.name != "recompute":
        return []
    if plan.chunks and job.groups:
        return [(sum(job.groups[a:b]), job.classes) for a, b in itertools.pairwise(plan.chunks)]
    if not rows or not classes:
        return []
    return [(r, c) for r in _parts(job.rows, rows) for c in _parts(job.classes, classes)]


def _parts(whole: int, part: int) -> list[int]:
    return [min(part, whole - begin) for begin in range(0, whole, part)]


def _forward_gemms(plan: Plan, rows: int, classes: int) -> list[Gemm]:
    logits = [(rows, classes, plan.job.features)] * (2 if plan.job.reference else 1)
    return logits + (_gradient_gemms(plan, rows, classes) if plan.name in ("single-pass", "grouped", "keep") else [])


def _backward_gemms(plan: Plan, rows: int, classes: int) -> list[Gemm]:
    if plan.name != "recompute":
        return []
    return [(rows, classes, plan.job.features), *_gradient_gemms(plan, rows, classes)]


def _gradient_gemms(plan: Plan, rows: int, classes: int) -> list[Gemm]:
    job = plan.job
    count = job.directions if plan.name == "single-pass" else 1
    hidden = [(rows, job.features, classes)] * count if job.hidden else []
    return hidden + ([(classes, job.features, rows)] if job.weight else [])


def _waves(gemm: Gemm, on: Device) -> int:
    blocks = -(-gemm[0] // BLOCK_ROWS) * -(-gemm[1] // BLOCK_COLUMNS)
    return -(-blocks // on.multiprocessors)


def _seconds(gemm: Gemm, on: Device) -> float:
    """All waves as full ones; or, where that is longer, operands and result once through memory."""
    rows, columns, inner = gemm
    block = 2.0 * BLOCK_ROWS * BLOCK_COLUMNS * inner * on.multiprocessors / on.flops
    traffic = 2.0 * (rows * inner + inner * columns + rows * columns) / on.bandwidth
    return max(_waves(gemm, on) * block, traffic)


def _row_bytes(plan: Plan) -> int:
    """Logits read, and read and written where a gradient takes their place; in one visit where it is single-pass."""
    job = plan.job
    logits = job.rows * job.classes * job.itemsize * (2 if job.reference else 1)
    return logits * {"forward": 1, "single-pass": 2}.get(plan.name, 3)


def _sum_bytes(plan: Plan) -> int:
    """The weight's gradient in float32, read and written for every tile, and rounded at the end."""
    if not plan.sums_bytes or not plan.job.weight:
        return 0
    return 2 * plan.sums_bytes * max(1, plan.tiles)
