"""The language once more, over torch tensors and plain loops: what expressions are compared with.

A `Value` is a flat f64 tensor of one space. Functions of a view run on these views exactly as on the language's own,
and autograd gives the gradient to compare with.
"""

from __future__ import annotations

import math

import torch

BATCH = "batch"


class World:
    """Groups of responses of tokens: how many elements each space has, and every element's parent."""

    def __init__(self, groups: list[list[int]]):
        """`groups` holds, per group, the token counts of its responses."""
        responses = [(g, tokens) for g, group in enumerate(groups) for tokens in group]
        self.parents = {
            "group": torch.zeros(len(groups), dtype=torch.long),
            "response": torch.tensor([g for g, _ in responses], dtype=torch.long),
            "token": torch.tensor([r for r, (_, n) in enumerate(responses) for _ in range(n)], dtype=torch.long),
        }
        self.above = {"group": BATCH, "response": "group", "token": "response", "pairs": "group"}
        members = self.segments("response", "group")
        self.pairs = [(i, j) for group in members for i in group for j in group]
        self.parents["pairs"] = torch.tensor(
            [int(self.parents["response"][i]) for i, _ in self.pairs], dtype=torch.long
        )

    def count(self, space: str) -> int:
        return 1 if space == BATCH else len(self.parents[space])

    def chain(self, space: str) -> list[str]:
        chain = [space]
        while chain[-1] != BATCH:
            chain.append(self.above[chain[-1]])
        return chain

    def ancestor(self, space: str, to: str) -> torch.Tensor:
        """For each element of a space, its ancestor's index."""
        index = torch.arange(self.count(space))
        while space != to:
            index = self.parents[space][index]
            space = self.above[space]
        return index

    def segments(self, space: str, to: str) -> list[list[int]]:
        """For each element of `to`, the elements of `space` below it."""
        below: list[list[int]] = [[] for _ in range(self.count(to))]
        for element, up in enumerate(self.ancestor(space, to).tolist()):
            below[up].append(element)
        return below


class Value:
    """A tensor that knows its space; mirrors `Expression`."""

    def __init__(self, world: World, space: str, data: torch.Tensor):
        self.world = world
        self.space = space
        self.data = data

    def at(self, space: str) -> torch.Tensor:
        return self.data if space == self.space else self.data[self.world.ancestor(space, self.space)]

    def lift(self, other) -> Value:
        return (
            other
            if isinstance(other, Value)
            else Value(self.world, BATCH, torch.tensor([float(other)], dtype=torch.float64))
        )

    def combine(self, function, *others) -> Value:
        values = [self, *(self.lift(other) for other in others)]
        space = max((value.space for value in values), key=lambda space: len(self.world.chain(space)))
        return Value(self.world, space, function(*(value.at(space) for value in values)))

    def __add__(self, other):
        return self.combine(torch.add, other)

    def __radd__(self, other):
        return self.combine(lambda a, b: b + a, other)

    def __sub__(self, other):
        return self.combine(torch.sub, other)

    def __rsub__(self, other):
        return self.combine(lambda a, b: b - a, other)

    def __mul__(self, other):
        return self.combine(torch.mul, other)

    __rmul__ = __mul__

    def __truediv__(self, other):
        return self.combine(torch.div, other)

    def __rtruediv__(self, other):
        return self.combine(lambda a, b: b / a, other)

    def __pow__(self, other):
        return self.combine(torch.pow, other)

    def __rpow__(self, other):
        return self.combine(lambda a, b: b**a, other)

    def __neg__(self):
        return self.combine(torch.neg)

    def __abs__(self):
        return self.combine(torch.abs)

    def __lt__(self, other):
        return self.combine(lambda a, b: (a < b).double(), other)

    def __le__(self, other):
        return self.combine(lambda a, b: (a <= b).double(), other)

    def __gt__(self, other):
        return self.combine(lambda a, b: (a > b).double(), other)

    def __ge__(self, other):
        return self.combine(lambda a, b: (a >= b).double(), other)

    def __eq__(self, other):
        return self.combine(lambda a, b: (a == b).double(), other)

    def __ne__(self, other):
        return self.combine(lambda a, b: (a != b).double(), other)

    def __and__(self, other):
        return self.combine(lambda a, b: ((a != 0) & (b != 0)).double(), other)

    def __or__(self, other):
        return self.combine(lambda a, b: ((a != 0) | (b != 0)).double(), other)

    def __invert__(self):
        return self.combine(lambda a: (a == 0).double())

    __hash__ = None

    def _reduce(self, function, empty, to):
        if to in ("i", "j"):
            return self._collapse(function, to)
        to = to or self.world.above[self.space]
        rows = [
            function(self.data[below]) if below else torch.tensor(empty).double()
            for below in self.world.segments(self.space, to)
        ]
        return Value(self.world, to, torch.stack(rows))

    def _collapse(self, function, side):
        rows = [
            [k for k, pair in enumerate(self.world.pairs) if pair["ij".index(side)] == r]
            for r in range(self.world.count("response"))
        ]
        return Value(self.world, "response", torch.stack([function(self.data[row]) for row in rows]))

    def sum(self, to=None):
        return self._reduce(torch.sum, 0.0, to)

    def mean(self, to=None):
        return self._reduce(torch.mean, 0.0, to)

    def count(self, to=None):
        return self._reduce(lambda x: torch.tensor(float(len(x)), dtype=torch.float64), 0.0, to)

    def max(self, to=None):
        return self._reduce(torch.max, -math.inf, to)

    def min(self, to=None):
        return self._reduce(torch.min, math.inf, to)

    def logsumexp(self, to=None):
        return self._reduce(lambda x: torch.logsumexp(x, 0), -math.inf, to)

    def logmeanexp(self, to=None):
        return self._reduce(lambda x: torch.log(torch.mean(torch.exp(x))), -math.inf, to)

    def log_softmax(self, to=None):
        return self - self.logsumexp(to)

    def softmax(self, to=None):
        return self.log_softmax(to).combine(torch.exp)

    def clamp(self, min=None, max=None):
        return self.combine(lambda a: torch.clamp(a, min, max))

    def detach(self):
        return self.combine(torch.detach)

    def _along(self, function, within=None):
        """Rebuild every segment from its elements' indices."""
        pieces = [None] * self.world.count(self.space)
        for below in self.world.segments(self.space, within or self.world.above[self.space]):
            for element, value in zip(below, function(below), strict=True):
                pieces[element] = value
        data = torch.stack(pieces) if pieces else self.data
        return Value(self.world, self.space, data)

    def rank(self, within=None, *, descending=True):
        def ranks(below):
            order = torch.argsort(self.data[below].detach(), stable=True, descending=descending)
            return (torch.argsort(order) + 1).double()

        return self._along(ranks, within)

    def sort(self, within=None, *, key=None, descending=False):
        by = self if key is None else key

        def permute(below):
            order = torch.argsort(by.at(self.space)[below].detach(), stable=True, descending=descending)
            return self.data[below][order]

        return self._along(permute, within)

    def suffix_sum(self, discount=1.0, *, reset=None):
        return self._scan(discount, reset, True)

    def prefix_sum(self, discount=1.0, *, reset=None):
        return self._scan(discount, reset, False)

    def _scan(self, discount, reset, reverse):
        factor = self.lift(discount).data[0]
        flags = torch.zeros(len(self.data)) if reset is None else self.lift(reset).at(self.space)

        def scan(below):
            totals = {}
            for position in reversed(range(len(below))) if reverse else range(len(below)):
                other = position + 1 if reverse else position - 1
                total = self.data[below[position]]
                if other in totals and flags[below[max(position, other)]] == 0:
                    total = total + factor * totals[other]
                totals[position] = total
            return [totals[position] for position in range(len(below))]

        return self._along(scan)

    def shift(self, by, fill=0.0):
        def moved(below):
            sources = [position - by for position in range(len(below))]
            edge = torch.tensor(fill, dtype=torch.float64)
            return [self.data[below[s]] if 0 <= s < len(below) else edge for s in sources]

        return self._along(moved)

    def first(self):
        return self._reduce(lambda x: x[0], 0.0, None)

    def last(self):
        return self._reduce(lambda x: x[-1], 0.0, None)


