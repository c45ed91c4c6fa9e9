"""The demo's results as data, as a picture and in words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from prefuse.bench import gather, machine

from .cost import Cost
from .evaluate import HeldOut
from .job import Outcome

WELL_ABOVE_CHANCE = 0.65
"""What the lower end of held-out accuracy's 95 % interval must exceed; chance is 0.5."""

_SMOOTHING = 0.9
_MEGABYTE = 1e6


def well_above_chance(held_out: HeldOut) -> bool:
    """Whether accuracy on held-out pairs is well above chance, its uncertainty taken into account."""
    return held_out.interval[0] > WELL_ABOVE_CHANCE


def write_data(path: Path, outcome: Outcome, costs: Sequence[Cost]) -> None:
    """Writes every figure, step by step, as JSON."""
    data = asdict(outcome) | {
        "costs": [asdict(cost) for cost in costs],
        "machine": machine.describe(),
        "chance": 0.5,
        "well_above_chance": {"bound": WELL_ABOVE_CHANCE, "reached": well_above_chance(outcome.after)},
    }
    path.write_text(json.dumps(data, indent=2, default=str) + "\n")


def draw(path: Path, outcome: Outcome) -> None:
    """Draws margins, accuracies and log-probabilities over the steps of preference training as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    margins, accuracies, logps = figure.subplots(1, 3)
    steps = [step.step for step in outcome.history]
    marks = list(outcome.on_the_way)
    unseen = outcome.on_the_way.values()

    margins.plot(steps, _smooth([step.margin for step in outcome.history]), label="training (smoothed)")
    margins.plot(marks, [figures.margin for figures in unseen], "o-", label="held out")
    margins.set_ylabel("reward margin")

    accuracies.plot(steps, _smooth([step.accuracy for step in outcome.history]), label="training (smoothed)")
    errors = [
        [figures.accuracy - figures.interval[0] for figures in unseen],
        [figures.interval[1] - figures.accuracy for figures in unseen],
    ]
    accuracies.errorbar(
        marks, [figures.accuracy for figures in unseen], yerr=errors, fmt="o-", capsize=3, label="held out, 95 %"
    )
    accuracies.axhline(0.5, color="grey", linestyle=":", label="chance")
    accuracies.set_ylim(0.0, 1.0)
    accuracies.set_ylabel("reward accuracy")

    for name, colour in (("chosen", "C2"), ("rejected", "C3")):
        values = [getattr(step, f"{name}_logp") for step in outcome.history]
        logps.plot(steps, _smooth(values), color=colour, label=f"{name}, training (smoothed)")
        held = [getattr(figures, f"{name}_logp") for figures in unseen]
        logps.plot(marks, held, "o", color=colour, label=f"{name}, held out")
    logps.set_ylabel("log-probability of a response [nats]")

    for axes in (margins, accuracies, logps):
        axes.set_xlabel("step")
        axes.legend(fontsize="small")
    figure.suptitle(f"{outcome.objective} on docstrings of the standard library")
    figure.savefig(path, dpi=120)


def print_summary(console: Console, outcome: Outcome, costs: Sequence[Cost]) -> None:
    """Says in the terminal what came out."""
    before, after, settings = outcome.before, outcome.after, outcome.settings
    trained, held = outcome.modules
    console.print(
        f"\n[bold]{outcome.objective}[/]: {outcome.parameters:,} parameters, vocabulary {outcome.vocabulary:,}, "
        f"{outcome.training_pairs:,} training functions of {trained} modules, {settings.sft_steps} supervised and "
        f"{settings.steps} preference steps of {settings.pairs} pairs"
    )
    table = Table(title=f"{after.pairs} held-out pairs, of {held} modules never trained on")
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for name, form in (
        ("accuracy", "{0.accuracy:.1%} [{0.interval[0]:.1%}, {0.interval[1]:.1%}]"),
        ("margin", "{0.margin:+.3f}"),
        ("preferred", "{0.preferred:.1%}"),
        ("chosen_logp", "{0.chosen_logp:.1f}"),
        ("rejected_logp", "{0.rejected_logp:.1f}"),
    ):
        table.add_row(_TITLES[name], form.format(before), form.format(after))
    console.print(table)
    if costs:
        console.print(_cost_table(costs))
    console.print(", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in outcome.seconds.items()))
    console.print(verdict(after))


def verdict(after: HeldOut) -> str:
    """One sentence on held-out accuracy, from the data."""
    relation = "well above" if well_above_chance(after) else "NOT well above"
    return (
        f"Held-out reward accuracy is {after.accuracy:.1%}, 95 % interval {after.interval[0]:.1%} to "
        f"{after.interval[1]:.1%}: {relation} chance (50 %; asked for is a lower end above {WELL_ABOVE_CHANCE:.0%})."
    )


_TITLES = {
    "accuracy": "reward accuracy [95 % interval]; ties count half",
    "margin": "reward margin",
    "preferred": "chosen more probable than rejected",
    "chosen_logp": "log-probability of chosen, nats",
    "rejected_logp": "log-probability of rejected, nats",
}


def _cost_table(costs: Sequence[Cost]) -> Table:
    table = Table(title="token log-probabilities, forward and backward, float32")
    table.add_column("logits")
    table.add_column("by")
    for heading in ("ms", "time / prefuse", "peak extra MB", "in logits"):
        table.add_column(heading, justify="right")
    for cost in costs:
        ours = next(other for other in costs if other.hand == gather.PREFUSE and _shape(other) == _shape(cost))
        size = cost.rows * cost.vocabulary * 4
        extra = cost.peak_extra_bytes
        table.add_row(
            f"{cost.rows} x {cost.vocabulary}",
            cost.hand,
            f"{cost.seconds * 1e3:.1f}",
            f"{cost.seconds / ours.seconds:.1f}",
            "not measured" if extra is None else f"{extra / _MEGABYTE:.0f}",
            "" if extra is None else f"{extra / size:.2f}",
        )
    return table


def _shape(cost: Cost) -> tuple[int, int]:
    return cost.rows, cost.vocabulary


def _smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving average, unbiased at the start."""
    smoothed, total, weight = [], 0.0, 0.0
    for value in values:
        total = _SMOOTHING * total + (1 - _SMOOTHING) * value
        weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        smoothed.append(total / weight)
    return smoothed
