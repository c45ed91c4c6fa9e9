"""A traced objective: its graph, what it reads, and the programs compiled from it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ..tracing.expression import Expression, build, lift, unary
from ..tracing.kinds import BATCH, PAIR, POINT, token_space
from ..tracing.trace import Trace
from ..tracing.views import ResponseView
from .arrays import Array

if TYPE_CHECKING:
    from .._prefuse import Program

UPSTREAM_LOSS = "upstream.loss"
UPSTREAM_LOSSES = "upstream.losses"
REDUCTIONS = ("mean", "sum", "none")
LEVELS = ("token", "response")


@dataclass(frozen=True)
class ColumnInfo:
    """What the caller gives under one argument name: its level, and the kind of number."""

    level: str
    dtype: str


class Step:
    """A compiled program and where its inputs come from.

    Attributes:
        program: what runs.
        columns: argument names in the order the program wants them.
        parameters: hyper-parameter names likewise.
        spaces: spaces whose sizes or offsets it wants, likewise.
    """

    __slots__ = ("columns", "parameters", "program", "spaces")

    def __init__(self, program: Program) -> None:
        self.program = program
        self.columns = tuple(program.columns)
        self.parameters = tuple(program.parameters)
        self.spaces = tuple(program.spaces)


class Traced:
    """The graph of an objective for one set of given arguments.

    Args:
        trace: the finished trace.
        loss: the loss, per item or of the batch.
        rewards: rewards by role ("" where there are no roles).

    Attributes:
        columns: {argument: space} of every column read.
        item_columns: those with one value per item.
        batch_loss: whether the loss is one value for the batch already.
        reward_roles, metric_names: what the programs put out besides the loss, in order.
    """

    def __init__(self, trace: Trace, loss: Expression, rewards: dict[str, Expression]) -> None:
        self.trace = trace
        self.kind = trace.kind
        self.loss = loss
        self.batch_loss = loss.space == BATCH
        self.rewards = rewards
        metrics = _metrics(trace, rewards)
        self.reward_roles = tuple(rewards)
        self.reward_spaces = tuple(value.space for value in rewards.values())
        self.metric_names = tuple(metrics)
        self._check_totals()
        self._losses = trace.graph.broadcast(loss.node, trace.kind.item)
        self._extras = [value.node for value in (*rewards.values(), *metrics.values())]
        self.columns = self._columns_read()
        self.item_columns = tuple(name for name, space in self.columns.items() if space == trace.kind.item)
        self.missing = tuple(name for name in self.columns if not trace.has(name)) if trace.given is not None else ()
        self._steps: dict[tuple[object, ...], Step] = {}
        self._couplings: dict[tuple[str, ...], bool] = {}
        self._lock = threading.Lock()

    def _check_totals(self) -> None:
        """Refuses totals that a model has a say in: they are taken before there are log-probabilities."""
        trace, modelled = self.trace, {"logp", "ref_logp"}
        roles = (*trace.roles, None)
        names = {self.kind.argument(role, level, name) for role in roles for level in LEVELS for name in modelled}
        for total, node in trace.totals.items():
            for leaf in trace.graph.columns_of([node]):
                found = next((name for name in names & trace.columns.keys() if trace.columns[name].node == leaf), None)
                if found:
                    raise trace.error(f"total {total!r}: expected what no model has a say in, got what reads {found}")

    def _columns_read(self) -> dict[str, str]:
        """Columns in the order of first use, array settings last; those lost to simplification are left out."""
        used = set(self.trace.graph.columns_of([self._losses, *self._extras]))
        read = {name: column.space for name, column in self.trace.columns.items() if column.node in used}
        return dict(sorted(read.items(), key=lambda item: item[0] in self.trace.reserved))

    def score_step(self, reduction: str, wrt: tuple[str, ...]) -> Step:
        """Return the program that gives loss, losses, rewards, metrics, and d(loss)/d(column) for `wrt`."""
        return self._steps.get((reduction, wrt)) or self._compile(
            (reduction, wrt), lambda: self._score_outputs(reduction, wrt)
        )

    def pullback_step(self, reduction: str, wrt: tuple[str, ...], upstream: tuple[bool, bool]) -> Step:
        """Return the program that pulls gradients of loss and/or losses back to the columns in `wrt`.

        `upstream` says which of the two has a gradient; it comes in as a column.
        """
        return self._steps.get((reduction, wrt, upstream)) or self._compile(
            (reduction, wrt, upstream), lambda: self._pullback_outputs(reduction, wrt, upstream)
        )

    def totals_step(self) -> Step:
        """Return the program that gives the numbers of the batch that a caller may give in their place, in order."""
        return self._steps.get(("totals",)) or self._compile(("totals",), lambda: list(self.trace.totals.values()))

    def _compile(self, key: tuple[object, ...], outputs: Callable[[], list[int]]) -> Step:
        with self._lock:
            found = self._steps.get(key) or Step(self.trace.graph.compile(outputs()))
            self._steps[key] = found
        return found

    def _score_outputs(self, reduction: str, wrt: tuple[str, ...]) -> list[int]:
        total = self._reduced(reduction)
        first = [] if reduction == "none" else [total.node]
        return [*first, self._losses, *self._extras, *self._gradients(total, wrt)]

    def _pullback_outputs(self, reduction: str, wrt: tuple[str, ...], upstream: tuple[bool, bool]) -> list[int]:
        losses = Expression(self.trace, self._losses)
        terms = [self._weighted(self._reduced(reduction), UPSTREAM_LOSS)] if upstream[0] else []
        terms += [self._weighted(losses, UPSTREAM_LOSSES)] if upstream[1] else []
        return self._gradients(terms[0] if len(terms) == 1 else terms[0] + terms[1], wrt)

    def _weighted(self, value: Expression, upstream: str) -> Expression:
        product = value * build(self.trace, self.trace.graph.column, upstream, value.space)
        return product if product.space == BATCH else product.sum("batch")

    def _reduced(self, reduction: str) -> Expression:
        if self.batch_loss and reduction == "mean":
            return self.loss
        losses = Expression(self.trace, self._losses)
        return losses.mean("batch") if reduction == "mean" else losses.sum("batch")

    def _gradients(self, total: Expression, wrt: Sequence[str]) -> list[int]:
        if not wrt:
            return []
        graph = self.trace.graph
        nodes = [self.trace.columns[name].node for name in wrt]
        return list(graph.gradient(total.node, graph.constant(1.0), nodes))

    @cached_property
    def arguments(self) -> dict[str, ColumnInfo]:
        """The arguments a call needs, with level and dtype."""
        kind = self.kind
        found = {}
        lengths = {kind.argument(role, "response", "length") for role in (*self.trace.roles, None)}
        for name, space in self.columns.items():
            found[name] = ColumnInfo(kind.level(space), "int" if name in lengths else "float")
        spaces = self.score_step("mean", ()).spaces
        for role in self.trace.roles or (None,):
            if token_space(role) in spaces:
                found[f"{role}_mask" if role else "mask"] = ColumnInfo(kind.level(token_space(role)), "bool")
        if self.trace.grouped:
            found["groups"] = ColumnInfo("response", "int")
        return found

    # What is known of the gradient before there are numbers

    @cached_property
    def columns_with_gradient(self) -> tuple[str, ...]:
        """The columns on which the loss depends differentiably: the gradient of the others is 0 throughout."""
        names = tuple(self.columns)
        gradients = zip(names, self._gradients(self._reduced("sum"), names), strict=True)
        return tuple(name for name, gradient in gradients if self.trace.graph.is_constant(gradient) != 0.0)

    def couples_groups(self, columns: tuple[str, ...]) -> bool:
        """Return whether, for one group, d(loss)/d(columns) depends on what the columns are for another."""
        if columns not in self._couplings:
            nodes = [self.trace.columns[name].node for name in columns]
            gradients = self._gradients(self._reduced("mean"), columns)
            self._couplings[columns] = self.trace.graph.crosses_batch(gradients, nodes)
        return self._couplings[columns]

    def metrics(self, extras: Array) -> dict[str, float]:
        """Cut the metrics out of what a score program puts out after the losses: rewards, then metrics."""
        names = self.metric_names
        return dict(zip(names, extras[len(extras) - len(names) :].tolist(), strict=True)) if names else {}

    # Formulas

    def latex(self) -> str:
        """Return the loss as LaTeX."""
        return self.trace.graph.latex(self.loss.node, self.trace.symbols)

    def latex_derivative(self, argument: str) -> str:
        """Return d(loss)/d(column) of one item as LaTeX."""
        graph = self.trace.graph
        (gradient,) = graph.gradient(self.loss.node, graph.constant(1.0), [self.trace.columns[argument].node])
        return graph.latex(gradient, self.trace.symbols)


def _metrics(trace: Trace, rewards: dict[str, Expression]) -> dict[str, Expression]:
    """Name what is logged, as TRL's trainers do; each is one number for the batch."""
    metrics = _pair_metrics(trace, rewards) if trace.kind is PAIR else _point_metrics(trace, rewards)
    metrics |= trace.records
    return {name: _batch_mean(value) for name, value in metrics.items()}


