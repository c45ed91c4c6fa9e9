"""Directional preference alignment, DPA (Wang et al. 2024, arXiv:2402.18571): several rewards, weighed by the user.

Each prompt comes with a direction of two weights, of which the policy is told; of its responses the one with the
highest weighted reward is kept, and trained on together with prompt and direction.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._numbers import Array, Seed, count, floats, generator, like
from ._rows import Floats, Rows, table
from .ranking import ranked


def directions(number: int, *, most: float = 45.0, seed: Seed = 0) -> Floats:
    """Draw directions ``(cos θ, sin θ)``, θ uniform, [number, 2].

    Args:
        number: how many, one per prompt.
        most: the largest |θ| in degrees; 45 in the paper, with helpfulness first and verbosity second.
        seed: int or generator.
    """
    count("number", number, least=0)
    if not 0.0 <= most <= 180.0:
        raise ValueError(f"most: expected degrees in [0, 180], got {most}")
    angle = np.deg2rad(generator(seed).uniform(-most, most, number))
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def best_in_direction(rewards: Array, direction: Any) -> Array:
    """Which response has the highest reward in a direction, ``argmax_k v · r_k``; the first of equals.

    Args:
        rewards: r, J rewards of K responses, [..., K, J].
        direction: v, [..., J] or [J]. Only its direction matters, not its length.

    Returns:
        Indices k, int64 [...].
    """
    return like(rewards, np.asarray(_projected(rewards, direction).argmax(-1), np.int64))


def directional_selection(rows: Rows, direction: Any, *, prompt: str = "prompt", rewards: str = "rewards") -> Rows:
    """Keep of each prompt's responses the best one in the prompt's direction.

    Args:
        rows: one per response.
        direction: v of each prompt, in order of the prompts' first rows, [P, J], or one for all, [J].
        prompt: the column of the prompt.
        rewards: the column of a list of J numbers.

    Returns:
        One row per prompt, with the columns `direction` (a list of J numbers) and `weights`: the direction in per cent
        as whole numbers, which is how the paper's system prompt tells it to the policy.
    """
    given = table(rows)
    ids = given.group_ids(prompt)
    number = int(ids.max(initial=-1)) + 1
    vectors = floats("direction", direction)
    if vectors.ndim == 1:
        vectors = np.broadcast_to(vectors, (number, len(vectors)))
    if vectors.ndim != 2 or len(vectors) != number:
        raise ValueError(f"direction: expected shape (J,) or ({number}, J), one per prompt, got {vectors.shape}")
    scores = floats(rewards, given.values(rewards)).reshape(len(ids), -1) if number else np.zeros((0, vectors.shape[1]))
    if scores.shape[1] != vectors.shape[1]:
        raise ValueError(f"{rewards}: expected {vectors.shape[1]} numbers in each row, got {scores.shape[1]}")
    projected = (scores * vectors[ids]).sum(-1)
    order, offsets = ranked(projected, ids)
    kept = order[offsets[:-1]] if number else order
    told = {"direction": vectors.tolist(), "weights": np.rint(100.0 * vectors).astype(int).tolist()}
    return table(given.selected(kept)).with_columns(told)


def _projected(rewards: Any, direction: Any) -> Floats:
    r, v = floats("rewards", rewards), floats("direction", direction)
    if r.ndim < 2 or v.shape[-1:] != r.shape[-1:] or (v.ndim > 1 and v.shape[:-1] != r.shape[:-2]):
        raise ValueError(
            f"direction: expected shape (..., J) or (J,) for rewards (..., K, J), got {v.shape}, {r.shape}"
        )
    if not r.shape[-2]:
        raise ValueError("rewards: expected at least one response")
    return np.asarray((r * v[..., None, :]).sum(-1))
