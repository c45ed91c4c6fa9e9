"""Graphs made by hand and at random, run on the CPU and recorded."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prefuse._prefuse import Graph, Program
from tests.codegen.harness import Recorded, record

SPACES = {"group": "batch", "response": "group", "token": "response", "other": "batch"}

UNARY = (
    *("neg", "exp", "log", "log1p", "expm1", "log1mexp", "sigmoid", "log_sigmoid", "softplus"),
    *("tanh", "relu", "abs", "sign", "square", "sqrt", "reciprocal", "not"),
)
BINARY = (
    *("add", "sub", "mul", "div", "pow", "minimum", "maximum", "clamp_min", "clamp_max"),
    *("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "scale_or_zero"),
)
REDUCE = ["sum", "mean", "max", "min", "logsumexp"]


def offsets_of(lengths: Sequence[int]) -> torch.Tensor:
    """Where segments of these lengths begin and end."""
    return torch.tensor([0, *lengths]).cumsum(0)


class Batch:
    """So many elements in each segment of each space."""

    def __init__(self, groups: Sequence[Sequence[int]], other: int = 5) -> None:
        lengths = {
            "response": [len(group) for group in groups],
            "token": [tokens for group in groups for tokens in group],
        }
        self.offsets: dict[str, int | torch.Tensor] = {"group": len(groups), "other": other}
        self.counts = {
            "batch": 1,
            "group": len(groups),
            "other": other,
            "other*other": other**2,
            "group*group": len(groups) ** 2,
        }
        for space, sizes in lengths.items():
            self.offsets[space] = offsets_of(sizes)
            self.counts[space] = sum(sizes)
            self.counts[f"{space}*{space}"] = sum(size**2 for size in sizes)

    def run(
        self,
        program: Program,
        columns: Mapping[str, torch.Tensor],
        parameters: Mapping[str, float],
        dtype: torch.dtype = torch.float64,
    ) -> Recorded:
        """Runs a program on the CPU."""
        cuts = [self.offsets[space] for space in program.spaces]
        outputs = [torch.empty(() if s == "batch" else (self.counts[s],), dtype=dtype) for s in program.output_spaces]
        numbers = [parameters[name] for name in program.parameters]
        return record(program, [columns[name] for name in program.columns], numbers, cuts, outputs)


class RandomGraph:
    """A graph of `size` random nodes over every space, and the gradient of their sum."""

    def __init__(self, seed: int, size: int = 30) -> None:
        self.random = random.Random(seed)
        self.graph = Graph("random", SPACES)
        self.columns = {f"{space} {k}": space for space in ("batch", *SPACES, "response*response") for k in range(2)}
        self.nodes = [self.graph.column(name, space) for name, space in self.columns.items()]
        self.inputs = list(self.nodes)
        self.nodes += [self.graph.parameter("alpha"), self.graph.constant(0.25)]
        while len(self.nodes) < size:
            node = self._node()
            if node is not None:
                self.nodes.append(node)

    def program(self) -> Program:
        """A program of the last nodes and of the derivatives of their sum."""
        outputs = self.nodes[-6:]
        total = self.graph.constant(0.0)
        for node in outputs:
            total = self.graph.binary("add", total, self.graph.reduce("sum", node, "batch"))
        return self.graph.compile([*outputs, total, *self.graph.gradient(total, self.graph.constant(1.0), self.inputs)])

    def _pick(self) -> int:
        return self.random.choice(self.nodes[-14:] + self.nodes)

    def _node(self) -> int | None:
        graph, choose, x = self.graph, self.random.choice, self._pick()
        space = graph.space(x)
        above = _ancestors(space)
        pairs = "*" in space
        kind = choose(
            ["unary", "binary", "binary", "where", "reduce", "scan", "shift", "sort", "rank", "end", "project", "other"]
        )
        if kind == "unary":
            return graph.unary(choose(UNARY), x)
        if kind in ("binary", "where"):
            y, z = self._pick(), self._pick()
            if not all(_related(graph.space(a), graph.space(b)) for a, b in ((x, y), (y, z), (x, z))):
                return None
            return graph.binary(choose(BINARY), x, y) if kind == "binary" else graph.where(x, y, z)
        if kind == "project" and space not in ("batch",) and not pairs:
            return graph.project(x, choose("ij"))
        if kind == "project" and pairs:
            return graph.collapse(x, choose("ij"))
        if not above:
            return None
        within = choose(above)
        if kind == "reduce":
            return graph.reduce(choose(REDUCE), x, within)
        if kind == "scan":
            reset = graph.binary("gt", x, graph.constant(0.5)) if self.random.random() < 0.5 else None
            discount = choose([graph.constant(0.75), graph.parameter("alpha")])
            return graph.scan(x, self.random.random() < 0.5, discount, reset)
        if kind == "shift":
            return graph.shift(x, choose([-2, -1, 1, 3]), choose([0.0, 0.5]))
        if kind == "sort":
            return graph.sort(x, choose([x, self._same_space(x)]), within, self.random.random() < 0.5)
        if kind == "rank":
            return graph.rank(x, within, self.random.random() < 0.5)
        if kind == "end":
            return choose([graph.first, graph.last])(x)
        return choose(
            [graph.position(space), graph.count(space, within), graph.broadcast(x, space), graph.stop_gradient(x)]
        )

    def _same_space(self, x: int) -> int:
        return self.random.choice([node for node in self.nodes if self.graph.space(node) == self.graph.space(x)])

    def values(self, batch: Batch, hostile: bool = False) -> dict[str, torch.Tensor]:
        """Columns, some of them with ties; or with infinities, NaN and zeros of both signs."""
        generator = torch.Generator().manual_seed(self.random.randrange(1 << 30))
        made: dict[str, Any] = {}
        for name, space in self.columns.items():
            value = torch.randn(batch.counts[space], generator=generator, dtype=torch.float64)
            value = value.round(decimals=1) if name.endswith("0") else value
            if hostile:
                poison = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0, -0.0], dtype=torch.float64)
                picks = torch.randint(0, 25, value.shape, generator=generator)
                value = torch.where(picks < 5, poison[picks.clamp(max=4)], value)
            made[name] = value.reshape(()) if space == "batch" else value
        return made


def _ancestors(space: str) -> list[str]:
    if space == "batch":
        return []
    parent = SPACES[space.partition("*")[0]]
    return [parent, *_ancestors(parent)]


def _related(a: str, b: str) -> bool:
    return a == b or a in _ancestors(b) or b in _ancestors(a)
