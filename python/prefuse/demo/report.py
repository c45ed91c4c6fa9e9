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
from .job import FUNCTIONS, MODULES, Outcome

WELL_ABOVE_CHANCE = 0.7
"""What the lower end of the 95 % interval of accuracy on held-out functions must exceed; chance is 0.5."""

_SMOOTHING = 0.9
_MEGABYTE = 1e6


def well_above_chance(outcome: Outcome) -> bool:
    """Whether accuracy on held-out functions came out well above chance, its uncertainty taken into account."""
    return outcome.after[FUNCTIONS].interval[0] > WELL_ABOVE_CHANCE


def write_data(path: Path, outcome: Outcome, costs: Sequence[Cost]) -> None:
    """Writes every figure, step by step, as JSON."""
    data = asdict(outcome) | {
        "costs": [asdict(cost) for cost in costs],
        "machine": machine.describe(),
        "chance": 0.5,
        "well_above_chance": {"bound": WELL_ABOVE_CHANCE, "reached": well_above_chance(outcome)},
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
    marks = list(outcome.held_out)

    margins.plot(steps, _smooth([step.margin for step in outcome.history]), label="training (smoothed)")
    accuracies.plot(steps, _smooth([step.accuracy for step in outcome.history]), label="training (smoothed)")
    for name in (FUNCTIONS, MODULES):
        unseen = [figures[name] for figures in outcome.held_out.values()]
        margins.plot(marks, [figures.margin for figures in unseen], "o-", label=_SETS[name])
        values = [figures.accuracy for figures in unseen]
        below = [figures.accuracy - figures.interval[0] for figures in unseen]
        above = [figures.interval[1] - figures.accuracy for figures in unseen]
        accuracies.errorbar(marks, values, yerr=[below, above], fmt="o-", capsize=3, label=f"{_SETS[name]}, 95 %")
    margins.set_ylabel("reward margin")
    accuracies.axhline(0.5, color="grey", linestyle=":", label="chance")
    accuracies.set_ylim(0.0, 1.0)
    accuracies.set_ylabel("reward accuracy")

    for name, colour in (("chosen_logp", "C2"), ("rejected_logp", "C3")):
        title = name.removesuffix("_logp")
        trained = _smooth([getattr(step, name) for step in outcome.history])
        logps.plot(steps, trained, color=colour, label=f"{title}, training (smoothed)")
        held = [getattr(figures[FUNCTIONS], name) for figures in outcome.held_out.values()]
        logps.plot(marks, held, "o", color=colour, label=f"{title}, {_SETS[FUNCTIONS]}")
    logps.set_ylabel("log-probability of a response [nats]")

    for axes in (margins, accuracies, logps):
        axes.set_xlabel("step")
        axes.legend(fontsize="small")
    figure.suptitle(f"{outcome.objective} on docstrings of the standard library")
    figure.savefig(path, dpi=120)


def print_summary(console: Console, outcome: Outcome, costs: Sequence[Cost]) -> None:
    """Says in the terminal what came out."""
    settings = outcome.settings
    console.print(
        f"\n[bold]{outcome.objective}[/]: {outcome.parameters:,} parameters, vocabulary {outcome.vocabulary:,}; "
        f"{outcome.training_pairs:,} functions of {outcome.training_modules:,} modules to train on; "
        f"{settings.sft_steps} supervised and {settings.steps} preference steps of {settings.pairs} pairs"
    )
    if settings.share_prompts:
        given, computed = (sum(getattr(step, name) for step in outcome.history) for name in ("tokens", "computed"))
        console.print(f"prompts shared: {computed:,} of {given:,} tokens computed ({given / computed:.2f} × fewer)")
    console.print(_held_out_table(outcome))
    if costs:
        console.print(_cost_table(costs))
    console.print(", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in outcome.seconds.items()))
    console.print(verdict(outcome))


def verdict(outcome: Outcome) -> str:
    """What held-out accuracy came to, in words made from the data."""
    functions, modules = outcome.after[FUNCTIONS], outcome.after[MODULES]
    relation = "well above" if well_above_chance(outcome) else "NOT well above"
    return (
        f"Reward accuracy on {functions.pairs} held-out functions is {_share(functions)}: {relation} chance (50 %; "
        f"asked for is an interval above {WELL_ABOVE_CHANCE:.0%}). On {modules.pairs} functions of modules no part of "
        f"which was trained on it is {_share(modules)}."
    )


def _share(figures: HeldOut) -> str:
    low, high = figures.interval
    return f"{figures.accuracy:.1%} (95 % interval {low:.1%} to {high:.1%})"


_SETS = {FUNCTIONS: "held-out functions", MODULES: "held-out modules"}

_TITLES = {
    "pairs": "pairs",
    "accuracy": "reward accuracy, ties half",
    "interval": "its 95 % interval",
    "margin": "reward margin",
    "preferred": "p(chosen) > p(rejected)",
    "chosen_logp": "log p(chosen), nats",
    "rejected_logp": "log p(rejected), nats",
}

_FORMS = {
    "pairs": "{0.pairs}",
    "accuracy": "{0.accuracy:.1%}",
    "interval": "{0.interval[0]:.0%}-{0.interval[1]:.0%}",
    "margin": "{0.margin:+.3f}",
    "preferred": "{0.preferred:.1%}",
    "chosen_logp": "{0.chosen_logp:.1f}",
    "rejected_logp": "{0.rejected_logp:.1f}",
}


def _held_out_table(outcome: Outcome) -> Table:
    table = Table(title="before and after preference training")
    table.add_column("")
    rows = {title: [title] for title in _TITLES.values()}
    for name, figures in outcome.after.items():
        for when, values in ((_SETS[name], outcome.before[name]), ("after", figures)):
            table.add_column(when, justify="right", max_width=9)
            for field, title in _TITLES.items():
                rows[title].append(_FORMS[field].format(values))
    for row in rows.values():
        table.add_row(*row)
    return table


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
