"""`prefuse.check`: what a user's own objective should pass before anything is trained with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import numpy as np

from prefuse._backends.nvrtc import ARCHITECTURES, resources
from prefuse._display.html import Markup, announce, bold, code, table
from prefuse._display.progress import track
from prefuse.catalogue.entries import Entry, Objectives, resolve_all
from prefuse.catalogue.samples import Columns, sample
from prefuse.scoring import device
from prefuse.scoring.objective import Objective

__all__ = ["Finding", "Report", "check"]

STEP = 1e-6
TOLERANCE = 1e-5
EXTREMES = (1e4, -1e4)
_MARKS = {True: "ok", False: "FAIL", None: "-"}
_VERDICTS = {True: "passes", False: "does not pass"}


class Finding(NamedTuple):
    """One check: whether it passed (None: could not be made here), and what was found."""

    check: str
    passed: bool | None
    found: str


@dataclass(frozen=True, repr=False)
class Report:
    """What `check` found of one objective; true where nothing failed."""

    name: str
    findings: tuple[Finding, ...]

    def __bool__(self) -> bool:
        return all(finding.passed is not False for finding in self.findings)

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The findings that speak against it."""
        return tuple(finding for finding in self.findings if finding.passed is False)

    def __repr__(self) -> str:
        width = max(len(finding.check) for finding in self.findings)
        lines = [f"{_MARKS[f.passed]:<4} {f.check.ljust(width)}  {f.found}" for f in self.findings]
        return "\n".join([f"{self.name}: {_VERDICTS[bool(self)]}", *lines])

    def _repr_html_(self) -> str:
        rows = [(_mark(f.passed), f.check, f.found) for f in self.findings]
        return f"<div>{bold(self.name)} {_VERDICTS[bool(self)]}</div>{table(rows, ('', 'check', 'found'))}"


@dataclass(frozen=True, repr=False)
class Reports(Sequence[Report]):
    """What `check` found of several objectives; true where nothing failed."""

    reports: tuple[Report, ...]

    def __bool__(self) -> bool:
        return all(self.reports)

    def __len__(self) -> int:
        return len(self.reports)

    @overload
    def __getitem__(self, index: int) -> Report: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Report]: ...

    def __getitem__(self, index: int | slice) -> Report | Sequence[Report]:
        return self.reports[index]

    def __repr__(self) -> str:
        width = max((len(report.name) for report in self), default=0)
        lines = [
            f"{_MARKS[bool(report)]:<4} {report.name.ljust(width)}  {_failures(report)}".rstrip() for report in self
        ]
        return "\n".join([self._verdict(), *lines])

    def _repr_html_(self) -> str:
        rows = [(_mark(bool(report)), code(report.name), _failures(report)) for report in self]
        return f"<div>{self._verdict()}</div>{table(rows, ('', 'objective', 'what failed'))}"

    def _verdict(self) -> str:
        return f"{sum(map(bool, self))} of {len(self)} objectives pass"


def _mark(passed: bool | None) -> str | Markup:
    return bold(_MARKS[passed]) if passed is False else _MARKS[passed]


def _failures(report: Report) -> str:
    return "; ".join(f"{finding.check}: {finding.found}" for finding in report.failed)


@overload
def check(  # type: ignore[overload-overlap]  # a str is one name, though it can be iterated
    objective: str | Objective | Entry, *, seed: int = ..., columns: Mapping[str, Any] | None = ...
) -> Report: ...


@overload
def check(
    objective: Iterable[str | Objective | Entry], *, seed: int = ..., columns: Mapping[str, Any] | None = ...
) -> Reports: ...


def check(objective: Objectives, *, seed: int = 0, columns: Mapping[str, Any] | None = None) -> Report | Reports:
    """Check one objective, or several, on made-up columns.

    It traces (levels, names), its values are finite, its gradient is that of finite differences in float64, it stays
    finite at log-ratios of ±10⁴ and lengths of 1 and 100 000, and its kernels compile for every supported
    architecture without spilling registers (where NVRTC is installed).

    A script prints the report; at a prompt, Python's or a notebook's, it shows itself as what comes back.

    Args:
        objective: with the hyper-parameters to check it at, or the name of one; or several, for instance
            ``prefuse.objectives.list("length")``.
        seed: of the made-up columns.
        columns: columns to take instead of made-up ones, as NumPy arrays: for those whose values are of a kind that
            cannot be guessed.

    Returns:
        A report, true where nothing failed; of several objectives one with a line for each, whose items are reports.

    Raises:
        TypeError: neither an `Objective` nor the name of one.
        ValueError: no objective of this name, or none at all.
    """
    one = isinstance(objective, str | Objective | Entry) or not isinstance(objective, Iterable)
    wanted = resolve_all(objective)
    if not wanted:
        raise ValueError("objective: expected at least one, got none")
    reports = tuple(_report(found, seed, columns or {}) for found in track(wanted, "checking"))
    result = reports[0] if one else Reports(reports)
    announce(result)
    return result


def _report(objective: Objective, seed: int, columns: Mapping[str, Any]) -> Report:
    return Report(objective.name, tuple(_findings(objective, seed, dict(columns))))


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
