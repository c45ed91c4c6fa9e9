"""Objectives drawn: loss and gradient against the margin, chosen and rejected apart, and over the plane of log-ratios.

Each function returns a matplotlib figure (install ``prefuse[demo]`` or matplotlib). Log-ratios are
``log π(y|x) − log π_ref(y|x)`` summed over a response of 20 tokens, in nats; an objective without a reference sees
log-probabilities that far from −20.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefuse import objectives as _catalogue
from prefuse._rows import check_integer, positive_number
from prefuse.catalogue.samples import log_ratio_grid
from prefuse.scoring.objective import Objective
from prefuse.scoring.settings import is_number, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["contour", "gradients", "margin"]

Objectives = str | Objective | Sequence[str | Objective]


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
    for objective in _several(objectives):
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
    for objective in _several(objectives):
        _, chosen, rejected = _slopes(objective, at / 2, -at / 2, columns)
        left.plot(at, -chosen, label=_label(objective))
        right.plot(at, -rejected)
    return _finish(figure, {left: "pull on chosen", right: "pull on rejected"})


def contour(objective: str | Objective, *, span: float = 20.0, points: int = 101, **columns: Any) -> Figure:
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
    (found,) = _several(objective)
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


def _axis(span: float, points: int) -> NDArray[Any]:
    """So many values from −span to span."""
    if check_integer("points", points) < 2:
        raise ValueError(f"points: expected at least 2, got {points}")
    span = positive_number("span", span)
    return np.linspace(-span, span, points)


def _several(objectives: Objectives) -> list[Objective]:
    given = [objectives] if isinstance(objectives, str) or not isinstance(objectives, Iterable) else list(objectives)
    found = [_catalogue.get(one) if isinstance(one, str) else one for one in given]
    for one in found:
        if not isinstance(one, Objective):
            raise TypeError(f"objective: expected an Objective or the name of one, got {type(one).__name__}")
    return found


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
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('matplotlib is not installed, which draws; pip install "prefuse[demo]"') from error

    figure = Figure(figsize=(5.5 * panels, 4.2), layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _finish(figure: Figure, panels: dict[Any, str]) -> Figure:
    """Axes' names, lines at 0, and one legend for all panels."""
    for axes, up in panels.items():
        axes.set_xlabel("margin h_w − h_l (nats)")
        axes.set_ylabel(up)
        axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        axes.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    return figure
