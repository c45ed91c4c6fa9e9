"""What the experiments share: policies that are one logit per response, descent on them, figures.

Losses and their gradients are prefuse's own, by NumPy calls or through torch.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from prefuse import Objective

Array = Any


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def softmax(logits: Array) -> Array:
    return np.exp(log_softmax(logits))


def to_logits(logps: Array, gradient: Array) -> Array:
    """The gradient by logits from that by their log-softmax."""
    return gradient - np.exp(logps) * gradient.sum(-1, keepdims=True)


def ordered_pairs(count: int) -> tuple[Array, Array]:
    """First and second response of every ordered pair, equal ones left out."""
    first, second = np.divmod(np.arange(count**2), count)
    return first[first != second], second[first != second]


def pair_columns(logps: Array, ref_logps: Array, first: Array, second: Array) -> dict[str, Array]:
    return {
        "chosen_logps": logps[first],
        "rejected_logps": logps[second],
        "ref_chosen_logps": ref_logps[first],
        "ref_rejected_logps": ref_logps[second],
    }


def pair_gradient(
    objective: Objective, logits: Array, ref_logps: Array, first: Array, second: Array, **columns: Array
) -> Array:
    """The gradient by logits of a pair objective's sum over pairs of responses."""
    logps = log_softmax(logits)
    given = pair_columns(logps, ref_logps, first, second)
    if "ref_chosen_logps" not in objective.columns:
        del given["ref_chosen_logps"], given["ref_rejected_logps"]
    gradients = objective.value_and_grad(**given, **columns, reduction="sum").gradients
    total = np.zeros_like(logps)
    np.add.at(total, first, gradients["chosen_logps"])
    np.add.at(total, second, gradients["rejected_logps"])
    return to_logits(logps, total)


class Adam:
    """Adam's steps on an array."""

    def __init__(self, rate: float) -> None:
        self._rate, self._steps, self._mean, self._square = rate, 0, 0.0, 0.0

    def step(self, weights: Array, gradient: Array) -> Array:
        self._steps += 1
        self._mean = 0.9 * self._mean + 0.1 * gradient
        self._square = 0.999 * self._square + 0.001 * gradient**2
        mean, square = self._mean / (1 - 0.9**self._steps), self._square / (1 - 0.999**self._steps)
        return weights - self._rate * mean / (np.sqrt(square) + 1e-8)


def minimise(loss: Callable[[torch.Tensor], torch.Tensor], start: Array, steps: int = 100) -> Array:
    """The minimiser of a smooth torch function of logits, by L-BFGS."""
    weights = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=steps, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(weights)
        value.backward()
        return value

    optimizer.step(closure)
    return weights.detach().numpy()


def game_gap(wins: Array, policy: Array) -> float:
    """How much better than the policy an opponent can do: 0 at the minimax winner."""
    return float((wins @ policy).max() - (policy @ wins).min())


def figure(paper: ModuleType, data: dict[str, Any], path: Path) -> None:
    """Draws a paper's figure as a small SVG, the same bytes every time."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings = {"svg.hashsalt": "prefuse", "svg.fonttype": "none", "path.simplify_threshold": 1.0, "font.size": 9}
    with matplotlib.rc_context(settings):
        drawn = Figure(figsize=(5.2, 3.2), layout="constrained")
        FigureCanvasSVG(drawn)
        axes = drawn.subplots()
        paper.draw(axes, data)
        axes.spines[["top", "right"]].set_visible(False)
        drawn.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def thinned(values: Array, points: int = 120) -> tuple[Array, Array]:
    """Positions and values of a long curve at so many points, for a small figure."""
    values = np.asarray(values)
    kept = np.unique(np.linspace(0, len(values) - 1, min(points, len(values))).round().astype(int))
    return kept, values[kept]
