"""`preference_loss` from hidden states: which plan, then the statistics or the whole loss by it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from prefuse._arguments.checks import check_k
from prefuse._backends.rows import BACKWARD_NEEDS
from prefuse._parallel.vocabulary import shard_of
from prefuse.linear.operands import (
    Lora,
    Statistics,
    check_group,
    check_operands,
    check_workspace,
    keeps_wide,
    request,
    run,
)
from prefuse.linear.plans import WORKSPACE_BYTES, Plan, choose, may_be_grouped
from prefuse.losses.grouped import FLOAT16_SCALE, Attached, scored
from prefuse.losses.scoring import Scoring
from prefuse.scoring.score import Score

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Source(NamedTuple):
    """Hidden states, what makes logits of them, and how the caller wants it done."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    lora: Lora | None
    reference_weight: Tensor | None
    reference_bias: Tensor | None
    gradient_dtype: torch.dtype | None
    plan: str | None
    workspace_bytes: int
    group: ProcessGroup | None


def check_source(logits: Any, inplace: bool, columns: Collection[str], **given: Any) -> Source | None:
    """The hidden states' arguments together; None where logits came instead. `columns`: what the objective reads.

    Raises:
        TypeError: both came, or neither, or an argument of the one beside the other.
    """
    source = Source(**given)
    taken = [name for name in given if name in columns]
    if taken and source.hidden is not None:
        raise TypeError(
            f"{taken[0]}: an argument beside hidden and a column that the objective reads; give the column another name"
        )
    if source.hidden is None:
        unread = [name for name, value in given.items() if value is not None and name != "workspace_bytes"]
        if source.workspace_bytes != WORKSPACE_BYTES:
            unread.append("workspace_bytes")
        if unread:
            raise TypeError(f"{unread[0]}: given without hidden, the hidden states it belongs to")
        if logits is None:
            raise TypeError("logits: missing; give logits, or hidden and weight")
        return None
    if logits is not None:
        raise TypeError("logits: given together with hidden; give one of the two")
    if source.weight is None:
        raise TypeError("weight: missing beside hidden")
    if inplace:
        raise ValueError("inplace: expected False beside hidden, from which there are no logits to write over")
    return source


class Head:
    """One batch of an objective from hidden states: checked, not yet run.

    Args:
        source: hidden states and weights.
        scoring: the objective and the rest of the batch.
        names: the statistics that the rows must give.
        beside: those of them that are to be looked at, and "gradient".
        labels: in the alignment of the hidden states, and so is `mask`.
        mask: which tokens count.
        reference: hidden states of the reference model, where their log-probabilities are made here.
        transform: of the logits, and `ignore_index`.
        k: of the top-k statistics.
        known: whether the loss is one number, whose gradient is known when the objective is.
    """

    def __init__(
        self,
        source: Source,
        scoring: Scoring,
        names: tuple[str, ...],
        beside: tuple[str, ...],
        labels: Tensor,
        mask: Tensor | None,
        reference: Tensor | None,
        transform: dict[str, Any],
        k: int,
        known: bool,
    ) -> None:
        own = (source.reference_weight, source.reference_bias)
        if reference is None and own != (None, None):
            raise ValueError("reference_weight: given without hidden states of the reference model")
        check_group(source.group, names)
        self.scoring = scoring
        self.beside = beside
        self.operands = check_operands(
            source.hidden,
            source.weight,
            labels,
            bias=source.bias,
            lora=source.lora,
            reference=None if reference is None else (reference, *own),
            mask=mask,
            **transform,
        )
        through = scoring.statistics_with_gradient()
        self.statistics = Statistics(
            names,
            tuple(name for name in names if name in through and name in BACKWARD_NEEDS),
            check_k(k),
            0.0,
            keeps_wide(source.gradient_dtype, self.operands.inputs[0]),
            shard_of(source.group, self.operands.weights[0]),
        )
        index = self.operands.scored_index()
        job = self.operands.job(index, self.statistics)
        if known and may_be_grouped(job, source.plan):
            index, groups = _by_group(self.operands.labels, scoring, index)
            job = dataclasses.replace(job, groups=groups, apart=not scoring.couples_groups())
        self.index = index
        self.plan: Plan = choose(job, check_workspace(source.workspace_bytes), source.plan)

    def score(self) -> Score:
        """Run it."""
        if self.plan.name == "grouped":
            score, values = self._grouped()
        else:
            table = run(self.operands, self.statistics, self.index, self.plan)
            values = dict(zip(self.statistics.names, table.unbind(0), strict=True))
            score = self.scoring.score(values)
        score.plan = self.plan
        score.statistics = self.scoring.looked_at(values, self.beside)
        return score

    def _grouped(self) -> tuple[Score, dict[str, Tensor]]:
        operands = self.operands
        tensors = [*operands.inputs, *operands.weights, operands.bias]
        columns = self.scoring.tensors_with_gradient()
        with torch.no_grad():
            asked = request(operands, self.statistics, self.index, self.plan)
            score, values, gradients, of_columns = scored(
                asked.call(),
                _rows_of(self.plan),
                self.statistics.differentiated,
                self.scoring.score,
                operands.labels.shape,
                asked.wanted(),
                columns,
            )
        scale = FLOAT16_SCALE if operands.inputs[0].dtype == torch.float16 else 1.0
        own = [
            (tensor, gradient if gradient is None else gradient.reshape(tensor.shape), scale)
            for tensor, gradient in zip(tensors, [*gradients.inputs, *gradients.weights, gradients.bias], strict=True)
            if tensor is not None
        ]
        own += [(column, gradient, 1.0) for column, gradient in zip(columns, of_columns, strict=True)]
        attached, known, scales = zip(*own, strict=True)
        return score.with_loss(Attached.apply(score.loss.detach(), known, scales, *attached)), values


def _by_group(labels: Tensor, scoring: Scoring, index: Tensor | None) -> tuple[Tensor | None, tuple[int, ...] | None]:
    """The scored rows ordered by group, and how many each group has; None where that cannot be seen."""
    units, offsets = scoring.units(), scoring.offsets
    if index is None:
        return None, _as_if_all_were_scored(labels, scoring)
    counts = labels.new_full((units.shape[0],), labels.shape[-1]) if offsets is None else offsets.diff()
    of_rows = units.repeat_interleave(counts)[index]
    groups = torch.bincount(of_rows, minlength=int(units.max()) + 1 if units.numel() else 0)
    return index[of_rows.argsort(stable=True)], tuple(groups.tolist())


def _as_if_all_were_scored(labels: Tensor, scoring: Scoring) -> tuple[int, ...] | None:
    """The rows of each group of a padded batch that only has shapes."""
    if not labels.is_meta or scoring.offsets is not None or "groups" in scoring.options:
        return None
    roles = max(1, len(scoring.read.roles))
    return (labels.shape[-1] * roles,) * (scoring.responses // roles)


def _rows_of(plan: Plan) -> list[tuple[int, int]]:
    """First and last of the rows of each tile."""
    ends = [0, *itertools.accumulate(plan.job.groups or ())]
    bounds = [(ends[a], ends[b]) for a, b in itertools.pairwise(plan.chunks)]
    return [(first, last) for first, last in bounds if last > first]
