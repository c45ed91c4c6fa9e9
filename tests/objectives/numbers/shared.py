"""Rows of worked numbers, and batches that several modules share."""

from __future__ import annotations

import numpy as np

from tests.objectives.numbers.batches import Columns

Row = tuple[str, dict[str, object], Columns, float, dict[str, list[float]]]


def wl(*gradients: float) -> dict[str, list[float]]:
    """Gradients to the policy's log-probabilities: those of the chosen responses first."""
    half = len(gradients) // 2
    return {"chosen_logps": list(gradients[:half]), "rejected_logps": list(gradients[half:])}


def column(batch: Columns, **values: object) -> Columns:
    """The batch with further columns, of one value each."""
    return batch | {name: np.atleast_1d(value) for name, value in values.items()}


def one_list(s, **extra) -> Columns:
    """One prompt whose responses have these log-ratios."""
    return {"logps": s, "ref_logps": [0.0] * len(s), "groups": [0] * len(s)} | extra


def one_pair(w, l, ref_w=0.0, ref_l=0.0, **extra) -> Columns:  # noqa: E741
    logps = {"chosen_logps": [w], "rejected_logps": [l], "ref_chosen_logps": [ref_w], "ref_rejected_logps": [ref_l]}
    return logps | {name: [value] for name, value in extra.items()}


def one_response(**columns) -> Columns:
    """One response; lists are token columns, numbers the response's own."""
    width = max(len(value) for value in columns.values() if isinstance(value, list))
    return {"mask": [[True] * width]} | {name: [value] for name, value in columns.items()}


def pad(rows, width) -> np.ndarray:
    return np.array([[*row, *[np.nan] * (width - len(row))] for row in rows], dtype=np.float64)


F2_TOKENS = [
    [-0.423358, -4.201231, -2.472275],
    [-3.595217, -0.244511, -2.037348, -1.735858],
    [-0.534775, -3.310146],
    [-2.599848, -2.548358, -0.076231],
]

F2_REFERENCE = [
    [-1.993148, -0.575343, -2.139865],
    [-1.090285, -2.387491, -0.800731, -2.118148],
    [-0.606141, -0.836959],
    [-2.118148, -1.325343, -0.639865],
]


def f2_samples() -> Columns:
    """F2 with old log-probs 0.1 t above the policy's, t counted from 0 at the ignored first position."""
    fill = lambda rows: np.array([[0.0, *row, *[0.0] * (4 - len(row))] for row in rows])  # noqa: E731
    lengths = np.array([3, 4, 2, 3])[:, None]
    place = np.arange(5)[None, :]
    columns = {"logps": fill(F2_TOKENS), "ref_logps": fill(F2_REFERENCE), "mask": (place > 0) & (place <= lengths)}
    return columns | {"old_logps": columns["logps"] + 0.1 * place, "advantage": np.array([1.0, 0.5, -1.0, -0.5])}


F2_GIVEN = f2_samples()
F2_FREE = {name: value for name, value in F2_GIVEN.items() if name != "ref_logps"}

STEPPED = {"logps": [-0.7, -2.3, -1.45], "old_logps": [-1.0, -2.0, -1.5]}
