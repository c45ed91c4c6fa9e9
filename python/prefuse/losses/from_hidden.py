"""`preference_loss` from hidden states: which plan, then the statistics or the whole loss by it."""

from __future__ import annotations

import dataclasses
import itertools

import torch
from torch import Tensor

from prefuse._arguments.checks import check_k
from prefuse._arguments.placement import sent
from prefuse._backends.rows import BACKWARD_NEEDS, bits_of, names_of
from prefuse._parallel.vocabulary import shard_of
from prefuse.linear.automatic import settle
from prefuse.linear.operands import (
    Statistics,
    check_group,
    check_operands,
    check_workspace,
    keeps_wide,
    request,
    run,
)
from prefuse.linear.plans import Plan, choose, may_be_grouped
from prefuse.losses.arguments import HeadInputs, Layout, Transform
from prefuse.losses.grouped import FLOAT16_SCALE, Attached, scored
from prefuse.losses.scoring import Scoring
from prefuse.scoring.score import Score


class FromHidden:
    """One batch of an objective from hidden states: checked, not yet run.

    Args:
        source: hidden states, weights, and how the caller wants it done.
        scoring: the objective and the rest of the batch.
        given: the responses as they came, on the device of the hidden states or on the CPU.
        names: the statistics that the rows must give.
        beside: those of them that are to be looked at, and "gradient".
        reference: hidden states of the reference model, where their log-probabilities are made here.
        transform: of the logits.
        known: whether the loss is one number, whose gradient is known when the objective is.
    """

    def __init__(
        self,
        source: HeadInputs,
        scoring: Scoring,
        given: Layout,
        names: tuple[str, ...],
        beside: tuple[str, ...],
        reference: Tensor | None,
        transform: Transform,
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
            given.labels,
            bias=source.bias,
            lora=source.lora,
            reference=None if reference is None else (reference, *own),
            mask=given.mask,
            ignore_index=given.ignore_index,
            temperature=transform.temperature,
            softcap=transform.softcap,
            scale=transform.scale,
            logits_dtype=source.logits_dtype,
            names=names,
            plain=source.group is None,
            sparse=source.sparse,
        )
        through = scoring.statistics_with_gradient()
        names = names_of(bits_of(names))
        self.statistics = Statistics(
            names,
            tuple(name for name in names if name in through and name in BACKWARD_NEEDS),
            check_k(transform.k),
            0.0,
            keeps_wide(source.gradient_dtype, self.operands.inputs[0]),
            shard_of(source.group, self.operands.weights[0]),
        )
        index = self.operands.scored_index()
        self.statistics = settle(source.sparse, self.operands, self.statistics, index)
        job = self.operands.job(index, self.statistics)
        if known and may_be_grouped(job, source.plan):
            index, groups = _by_group(given, scoring, index)
            job = dataclasses.replace(job, groups=groups, apart=not scoring.couples_groups())
        self.index = index
        self.plan: Plan = choose(job, check_workspace(source.workspace_bytes), source.plan)

    def score(self) -> Score:
        """Run it."""
        if self.plan.name == "grouped":
            score, values = self._grouped()
        else:
            table, self.plan = run(self.operands, self.statistics, self.index, self.plan)
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


def _by_group(given: Layout, scoring: Scoring, index: Tensor | None) -> tuple[Tensor | None, tuple[int, ...] | None]:
    """The scored rows ordered by group, and how many each group has; None where that cannot be seen.

    What came on the host is looked at there, so that no device waits.
    """
    labels, offsets = given.labels, given.offsets
    if index is None:
        return None, _as_if_all_were_scored(labels, scoring)
    units, device = scoring.units(given), index.device
    if device != labels.device:
        index = given.scored.reshape(-1).nonzero().reshape(-1)
    counts = labels.new_full((units.shape[0],), labels.shape[-1]) if offsets is None else offsets.diff()
    of_rows = units.repeat_interleave(counts)[index]
    groups = torch.bincount(of_rows, minlength=int(units.max()) + 1 if units.numel() else 0)
    return sent(index[of_rows.argsort(stable=True)], device), tuple(groups.tolist())


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
