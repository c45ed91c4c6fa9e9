"""Objectives drawn: loss and gradient against the margin, chosen and rejected apart, and over the plane of log-ratios.

And what training under them did to likelihoods, what an inspection found in the data, and what a trainer logs.
Each function returns a matplotlib figure, which a notebook draws (``prefuse[demo]`` or ``prefuse[notebooks]`` brings
matplotlib). Log-ratios are ``log π(y|x) − log π_ref(y|x)`` summed over a response of 20 tokens, in nats; an objective
without a reference sees log-probabilities that far from −20.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefuse._arguments.checks import check_integer, positive_number
from prefuse.catalogue.entries import Entry, Objectives, resolve, resolve_all
from prefuse.catalogue.samples import log_ratio_grid
from prefuse.runs import Run, Series, read, signs
from prefuse.scoring.objective import Objective
from prefuse.scoring.settings import is_number, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from prefuse.curate.inspection import Inspection

__all__ = ["contour", "dashboard", "gradients", "inspection", "likelihoods", "margin"]

_COLOURS = {"chosen": "C2", "rejected": "C3", "desirable": "C2", "undesirable": "C3"}

_PANELS: dict[str, tuple[str, ...]] = {
    "loss": ("loss", "eval/loss"),
    "reward (β · nats)": (
        "rewards/chosen",
        "rewards/rejected",
        "reward",
        "eval/rewards/chosen",
        "eval/rewards/rejected",
    ),
    "reward margin (β · nats)": ("rewards/margins", "eval/rewards/margins"),
    "accuracy (share of margins above 0)": ("rewards/accuracies", "eval/rewards/accuracies"),
    "log-probability (nats)": ("logps/chosen", "logps/rejected", "eval/logps/chosen", "eval/logps/rejected"),
    "weight of the gradient": ("gradient weight",),
    "KL from the reference (nats)": ("kl", "objective/kl", "eval/kl"),
    "length (tokens)": ("completions/mean_length", "completions/max_length"),
    "entropy (nats per token)": ("entropy", "eval/entropy"),
    "gradient norm": ("grad_norm",),
}
"""The panels of a dashboard, and the series of each; one of which nothing was logged is left out."""


def margin(objectives: Objectives, *, span: float = 40.0, points: int = 401, **columns: Any) -> Figure:
    """Loss and gradient weight of pair objectives against the margin of log-ratios, h_w − h_l.

    The margin is shared equally: h_w = m/2, h_l = −m/2. The weight is −d(loss)/d(margin).

    Args:
        objectives: one or several pair objectives, or names of such.
        span: margins from −span to span, in nats.
        points: how many.
        columns: further columns they read, a number each; those that are not given are 1/2.

    Returns:
        A figure of two panels.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: no objective, or a number that is none.
        ValueError: an objective that is not of pairs or reads columns by token, or a span or number of points that
            leaves nothing to draw.
    """
    figure, (left, right) = _figure(2)
    at = _axis(span, points)
    for objective in resolve_all(objectives):
        losses, chosen, rejected = _slopes(objective, at / 2, -at / 2, columns)
        left.plot(at, losses, label=_label(objective))
        right.plot(at, (rejected - chosen) / 2)
    return _finish(figure, {left: "loss", right: "−d loss / d margin"})


def gradients(objectives: Objectives, *, span: float = 40.0, points: int = 401, **columns: Any) -> Figure:
    """The pull on the chosen and on the rejected response apart, against the margin: −d(loss)/d(log-ratio).

    Above 0 a step raises the response's likelihood. Arguments as for `margin`.
    """
    figure, (left, right) = _figure(2)
    at = _axis(span, points)
    for objective in resolve_all(objectives):
        _, chosen, rejected = _slopes(objective, at / 2, -at / 2, columns)
        left.plot(at, -chosen, label=_label(objective))
        right.plot(at, -rejected)
    return _finish(figure, {left: "pull on chosen", right: "pull on rejected"})


def contour(objective: str | Objective | Entry, *, span: float = 20.0, points: int = 101, **columns: Any) -> Figure:
    """The loss over the plane of both log-ratios, and the direction in which a step moves them.

    Args:
        objective: a pair objective or the name of one.
        span: log-ratios from −span to span, in nats.
        points: how many along each axis.
        columns: as for `margin`.
    """
    figure, (axes,) = _figure(1)
    at = _axis(span, points)
    chosen, rejected = (grid.ravel() for grid in np.meshgrid(at, at))
    found = resolve(objective)
    losses, pull_chosen, pull_rejected = _slopes(found, chosen, rejected, columns)
    shape, few = (points, points), slice(None, None, max(1, points // 12))
    drawn = axes.contourf(at, at, losses.reshape(shape), levels=24)
    figure.colorbar(drawn, ax=axes, label="loss")
    arrows = (-pull_chosen.reshape(shape)[few, few], -pull_rejected.reshape(shape)[few, few])
    axes.quiver(at[few], at[few], *arrows, color="white", angles="xy")
    axes.set_title(_label(found))
    axes.set_xlabel("h_w, log-ratio of chosen (nats)")
    axes.set_ylabel("h_l, log-ratio of rejected (nats)")
    return figure


def likelihoods(
    histories: Mapping[str, Mapping[str, Sequence[float]]], *, probability: bool = False, columns: int = 5
) -> Figure:
    """How likely the responses were from step to step of training, one panel per run.

    Args:
        histories: by the run's name, then by the role ("chosen", "rejected", or whatever else): a log-probability in
            nats for every step.
        probability: draw e to the power of them, from 0 to 1.
        columns: panels in a row.

    Returns:
        A figure whose panels share their axes.

    Raises:
        ValueError: there is no run.
    """
    if not histories:
        raise ValueError("histories: expected at least one run, got none")
    wide = min(columns, len(histories))
    rows = -(-len(histories) // wide)
    figure = _new_figure(2.5 * wide, 2.1 * rows + 0.4)
    panels = figure.subplots(rows, wide, squeeze=False, sharex=True, sharey=True)
    for axes, (name, history) in zip(panels.flat, histories.items(), strict=False):
        for role, values in history.items():
            drawn = np.exp(values) if probability else values
            axes.plot(drawn, label=role, color=_COLOURS.get(role), zorder=2 if role in _COLOURS else 1)
        axes.set_title(name, fontsize="medium")
    for axes in panels.flat[len(histories) :]:
        axes.set_axis_off()
    figure.supxlabel("step", fontsize="medium")
    figure.supylabel("probability" if probability else "log-probability (nats)", fontsize="medium")
    lines = {line.get_label(): line for axes in panels.flat for line in axes.lines}
    figure.legend(list(lines.values()), list(lines), loc="outside lower right", ncols=len(lines), fontsize="small")
    return figure


def inspection(found: Inspection) -> Figure:
    """What `prefuse.curate.inspect` found, on a page: rows per check, and lengths of prompts and responses.

    Args:
        found: what it returned.

    Returns:
        A figure of four panels: the share of rows that each check found, lengths of prompts, lengths of responses by
        role, and, of pairs, by how much chosen is longer than rejected.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = _new_figure(11.0, 7.0)
    (checks, prompts), (responses, gaps) = figure.subplots(2, 2)
    figure.suptitle(found.title)
    looked = [check for check in reversed(found.checks) if check.of]
    colours = ["C3" if check in found.found else "0.7" for check in looked]
    bars = checks.barh([check.name for check in looked], [check.share for check in looked], color=colours)
    checks.bar_label(bars, [f" {check.count}" for check in looked], fontsize="small")
    checks.set_xlim(0, max(1e-3, *(1.15 * check.share for check in looked)))
    checks.set_xlabel("share of rows found")
    _lengths(prompts, {"prompt": found.prompt_lengths}, f"{found.unit} of a prompt")
    _lengths(responses, found.lengths, f"{found.unit} of a response")
    if found.kind == "pairs" and found.lengths["chosen"].size == found.lengths["rejected"].size:
        gap = found.lengths["chosen"] - found.lengths["rejected"]
        most = float(np.quantile(np.abs(gap), 0.99)) + 1.0
        gaps.hist(np.clip(gap, -most, most), bins=41, range=(-most, most), color="C0")
        gaps.axvline(0, color="0.5", linewidth=0.8)
        gaps.axvline(gap.mean(), color="C1", label=f"mean {gap.mean():+.0f}")
        gaps.legend(fontsize="small")
        gaps.set_xlabel(f"chosen − rejected ({found.unit})")
        gaps.set_ylabel("rows")
    else:
        gaps.set_axis_off()
    return figure