def _batch_mean(value: Expression) -> Expression:
    return value if value.space == BATCH else value.mean("batch")


def _pair_metrics(trace: Trace, rewards: dict[str, Expression]) -> dict[str, Expression]:
    metrics = {f"rewards/{role}": value for role, value in rewards.items()}
    if "chosen" in rewards and "rejected" in rewards:
        metrics["rewards/margins"] = rewards["chosen"] - rewards["rejected"]
        metrics["rewards/accuracies"] = rewards["chosen"] > rewards["rejected"]
    return metrics | {f"logps/{role}": value for role, value in _log_probabilities(trace).items()}


def _point_metrics(trace: Trace, rewards: dict[str, Expression]) -> dict[str, Expression]:
    """With a `label` column (truthy: desirable) desirable responses count as chosen, the others as rejected."""
    values = {"rewards": rewards.get(""), "logps": _log_probabilities(trace).get("")}
    label = trace.columns.get("label")
    metrics: dict[str, Expression] = {}
    for name, value in values.items():
        if value is None:
            continue
        if trace.kind is not POINT or label is None:
            metrics[f"{name}/mean"] = value
            continue
        chosen = lift(trace, Expression(trace, label.node)) != 0
        metrics[f"{name}/chosen"] = _mean_where(chosen, value)
        metrics[f"{name}/rejected"] = _mean_where(unary("not", chosen), value)
    if "rewards/chosen" in metrics:
        metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
    return metrics


def _mean_where(flag: Expression, value: Expression) -> Expression:
    """Mean over the responses the flag marks; NaN where it marks none, as there is nothing to tell."""
    return (flag * value).sum("batch") / flag.sum("batch")


def _log_probabilities(trace: Trace) -> dict[str, Expression]:
    """Response log-probabilities the objective used, by role."""
    roles = {role for role, name in trace.touched if name == "logp"}
    return {role or "": ResponseView(trace, role).logp for role in sorted(roles, key=str)}
