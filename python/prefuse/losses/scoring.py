"""An objective and all of a batch but the token statistics: what scores those once they are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prefuse._parallel.data import WholeBatch
from prefuse.scoring.execution import totals
from prefuse.scoring.objective import Objective
from prefuse.scoring.score import Score
from prefuse.scoring.traced import Traced

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
from prefuse.losses.arguments import Layout
from prefuse.losses.columns import GRADIENT, Batch, Reading, check_exchangeable, check_item_column


class Scoring:
    """An objective and all of a batch but what the rows give.

    Args:
        objective: with its hyper-parameters set.
        read: what it reads.
        columns: the caller's columns.
        at_rows: which tokens are scored, and how responses lie, in the alignment of logits or hidden states.
        reference: the reference's log-probabilities per token or per response, if they were given, under "tokens" or
            "responses".
        reduction: of the loss.
        data_group: the processes whose batches are scored as one; None: this one's alone.
    """

    def __init__(
        self,
        objective: Objective,
        read: Reading,
        columns: dict[str, Any],
        at_rows: Layout,
        reference: dict[str, Tensor],
        reduction: str,
        data_group: ProcessGroup | None,
    ) -> None:
        self.objective = objective
        self.read = read
        self.at_rows = at_rows
        self.offsets, self.shift = at_rows.offsets, at_rows.shift
        self.scored = at_rows.scored.roll(1, -1) if self.shift else at_rows.scored
        self.reference = reference
        self.options: dict[str, Any] = {} if at_rows.groups is None else {"groups": at_rows.groups}
        if reduction != "mean":
            self.options["reduction"] = reduction
        self.columns = columns
        batch = self._batch({})
        if self.offsets is not None:
            self.columns = columns | {name: batch.packed(columns[name], role) for name, role in read.given_tokens}
        for role in read.laid_out:
            self.options.update([batch.token_layout(role)])
        self.responses = batch.responses
        self.data_group = data_group
        if data_group is not None:
            check_exchangeable(objective, read)
            self.known = self._known(batch)

    def score(self, values: Mapping[str, Tensor], complete: bool = True) -> Score:
        """Score the statistics of all tokens, in the logits' alignment.

        With a `data_group` scoring is a collective call that every process makes once, when its statistics are
        `complete`. Before, those of other processes are left out; `couples_groups` tells whether they are needed.
        """
        batch = self._batch(values)
        arguments = {**self.columns, **{need.argument: batch.column(need) for need in self.read.needs}, **self.options}
        if self.data_group is not None:
            arguments |= self._of_all_processes(arguments, complete)
        score: Score = self.objective(**arguments)
        return score

    def totals(self) -> dict[str, float]:
        """The numbers of this batch that may be given in their place: nothing of them is made of statistics."""
        nothing = torch.zeros(self.scored.shape, device=self.scored.device)
        batch = self._batch({need.name: nothing for need in self.read.needs})
        made = {need.argument: batch.column(need) for need in self.read.needs}
        arguments = {**self.columns, **made, **self.options}
        plan = self.objective._plan(arguments)
        return totals(plan, {**arguments, **self.objective._arrays}, self.objective._numbers)

    def looked_at(self, values: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
        """Statistics in the labels' alignment, detached: `values` come in the logits', `GRADIENT` is made here."""
        if not names:
            return {}
        found = {name: values[name].detach() for name in names if name != GRADIENT}
        if GRADIENT in names:
            found[GRADIENT] = self._gradient(values)
        aligned = self._batch(found).tokens
        return {name: torch.where(self.scored, aligned[name], 0.0) for name in names}

    def _gradient(self, values: Mapping[str, Tensor]) -> Tensor:
        """d(loss)/d(logp) of each token, in the alignment of `values`: with a `data_group` a collective call."""
        if "logp" not in values:
            return torch.zeros(self.scored.shape, device=self.scored.device)
        known = {name: value.detach() for name, value in values.items()}
        leaf = known["logp"].requires_grad_()
        with torch.enable_grad():
            loss = self.score(known | {"logp": leaf}).loss.sum()
        if not loss.requires_grad:
            return torch.zeros_like(leaf)
        (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True)
        return torch.zeros_like(leaf) if gradient is None else gradient

    def traced(self) -> Traced:
        """The graph that a call of `score` runs."""
        names = dict.fromkeys((*self.columns, *(need.argument for need in self.read.needs), *self.options))
        names.pop("reduction", None)
        return self.objective._plan(names).traced

    def statistics_with_gradient(self) -> tuple[str, ...]:
        """The statistics that the loss depends on differentiably."""
        through = self.traced().columns_with_gradient
        return tuple(dict.fromkeys(need.name for need in self.read.needs if need.argument in through))

    def couples_groups(self) -> bool:
        """Whether the gradient of one group's statistics depends on another's."""
        traced = self.traced()
        made = [need.argument for need in self.read.needs if need.name != "length" and need.argument in traced.columns]
        return traced.couples_groups(tuple(made)) or self._spans_processes()

    def tensors_with_gradient(self) -> list[Tensor]:
        """The caller's columns, and hyper-parameters given as arrays, that require grad."""
        given = [*self.columns.values(), *self.objective.parameters.values()]
        return [value for value in given if isinstance(value, Tensor) and value.requires_grad]

    def units(self, given: Layout) -> Tensor:
        """Which group each response belongs to, counted from 0: [R], where the responses are `given`."""
        device = given.labels.device
        if given.groups is not None:
            inverse: Tensor = torch.unique(given.groups, return_inverse=True)[1]
            return inverse.to(device)
        unit = torch.arange(self.responses, device=device)
        return unit % (self.responses // len(self.read.roles)) if self.read.roles else unit

    def _known(self, batch: Batch) -> dict[str, Tensor]:
        """What the processes exchange of this one before there are statistics: the caller's columns, and lengths."""
        items = self.responses // max(1, len(self.read.roles))
        levels = {name: info.level for name, info in self.traced().arguments.items()}
        lengths = {need.argument: batch.column(need) for need in self.read.needs if need.name == "length"}
        given = self.columns | {name: self.options[name] for name in ("groups",) if name in self.options}
        return lengths | {
            name: check_item_column(name, column, levels.get(name, "token"), items, self.scored)
            for name, column in given.items()
            if levels.get(name) != "batch"
        }

    @cached_property
    def _others(self) -> tuple[WholeBatch, dict[str, Tensor]]:
        """The batch of all processes, and what is known of it before there are statistics: a collective call."""
        items = self.responses // max(1, len(self.read.roles))
        whole = WholeBatch(self.data_group, items, self.scored.device)
        return whole, whole.exchange(self.known)

    def _of_all_processes(self, arguments: Mapping[str, Tensor], complete: bool) -> dict[str, Tensor]:
        """Those of `arguments` that have one value per item, for the items of all processes."""
        whole, others = self._others
        made = {need.argument: arguments[need.argument] for need in self.read.needs if need.name != "length"}
        others = others | (whole.exchange(made) if complete else whole.blank(made))
        return {name: whole.with_own(values, arguments[name]) for name, values in others.items()}

    def _spans_processes(self) -> bool:
        """Whether responses of one group lie on several processes: a collective call where there are ids of groups."""
        if "groups" not in self.options or self.data_group is None or self.scored.is_meta:
            return False
        whole, known = self._others
        parts = torch.split(known["groups"], whole.counts)
        apart = sum(torch.unique(part).numel() for part in parts)
        return bool(apart > torch.unique(known["groups"]).numel())

    def _batch(self, values: Mapping[str, Tensor]) -> Batch:
        tokens = dict(values)
        if self.shift:  # back to where the labels are, in whose alignment the caller's columns come
            tokens = {name: value.roll(1, -1) for name, value in tokens.items()}
        if "tokens" in self.reference:
            tokens["ref_logp"] = torch.where(self.scored, self.reference["tokens"], 0.0)
        sums = {"ref_logp": self.reference["responses"]} if "responses" in self.reference else {}
        return Batch(tokens, sums, self.scored, self.offsets, self.read.roles)