def dashboard(run: Any) -> Figure:
    """What a training has logged until now, on a page, with the signs that the literature gives.

    Args:
        run: whatever `prefuse.runs.read` takes: a trainer, its log history, an output folder, TensorBoard's files,
            ``"trackio:PROJECT"``, ….

    Returns:
        A figure of as many panels as there is something for: loss, rewards, margins, accuracies, log-probabilities,
        the weight σ(−margin) of a logistic loss's gradient at the mean margin, KL, lengths, entropy and the gradient's
        norm; evaluations dashed. Below them `prefuse.runs.signs`.

    Raises:
        ImportError: matplotlib, or the library whose files they are, is not installed.
        OSError, TypeError, ValueError: as `prefuse.runs.read`.
    """
    found = read(run)
    series = {**found.series, **_gradient_weight(found)}
    panels = {title: names for title, names in _PANELS.items() if any(name in series for name in names)}
    if not panels:
        raise ValueError(f"run: {found.name} has none of the numbers that a dashboard draws, but {', '.join(series)}")
    wide = min(3, len(panels))
    rows = -(-len(panels) // wide)
    noted = [f"{'!' if sign.warning else '·'} {sign.name}: {sign.what}" for sign in signs(found)]
    figure = _new_figure(4.0 * wide, 2.6 * rows + 0.5 + 0.2 * len(noted))
    figure.suptitle(f"{found.name}, step {found.last_step}", fontsize="medium")
    drawn = figure.subplots(rows, wide, squeeze=False)
    for axes, (title, names) in zip(drawn.flat, panels.items(), strict=False):
        _draw_series(axes, {name: series[name] for name in names if name in series})
        axes.set_title(title, fontsize="small")
    for axes in list(drawn.flat)[len(panels) :]:
        axes.set_axis_off()
    figure.supxlabel("\n".join(["step", *noted]), fontsize="small", x=0.01 if noted else 0.5, ha="left")
    return figure


def _gradient_weight(run: Run) -> dict[str, Series]:
    margins = run.series.get("rewards/margins")
    if margins is None:
        return {}
    return {"gradient weight": Series(margins.steps, 0.5 - 0.5 * np.tanh(margins.values / 2))}


def _draw_series(axes: Any, series: Mapping[str, Series]) -> None:
    for name, found in series.items():
        evaluated = name.startswith("eval/")
        colour = _COLOURS.get(name.rpartition("/")[2], "C0")
        style = {"linestyle": "--", "marker": "o", "markersize": 3} if evaluated else {"linewidth": 1.2}
        axes.plot(
            found.steps, found.values, label=name, color=None if colour == "C0" and not evaluated else colour, **style
        )
    axes.tick_params(labelsize="small")
    if len(series) > 1:
        axes.legend(fontsize="x-small")


def _lengths(axes: Any, lengths: Mapping[str, NDArray[Any]], what: str) -> None:
    """Histograms with common bins; what is longer than nearly all goes to the last one."""
    there = {role: values for role, values in lengths.items() if values.size}
    most = max((float(np.quantile(values, 0.99)) for values in there.values()), default=0.0) + 1.0
    for role, values in there.items():
        drawn = np.minimum(values, most)
        axes.hist(drawn, bins=40, range=(0, most), histtype="step", label=role, color=_COLOURS.get(role))
    axes.set_xlabel(what)
    axes.set_ylabel("number")
    if len(there) > 1:
        axes.legend(fontsize="small")


def _axis(span: float, points: int) -> NDArray[Any]:
    """So many values from −span to span."""
    if check_integer("points", points) < 2:
        raise ValueError(f"points: expected at least 2, got {points}")
    span = positive_number("span", span)
    return np.linspace(-span, span, points)


def _slopes(
    objective: Objective, chosen: NDArray[Any], rejected: NDArray[Any], columns: dict[str, Any]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Losses, and d(losses)/d(log-ratio) of both responses.

    Pairs are scored apart, so that what an objective takes from its batch is taken from one pair.
    """
    results = []
    for at in range(chosen.size):
        pair = slice(at, at + 1)
        given = log_ratio_grid(objective, chosen[pair], rejected[pair], columns)
        score = objective.value_and_grad(**given)
        slopes = [score.gradients.get(f"{role}_logps", np.zeros(1))[0] for role in ("chosen", "rejected")]
        results.append((float(score.losses[0]), *slopes))
    losses, of_chosen, of_rejected = np.array(results).T
    return losses, of_chosen, of_rejected


def _label(objective: Objective) -> str:
    """Its name, its numbers, and whatever else is not at its default."""
    defaults = objective._definition.defaults
    set_ones = {
        name: value
        for name, value in objective.parameters.items()
        if is_number(value) or (value is not None and value is not defaults[name])
    }
    return f"{objective.name}({', '.join(f'{name}={show(value)}' for name, value in set_ones.items())})"


def _figure(panels: int) -> tuple[Figure, Sequence[Any]]:
    figure = _new_figure(5.5 * panels, 4.2)
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _new_figure(width: float, height: float) -> Figure:
    try:
        from prefuse._display.figure import NotebookFigure
    except ImportError as error:
        raise ImportError('matplotlib is not installed, which draws; pip install "prefuse[demo]"') from error

    return NotebookFigure(figsize=(width, height), layout="constrained")


def _finish(figure: Figure, panels: dict[Any, str]) -> Figure:
    """Axes' names, lines at 0, and one legend for all panels."""
    for axes, up in panels.items():
        axes.set_xlabel("margin h_w − h_l (nats)")
        axes.set_ylabel(up)
        axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        axes.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    return figure
