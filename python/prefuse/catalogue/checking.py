"""`prefuse.check`: what a user's own objective should pass before anything is trained with it."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from prefuse._cuda import ARCHITECTURES
from prefuse.catalogue.samples import Columns, sample
from prefuse.scoring import device
from prefuse.scoring.objective import Objective

__all__ = ["Finding", "Report", "check"]

STEP = 1e-6
TOLERANCE = 1e-5
EXTREMES = (1e4, -1e4)


class Finding(NamedTuple):
    """One check: whether it passed (None: could not be made here), and what was found."""

    check: str
    passed: bool | None
    found: str


@dataclass(frozen=True)
class Report:
    """What `check` found; true where nothing failed."""

    name: str
    findings: tuple[Finding, ...]

    def __bool__(self) -> bool:
        return all(finding.passed is not False for finding in self.findings)

    def __str__(self) -> str:
        marks = {True: "ok  ", False: "FAIL", None: "-   "}
        width = max(len(finding.check) for finding in self.findings)
        lines = [f"{marks[f.passed]} {f.check.ljust(width)}  {f.found}" for f in self.findings]
        return "\n".join([f"{self.name}: {'passes' if self else 'does not pass'}", *lines])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def check(objective: Objective, *, seed: int = 0, columns: Mapping[str, Any] | None = None) -> Report:
    """Check an objective on made-up columns and print the report.

    It traces (levels, names), its values are finite, its gradient is that of finite differences in float64, it stays
    finite at log-ratios of ±10⁴ and lengths of 1 and 100 000, and its kernels compile for every supported
    architecture without spilling registers (where NVRTC is installed).

    Args:
        objective: with the hyper-parameters to check it at.
        seed: of the made-up columns.
        columns: columns to take instead of made-up ones, as NumPy arrays: for those whose values are of a kind that
            cannot be guessed.

    Returns:
        The report that was printed; true where nothing failed.

    Raises:
        TypeError: it is no `Objective`.
    """
    if not isinstance(objective, Objective):
        raise TypeError(
            f"objective: expected an Objective, as @pair_objective and its like make of a function, "
            f"got {type(objective).__name__}"
        )
    report = Report(objective.name, tuple(_findings(objective, seed, dict(columns or {}))))
    print(report)
    return report


def _findings(objective: Objective, seed: int, columns: Columns) -> Iterator[Finding]:
    given = sample(objective, seed) | columns
    yield Finding("traces", True, f"a {objective.kind} objective of {', '.join(objective.columns)}")
    score = objective(**given)
    finite = bool(np.isfinite(score.losses).all())
    yield Finding("value", finite, f"losses from {np.min(score.losses):.4g} to {np.max(score.losses):.4g}")
    yield _gradient(objective, given)
    for extreme in EXTREMES:
        yield _extreme(objective, sample(objective, seed, extreme) | columns, extreme)
    yield _kernels(objective)


def _gradient(objective: Objective, given: Columns) -> Finding:
    """The gradient of the loss, element by element, against central differences."""
    traced = objective._plan(given).traced
    if "stop_gradient(" in traced.trace.graph.text(traced.loss.node):
        return Finding("gradient", None, "parts of the loss are detached, so it is not the loss's derivative")
    through = traced.columns_with_gradient
    gradients = objective.value_and_grad(**given).gradients
    worst, where = 0.0, "none of its columns has a gradient"
    for name in through:
        if given[name].dtype != np.float64:
            continue
        error = np.abs(_differences(objective, given, name) - gradients[name])
        scale = 1 + np.abs(gradients[name]).max(initial=0.0)
        if error.max(initial=0.0) / scale >= worst:
            worst = float(error.max(initial=0.0) / scale)
            where = f"off by at most {worst:.1g}, at {name}"
    return Finding("gradient", worst < TOLERANCE, where)


def _differences(objective: Objective, given: Columns, name: str) -> np.ndarray[Any, Any]:
    column = given[name]
    found = np.zeros_like(column)
    for index in np.ndindex(column.shape):
        step = STEP * max(1.0, abs(float(column[index])))
        losses = []
        for sign in (1, -1):
            moved = column.copy()
            moved[index] += sign * step
            losses.append(float(objective(**{**given, name: moved}).loss))
        found[index] = (losses[0] - losses[1]) / (2 * step)
    return found


def _extreme(objective: Objective, given: Columns, extreme: float) -> Finding:
    score = objective.value_and_grad(**given)
    bad = [name for name, gradient in score.gradients.items() if not np.isfinite(gradient).all()]
    bad = ["losses", *bad] if not np.isfinite(score.losses).all() else bad
    found = f"not finite: {', '.join(bad)}" if bad else f"losses up to {np.abs(score.losses).max():.4g}"
    return Finding(f"log-ratios of {extreme:+.0e}", not bad, found)


def _kernels(objective: Objective) -> Finding:
    from prefuse._cuda import resources

    traced = objective._traced(None)
    try:
        logs = [log for architecture in ARCHITECTURES for _, _, log in device.compiled(traced, architecture, True)]
    except RuntimeError as error:
        missing = "NVRTC" in str(error) and "not" in str(error)
        return Finding("CUDA kernel", None if missing else False, str(error).splitlines()[0])
    used = [resources(log) for log in logs]
    spilled = sum(resource.spilled for resource in used)
    registers = max(resource.registers for resource in used)
    return Finding("CUDA kernel", spilled == 0, f"{len(ARCHITECTURES)} architectures, {registers} registers at most")
