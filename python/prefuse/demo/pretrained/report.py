"""What came of the demo on a pretrained model, as data, as a picture and in words."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefuse.bench import machine

from ..evaluate import HeldOut
from . import cost as costs
from .answers import TEMPERATURE, Mean, Share, Spoken
from .cost import Cost
from .job import HELD_OUT, KINDS, TOPICS, Outcome, Shown
from .questions import MOST_WORDS

RULE = f"one statement of at most {MOST_WORDS} words that names what was asked about"

_SETS = {TOPICS: "new topics", KINDS: "a new kind of question", HELD_OUT: "held-out prompts"}
_LIBRARIES = ("transformers", "peft", "gguf", "trl")
_MEGABYTE = 1e6


def changed(outcome: Outcome) -> bool:
    """Whether the model changed as the data asks: the interval of the win rate (or of accuracy) is above one half."""
    if outcome.wins is not None:
        return outcome.wins[TOPICS].low > 0.5
    return outcome.after[HELD_OUT].interval[0] > 0.5


def write_data(path: Path, outcome: Outcome, cost: Cost | None, seconds: float, peak: int | None) -> None:
    """Writes every figure as JSON; `seconds` and `peak` are the whole run's time and resident memory in bytes."""
    data: dict[str, Any] = asdict(outcome)
    data |= {
        "shown": [shown._asdict() for shown in outcome.shown],
        "cost": None if cost is None else asdict(cost),
        "rule": RULE if outcome.wins is not None else None,
        "temperature": TEMPERATURE,
        "total_seconds": seconds,
        "processor_seconds": time.process_time(),
        "peak_resident_bytes": peak,
        "machine": machine.describe() | {name: _version(name) for name in _LIBRARIES},
    }
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def print_summary(console: Console, outcome: Outcome, cost: Cost | None) -> None:
    """Says in the terminal what came out."""
    total, trained = outcome.parameters
    settings = outcome.settings
    console.print(
        f"\n[bold]{outcome.objective}[/] on {settings.model}: {total:,} parameters, {trained:,} trained (LoRA); "
        f"{outcome.training_pairs} pairs; {len(outcome.history)} steps of {settings.pairs} pairs"
    )
    given, computed = (sum(getattr(step, name) for step in outcome.history) for name in ("tokens", "computed"))
    if computed < given:
        console.print(f"prompts shared: {computed:,} of {given:,} tokens computed ({given / computed:.2f} × fewer)")
    console.print(_answers_table(outcome))
    console.print(_pairs_table(outcome))
    console.print(_shown_table(outcome.shown))
    if cost is not None:
        console.print(_cost_table(cost))
    console.print(", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in outcome.seconds.items()))
    console.print(verdict(outcome))


def verdict(outcome: Outcome) -> str:
    """What came of it in words made from the data."""
    if outcome.wins is None:
        after = outcome.after[HELD_OUT]
        return (
            f"Reward accuracy on {after.pairs} held-out pairs is {after.accuracy:.1%} "
            f"(95 % interval {after.interval[0]:.1%} to {after.interval[1]:.1%}): {_relation(outcome)} chance."
        )
    parts = []
    for name in outcome.wins:
        shares = [_share(outcome.spoken[when][name].rule) for when in ("before", "after")]
        parts.append(f"on {_SETS[name]} from {' to '.join(shares)}")
    return f"Answers that follow the rule ({RULE}): {'; '.join(parts)}. The win rate is {_relation(outcome)} one half."


def draw(path: Path, outcome: Outcome, cost: Cost | None) -> None:
    """Draws what changed, how training went, and where a step's time goes, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4), layout="constrained")
    FigureCanvasAgg(figure)
    answers, margins, logps, parts = figure.subplots(1, 4)
    _draw_answers(answers, outcome)
    steps = [step.step for step in outcome.history]
    margins.plot(steps, [step.margin for step in outcome.history], label="training")
    for name in outcome.after:
        marks = list(outcome.held_out)
        margins.plot(marks, [found[name].margin for found in outcome.held_out.values()], "o-", label=_SETS[name])
    margins.set_ylabel("reward margin")
    for role, colour in (("chosen", "C2"), ("rejected", "C3")):
        logps.plot(steps, [getattr(step, f"{role}_logp") for step in outcome.history], color=colour, label=role)
    logps.set_ylabel("log-probability of a response [nats]")
    for axes in (margins, logps):
        axes.set_xlabel("step")
        axes.legend(fontsize="small")
    if cost is None:
        parts.set_axis_off()
    else:
        _draw_cost(parts, cost)
    figure.suptitle(f"{outcome.objective} on {outcome.settings.model}")
    figure.savefig(path, dpi=120)


def _draw_answers(axes: Any, outcome: Outcome) -> None:
    """Bars before and after: the share that follows the rule, or without a rule the length."""
    judged = outcome.wins is not None
    for place, when in enumerate(("before", "after")):
        for at, spoken in enumerate(outcome.spoken[when].values()):
            found = spoken.rule or spoken.tokens
            errors = [[found.value - found.low], [found.high - found.value]]
            label = when if at == 0 else None
            axes.bar(at + 0.4 * place, found.value, 0.38, yerr=errors, capsize=3, color=f"C{place}", label=label)
    axes.set_xticks([at + 0.2 for at in range(len(outcome.after))], [_SETS[name] for name in outcome.after])
    axes.set_ylabel("answers that follow the rule" if judged else "tokens of an answer")
    axes.legend(fontsize="small")


def _draw_cost(axes: Any, cost: Cost) -> None:
    whole = [part for part in cost.parts if part.part == costs.STEP]
    axes.barh([part.by.replace(", ", ",\n") for part in whole], [part.seconds for part in whole], color="C4")
    axes.set_xlabel("seconds of a step, fastest")
    axes.invert_yaxis()


def _relation(outcome: Outcome) -> str:
    return "above" if changed(outcome) else "NOT above"


def _share(share: Share | None) -> str:
    return "–" if share is None else f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%})"


def _mean(mean: Mean) -> str:
    return f"{mean.value:.1f} ({mean.low:.1f} to {mean.high:.1f})"


def _answers_table(outcome: Outcome) -> Table:
    judged = outcome.wins is not None
    table = Table(title=f"answers to held-out prompts, drawn at temperature {TEMPERATURE} (95 % intervals)")
    table.add_column("")
    rows: dict[str, list[str]] = {}
    for name in outcome.after:
        for when in ("before", "after"):
            table.add_column(f"{_SETS[name]}, {when}", justify="right", max_width=18)
            for title, cell in _spoken_cells(outcome.spoken[when][name], judged).items():
                rows.setdefault(title, [title]).append(cell)
            if outcome.wins is not None:
                win = _share(outcome.wins[name]) if when == "after" else ""
                rows.setdefault("win rate, ties half", ["win rate, ties half"]).append(win)
    for row in rows.values():
        table.add_row(*row)
    return table


def _spoken_cells(spoken: Spoken, judged: bool) -> dict[str, str]:
    rule = {"follow the rule": _share(spoken.rule)} if judged else {}
    return {
        "answers": str(spoken.answers),
        **rule,
        "words": _mean(spoken.words),
        "tokens": _mean(spoken.tokens),
        "ended by the model": _share(spoken.complete),
        "KL to the model before, nats": _mean(spoken.kl),
    }


def _pairs_table(outcome: Outcome) -> Table:
    table = Table(title="held-out pairs")
    for heading in ("step", "set", "pairs", "accuracy (95 %)", "margin", "log p(chosen)", "log p(rejected)"):
        table.add_column(heading, justify="left" if heading == "set" else "right")
    for step, sets in outcome.held_out.items():
        for name, found in sets.items():
            table.add_row(str(step), _SETS[name], *_pair_cells(found))
    return table


def _pair_cells(found: HeldOut) -> list[str]:
    low, high = found.interval
    return [
        str(found.pairs),
        f"{found.accuracy:.0%} ({low:.0%}-{high:.0%})",
        f"{found.margin:+.2f}",
        f"{found.chosen_logp:.1f}",
        f"{found.rejected_logp:.1f}",
    ]


def _shown_table(shown: Sequence[Shown]) -> Table:
    table = Table(title="held-out prompts, one answer before and one after", show_lines=True)
    for heading in ("prompt", "before", "after"):
        table.add_column(heading, overflow="fold")
    for one in shown:
        marks = ("", "") if one.follows is None else tuple("✓ " if good else "✗ " for good in one.follows)
        table.add_row(*map(Text, (_cut(one.prompt), marks[0] + _cut(one.before), marks[1] + _cut(one.after))))
    return table


def _cut(text: str, most: int = 240) -> str:
    return text if len(text) <= most else text[:most] + " …"


def _cost_table(cost: Cost) -> Table:
    table = Table(
        title=f"a DPO step of {cost.rows} rows of {cost.tokens} tokens, {cost.scored} scored; float32, {cost.clock}; "
        f"TRL {cost.trl}"
    )
    for heading in ("part", "by", "ms, fastest", "ms, median", "head's peak extra MB"):
        table.add_column(heading, justify="left" if heading in ("part", "by") else "right")
    for part in cost.parts:
        extra = cost.head_bytes.get(part.by) if part.part in (costs.HEAD, costs.BOTH_HEADS) else None
        memory = "" if extra is None else f"{extra / _MEGABYTE:.0f}"
        table.add_row(part.part, part.by, f"{part.seconds * 1e3:.1f}", f"{part.median * 1e3:.1f}", memory)
    return table


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