class View:
    """A view at one level over the columns of a world; columns are named by level, e.g. `token_a`."""

    def __init__(self, world: World, columns: dict[str, torch.Tensor], level: str):
        self._world = world
        self._columns = columns
        self._level = level

    def __getitem__(self, name):
        space = "pairs" if self._level == "pairs" else self._level
        return Value(self._world, space, self._columns[name].reshape(-1))

    def _up(self, level):
        return View(self._world, self._columns, level)

    @property
    def response(self):
        return self._up("response")

    @property
    def group(self):
        return self._up("group")

    @property
    def batch(self):
        return self._up(BATCH)

    @property
    def position(self):
        below = self._world.segments(self._level, self._world.above[self._level])
        places = {element: float(k) for row in below for k, element in enumerate(row)}
        data = torch.tensor([places[k] for k in range(len(places))]).double()
        return Value(self._world, self._level, data)

    @property
    def length(self):
        counts = [max(len(row), 1) for row in self._world.segments("token", "response")]
        return Value(self._world, "response", torch.tensor(counts).double())

    @property
    def size(self):
        counts = [len(row) for row in self._world.segments("response", "group")]
        return Value(self._world, "group", torch.tensor(counts).double())

    def pairs(self):
        return Pairs(self._world, self._columns)


class Pairs(View):
    def __init__(self, world, columns):
        super().__init__(world, columns, "pairs")

    def __iter__(self):
        return iter((self.i, self.j))

    def i(self, x):
        return self._side(x, 0)

    def j(self, x):
        return self._side(x, 1)

    def _side(self, x, side):
        index = torch.tensor([pair[side] for pair in self._world.pairs])
        return Value(self._world, "pairs", x.data[index])


def _unary(function):
    return staticmethod(lambda x: x.combine(function))


class functions:
    """The functions of the language, for `Value`s."""

    exp, log, log1p, expm1 = map(_unary, (torch.exp, torch.log, torch.log1p, torch.expm1))
    sigmoid, log_sigmoid = _unary(torch.sigmoid), _unary(torch.nn.functional.logsigmoid)
    softplus = _unary(lambda x: torch.logaddexp(x, torch.zeros_like(x)))
    tanh, relu, absolute, sign = map(_unary, (torch.tanh, torch.relu, torch.abs, torch.sign))
    square, sqrt, stop_gradient = map(_unary, (torch.square, torch.sqrt, torch.detach))
    log1mexp = _unary(lambda x: torch.log(-torch.expm1(x)))

    @staticmethod
    def minimum(a, b):
        return (a if isinstance(a, Value) else b).lift(a).combine(torch.minimum, b)

    @staticmethod
    def maximum(a, b):
        return (a if isinstance(a, Value) else b).lift(a).combine(torch.maximum, b)

    @staticmethod
    def clamp(x, min=None, max=None):
        return x.clamp(min, max)

    @staticmethod
    def where(condition, a, b):
        return condition.combine(lambda c, x, y: torch.where(c != 0, x, y), a, b)
