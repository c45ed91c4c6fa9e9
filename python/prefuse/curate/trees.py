"""Pairs and lists from search trees.

A tree is rows, one per node: an id, the id of its parent (none for a root), the text of its step, a value, and for
tree search how often it was visited. A root's text is the prompt. Rows may hold many trees, in any order, as long as
ids are unique.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ._numbers import Array, count, floats, like
from ._rows import Column, Part, Rows, Table, table
from .pairs import sides


class _Trees(NamedTuple):
    """Trees as row numbers: the roots, the children of every node, the parent of every node (-1 for a root)."""

    roots: list[int]
    children: list[list[int]]
    parent: list[int]

    def path(self, node: int) -> list[int]:
        """From the root to the node, both included."""
        path = [node]
        while self.parent[path[-1]] >= 0:
            path.append(self.parent[path[-1]])
        return path[::-1]


def step_pairs(
    rows: Rows,
    *,
    node: str = "node",
    parent: str = "parent",
    text: str = "text",
    value: str = "value",
    visits: str = "visits",
) -> Rows:
    """Step-level pairs of a tree search, as MCTS-DPO takes them (Xie et al. 2024, arXiv:2405.00451).

    From each root down the best children: at every node with two children or more, the child of the highest value is
    chosen and that of the lowest rejected, then the walk goes on at the chosen one. Equal values: the child with more
    visits goes on, without a pair.

    Args:
        rows: one per node.
        node, parent: the columns of ids; a root's parent is None or NaN.
        text, value, visits: the columns of the step's text, of Q and of N.

    Returns:
        One row per pair: `prompt` (all texts from the root to where the two part), `chosen` and `rejected` (the steps'
        texts), and the other columns as `chosen_<name>` and `rejected_<name>`. The objective `mcts_dpo` reads
        `chosen_visits` and `rejected_visits`.
    """
    given = table(rows)
    values, visited = given.numbers(value), given.numbers(visits)
    trees = _trees(given, node, parent)
    found = list(_walked(trees, values.tolist(), visited.tolist()))
    chosen, rejected = (np.asarray([pair[side] for pair in found], np.int64) for side in (0, 1))
    texts = given.values(text)
    prompts = ["".join(texts[step] for step in trees.path(pair[0])[:-1]) for pair in found]
    pairs = given.gathered(
        [
            Part(chosen, {text: "chosen"}),
            Part(rejected, {text: "rejected"}),
            *sides(given, chosen, rejected, without=(node, parent, text)),
        ]
    )
    return table(pairs).with_columns({"prompt": prompts})


def tree_lists(
    rows: Rows,
    *,
    size: int = 5,
    bounds: tuple[float, float] = (0.0, 1.0),
    node: str = "node",
    parent: str = "parent",
    text: str = "text",
    value: str = "value",
) -> Rows:
    """Lists of whole responses out of preference trees, for `tpo_tree` (Liao et al. 2024, arXiv:2410.12854).

    Every path from a root to a leaf is a response, judged by its leaf's value. Of more than `size` of them the best,
    the worst and those evenly between by rank are kept.

    Args:
        rows: one per node; those that are leaves need a value.
        size: at most so many responses per tree; 5 in the paper.
        bounds: what the values range over; labels are scaled from there to [0, 1].
        node, parent, text, value: as in `step_pairs`.

    Returns:
        One row per response, tree by tree, best first: `prompt`, `response`, `steps` (its texts, step by step) and
        `label`.

    Raises:
        ValueError: a leaf's value is outside the bounds, and what `step_pairs` raises.
    """
    count("size", size)
    low, high = bounds
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"bounds: expected two finite numbers, the lower first, got {bounds}")
    given = table(rows)
    trees, texts, values = _trees(given, node, parent), given.values(text), given.values(value)
    kept = [leaf for root in trees.roots for leaf in _spread(_leaves(trees, root), values, size, bounds)]
    steps = [[texts[step] for step in trees.path(leaf)] for leaf in kept]
    columns: dict[str, Column] = {
        "response": ["".join(path[1:]) for path in steps],
        "steps": [path[1:] for path in steps],
        "label": [(float(values[leaf]) - low) / (high - low) for leaf in kept],
    }
    roots = np.asarray([trees.path(leaf)[0] for leaf in kept], np.int64)
    return table(given.gathered([Part(roots, {text: "prompt"})])).with_columns(columns)


def step_weights(embeddings: Array, *, best: int = 0) -> Array:
    """How much each step counts in TPO's adaptive step reward (Liao et al. 2024, arXiv:2410.12854, eq. 10 at ICLR).

    ``1 + cos(e_ik, e_bk)``, in [0, 2]: how alike step k of response i is to the same step of the best response b, as in
    the authors' code; the paper compares the two responses of each pair.

    Args:
        embeddings: e, the mean hidden state over each step's tokens, [K, S, D].
        best: b.

    Returns:
        Weights [K, S]; 1 where an embedding is 0.
    """
    states = floats("embeddings", embeddings)
    if states.ndim != 3:
        raise ValueError(f"embeddings: expected shape (K, S, D), got {states.shape}")
    if not 0 <= best < len(states):
        raise ValueError(f"best: expected an index of {len(states)} responses, got {best}")
    norms = np.linalg.norm(states, axis=-1)
    products, scale = (states * states[best]).sum(-1), norms * norms[best]
    return like(embeddings, 1.0 + np.divide(products, scale, out=np.zeros_like(products), where=scale > 0.0))


def _trees(given: Table[Any], node: str, parent: str) -> _Trees:
    ids, parents = given.values(node), given.values(parent)
    place = {identity: row for row, identity in enumerate(ids)}
    if len(place) < len(ids):
        twice = next(identity for row, identity in enumerate(ids) if place[identity] != row)
        raise ValueError(f"{node}: {twice!r} is the id of more than one row")
    children: list[list[int]] = [[] for _ in ids]
    roots, above = [], []
    for row, identity in enumerate(parents):
        if identity is None or identity != identity:
            roots.append(row)
            above.append(-1)
        elif identity in place:
            children[place[identity]].append(row)
            above.append(place[identity])
        else:
            raise ValueError(f"{parent}: {identity!r} in row {row} is the id of no row")
    trees = _Trees(roots, children, above)
    _must_reach_all(trees, ids, node)
    return trees


def _must_reach_all(trees: _Trees, ids: list[Any], node: str) -> None:
    """ValueError for a node that is below no root: its ancestors go round."""
    reached = [False] * len(ids)
    open_nodes = list(trees.roots)
    while open_nodes:
        row = open_nodes.pop()
        reached[row] = True
        open_nodes += trees.children[row]
    if not all(reached):
        raise ValueError(f"{node}: {ids[reached.index(False)]!r} is below no root; its ancestors form a circle")


def _walked(trees: _Trees, values: list[float], visits: list[float]) -> Iterator[tuple[int, int]]:
    for root in trees.roots:
        at = root
        while trees.children[at]:
            ranked = sorted(trees.children[at], key=lambda child: (-values[child], -visits[child]))
            if values[ranked[0]] > values[ranked[-1]]:
                yield ranked[0], ranked[-1]
            at = ranked[0]


def _leaves(trees: _Trees, root: int) -> list[int]:
    """Leaves below a root, from left to right; a root alone has none."""
    leaves, open_nodes = [], trees.children[root][::-1]
    while open_nodes:
        row = open_nodes.pop()
        open_nodes += trees.children[row][::-1]
        if not trees.children[row]:
            leaves.append(row)
    return leaves


def _spread(leaves: list[int], values: list[Any], size: int, bounds: tuple[float, float]) -> list[int]:
    """At most `size` of the leaves, best first, evenly by rank."""
    for leaf in leaves:
        if values[leaf] is None or not bounds[0] <= values[leaf] <= bounds[1]:
            raise ValueError(f"value: {values[leaf]} of the leaf in row {leaf}, expected one within bounds={bounds}")
    ranked = sorted(leaves, key=lambda leaf: -values[leaf])
    places = np.linspace(0, len(ranked) - 1, min(size, len(ranked))).round().astype(int)
    return [ranked[place] for place in places]
