"""What the head's work costs on a device, by arithmetic: the planner compares tiles with it, `explain` prints it.

A GEMM is counted in waves: blocks of 128 x 256 results, one for each multiprocessor at a time. Its time is that of its
waves, all taken as full, or that of its operands and result through memory, whichever is longer: a GEMM that adds to a
float32 sum reads and writes it while it computes. Row kernels follow one another and the GEMMs. What is assumed of
every device stands in `GEMM_SHARE`, `MEMORY_SHARE` and `SMALL_SECONDS`; none of it has been measured here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from prefuse._display.html import table

BLOCK_ROWS, BLOCK_COLUMNS = 128, 256
"""Results of a block of a GEMM."""

GEMM_SHARE = 0.76
"""The part of the specified operations that a large GEMM reaches: 750 of 989 TFLOP/s on an H200."""

MEMORY_SHARE = 0.86
"""The part of the specified bandwidth that a row kernel reaches: 95 % of a copy, which reaches 90 % of it."""

SMALL_SECONDS = 2.5e-6
"""Of a kernel that does next to nothing."""

SMALL_KERNELS = {"forward": 6, "single-pass": 10, "grouped": 20, "keep": 12, "recompute": 12}
"""How many of these a tile takes, by plan."""


@dataclass(frozen=True)
class Device:
    """What a device's maker specifies.

    Attributes:
        multiprocessors: their number.
        flops: 16-bit operations per second, dense, summed in float32.
        bandwidth: bytes per second of its memory.
        wide_flops: float32 operations per second.
    """

    multiprocessors: int
    flops: float
    bandwidth: float
    wide_flops: float


DEVICES = {
    "a100": Device(108, 312e12, 2.04e12, 19.5e12),
    "h100": Device(132, 989e12, 3.35e12, 67e12),
    "h200": Device(132, 989e12, 4.8e12, 67e12),
    "b200": Device(148, 2250e12, 8.0e12, 75e12),
    "rtx4090": Device(128, 165e12, 1.01e12, 82.6e12),
}
"""By name: A100 80 GB SXM, H100 SXM, H200 SXM, B200 SXM, RTX 4090."""


def device_of(name: str, multiprocessors: int) -> Device:
    """The figures of a device by the name that its driver gives; of one that is not in the table, or is a part of one,
    those of an H100 for each multiprocessor."""
    plain = name.lower().replace(" ", "")
    for known, device in DEVICES.items():
        if known in plain and device.multiprocessors == multiprocessors:
            return device
    h100 = DEVICES["h100"]
    share = multiprocessors / h100.multiprocessors
    return Device(multiprocessors, share * h100.flops, share * h100.bandwidth, share * h100.wide_flops)


class Gemm(NamedTuple):
    """A product: rows and columns of the result, what is summed over; `added` to a float32 sum that is there."""

    rows: int
    columns: int
    inner: int
    added: bool = False


class Work(NamedTuple):
    """What a head computes, in numbers.

    Attributes:
        plan: its name.
        features: of a row.
        classes: V.
        itemsize: bytes of a number in the matrices.
        copies: logits made of a row: two with a reference.
        directions: products for the hidden states' gradient; 0: none is wanted.
        weight: whether the weight wants one.
        logit_bytes: of a logit.
    """

    plan: str
    features: int
    classes: int
    itemsize: int
    copies: int
    directions: int
    weight: bool
    logit_bytes: int


class Cost(NamedTuple):
    """Waves of the GEMMs, bytes moved beside them, seconds of all."""

    waves: int
    traffic_bytes: int
    seconds: float


@dataclass(frozen=True, repr=False)
class Estimate:
    """Arithmetic about a plan on a device; prints as a table.

    Attributes:
        device: its name.
        waves: of all GEMMs, tile by tile.
        bare_waves: of the same GEMMs, each in one piece.
        traffic_bytes: that row kernels move, and setting and rounding the weight's float32 sum: not those of the GEMMs.
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

    def lines(self) -> list[tuple[str, str]]:
        """Name and text of each line of the table."""
        return [
            ("device", f"{self.device}: arithmetic, not a measurement"),
            ("waves", f"{self.waves}; {self.bare_waves} of the bare GEMMs"),
            ("traffic", f"{self.traffic_bytes / 1e9:.2f} GB in addition to the GEMMs"),
            ("time", f"{1e3 * self.seconds:.3g} ms, {self.over_bare:.3f} x the bare GEMMs"),
        ]

    def __repr__(self) -> str:
        return "\n".join(f"{name:<11}{value}" for name, value in self.lines())

    def _repr_html_(self) -> str:
        return table(self.lines())


