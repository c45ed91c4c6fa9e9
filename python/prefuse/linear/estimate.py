"""What a plan should take on a named device, by arithmetic (`prefuse.linear.costs`): no device is needed."""

from __future__ import annotations

import itertools

from prefuse.linear.costs import DEVICES, Device, Estimate, bare, cost
from prefuse.linear.plans import Plan

__all__ = ["DEVICES", "Device", "Estimate", "checked", "estimate"]


def checked(device: object) -> str:
    """The name of a device of `DEVICES`.

    Raises:
        ValueError: it is not one.
    """
    if not isinstance(device, str) or device not in DEVICES:
        raise ValueError(f"device: expected one of {', '.join(DEVICES)}, got {device!r}")
    return device


def estimate(plan: Plan, device: str) -> Estimate:
    """Counts what `plan` takes on a device of `DEVICES`.

    Raises:
        ValueError: the name is not one of `DEVICES`, or gradients are sparse, which takes what the data says.
    """
    on = DEVICES[checked(device)]
    if plan.job.eps:
        raise ValueError("sparse: what it takes depends on the probabilities; expected a plan of dense gradients")
    work = plan.job.work(plan.name)
    blocks = -(-plan.job.classes // plan.backward_tile[1]) if plan.backward_tile[1] else 1
    found = cost(work, _tiles(plan, False), _tiles(plan, True), blocks * plan.sums_bytes, on)
    alone = bare(work, plan.job.rows, on)
    return Estimate(device, found.waves, alone.waves, found.traffic_bytes, found.seconds, alone.seconds)


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