def waves(gemm: Gemm, on: Device) -> int:
    """How often each multiprocessor gets a block."""
    blocks = -(-gemm.rows // BLOCK_ROWS) * -(-gemm.columns // BLOCK_COLUMNS)
    return -(-blocks // on.multiprocessors)


def gemm_seconds(gemm: Gemm, itemsize: int, on: Device) -> float:
    """Of one GEMM."""
    flops = GEMM_SHARE * (on.flops if itemsize == 2 else on.wide_flops)
    block = 2.0 * BLOCK_ROWS * BLOCK_COLUMNS * gemm.inner * on.multiprocessors / flops
    operands = itemsize * (gemm.rows * gemm.inner + gemm.inner * gemm.columns)
    result = gemm.rows * gemm.columns * (8 if gemm.added else itemsize)
    return max(waves(gemm, on) * block, (operands + result) / (MEMORY_SHARE * on.bandwidth))


def forward_gemms(work: Work, rows: int, classes: int, added: bool = False) -> list[Gemm]:
    """Of a tile of logits and what is made of it at once; `added`: the weight's gradient is added to a sum."""
    logits = [Gemm(rows, classes, work.features)] * work.copies
    at_once = work.plan in ("single-pass", "grouped", "keep")
    return logits + (_gradient_gemms(work, rows, classes, added) if at_once else [])


def backward_gemms(work: Work, rows: int, classes: int, added: bool = False) -> list[Gemm]:
    """Of a tile of a backward pass that makes logits again."""
    if work.plan != "recompute":
        return []
    return [Gemm(rows, classes, work.features), *_gradient_gemms(work, rows, classes, added)]


def _gradient_gemms(work: Work, rows: int, classes: int, added: bool) -> list[Gemm]:
    count = work.directions if work.plan == "single-pass" else min(1, work.directions)
    hidden = [Gemm(rows, work.features, classes)] * count
    return hidden + ([Gemm(classes, work.features, rows, added)] if work.weight else [])


def bare(work: Work, rows: int, on: Device) -> Cost:
    """The GEMMs of all rows and classes, each in one piece, and nothing else."""
    whole = forward_gemms(work, rows, work.classes) + backward_gemms(work, rows, work.classes)
    return Cost(sum(waves(gemm, on) for gemm in whole), 0, sum(gemm_seconds(gemm, work.itemsize, on) for gemm in whole))


def _narrowed(work: Work, forward: Sequence[tuple[int, int]], backward: Sequence[tuple[int, int]]) -> int:
    """Bytes moved where gradients of float32 logits are rounded to what products with 16-bit matrices take."""
    if work.logit_bytes == work.itemsize or not (work.directions or work.weight):
        return 0
    numbers = sum(rows * classes for rows, classes in (backward if work.plan == "recompute" else forward))
    return (work.logit_bytes + work.itemsize) * numbers


def cost(
    work: Work, forward: Sequence[tuple[int, int]], backward: Sequence[tuple[int, int]], sums_bytes: int, on: Device
) -> Cost:
    """Of a plan's tiles.

    Args:
        work: what is computed.
        forward: rows and classes of each tile.
        backward: those of each tile of a backward pass that makes logits again.
        sums_bytes: float32 sums of the weight's gradient, which are set to 0 and rounded at the end.
        on: the device.
    """
    added = sums_bytes > 0
    pieces = [gemm for rows, classes in forward for gemm in forward_gemms(work, rows, classes, added)]
    pieces += [gemm for rows, classes in backward for gemm in backward_gemms(work, rows, classes, added)]
    logits = work.copies * work.logit_bytes * sum(rows * classes for rows, classes in forward)
    again = work.copies * work.logit_bytes * sum(rows * classes for rows, classes in backward)
    passes = {"forward": 1, "recompute": 1, "single-pass": 2 if work.directions == 1 else 1 + 2 * work.directions}
    rounded = sums_bytes * 2 + sums_bytes // 4 * work.itemsize if added else 0
    traffic = passes.get(work.plan, 3) * logits + 2 * again + _narrowed(work, forward, backward) + rounded
    seconds = sum(gemm_seconds(gemm, work.itemsize, on) for gemm in pieces)
    seconds += traffic / (MEMORY_SHARE * on.bandwidth)
    seconds += SMALL_SECONDS * SMALL_KERNELS.get(work.plan, 0) * (len(forward) + len(backward))
    return Cost(sum(waves(gemm, on) for gemm in pieces), traffic, seconds)
