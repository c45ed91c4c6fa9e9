"""Preference losses: gather the log-probabilities an objective reads, score it, pull its gradient back.

`preference_loss` is the whole flow in one call, from logits or from hidden states and the LM-head weight; `explain`
tells how the latter would run. `pair_loss` and `dpo_loss` are for scripts that have log-probabilities already and
expect three tensors back.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from prefuse._arguments.checks import FLOATS, check_flag, check_tensor
from prefuse._backends.rows import REFERENCE_STATISTICS
from prefuse._display.html import announce
from prefuse._parallel.data import check_process_group
from prefuse.functional import token_stats
from prefuse.language import ColumnInfo, Objective, Score, TorchObjective, find, names
from prefuse.linear.estimate import DEVICES, checked, estimate
from prefuse.linear.plans import Plan, choose
from prefuse.linear.sparse import Sparse
from prefuse.losses.arguments import HeadInputs, Layout, Responses, Transform
from prefuse.losses.columns import check_beside, check_reference, reading, reference_form, row_statistics
from prefuse.losses.from_hidden import FromHidden
from prefuse.losses.scoring import Scoring
from prefuse.scoring.registry import get

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")

__all__ = ["batch_totals", "dpo_loss", "explain", "pair_loss", "preference_loss"]


def preference_loss(
    objective: str | Objective,
    *,
    labels: Tensor,
    logits: Tensor | None = None,
    hidden: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    lora: tuple[Tensor, Tensor, float] | None = None,
    reference: Tensor | None = None,
    reference_weight: Tensor | None = None,
    reference_bias: Tensor | None = None,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    groups: Tensor | None = None,
    shift: bool = False,
    ignore_index: int = -100,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    scale: float = 1.0,
    k: int = 10,
    statistics: Sequence[str] = (),
    inplace: bool = False,
    reduction: str = "mean",
    gradient_dtype: torch.dtype | None = None,
    plan: str | None = None,
    workspace_bytes: int | None = None,
    group: ProcessGroup | None = None,
    sparse: float | str | Sparse | None = None,
    logits_dtype: torch.dtype | None = None,
    data_group: ProcessGroup | None = None,
    **columns: Any,
) -> Score:
    """The loss of `objective` on a batch of responses, with its gradient: gather, score and pull back.

    What the objective reads is gathered, and nothing else: sums of log-probabilities and lengths per response, token
    columns where it reads such (``logp``, ``entropy``, ``kl`` and the other statistics of `prefuse.functional`). A
    column given by the caller is taken as it is.

    From hidden states the N x V logits are never whole in memory, and with a frozen weight, or an objective that scores
    groups one by one, no GEMM is computed twice: see `prefuse.linear.plans`. Under the plan "grouped" the gradient is
    made together with the loss; ``score.losses`` carries none then, and ``score.loss.backward()`` only hands it out.

    Under ``torch.compile`` it breaks the graph, as it asks the objective what it reads; with ``fullgraph=True`` gather
    with `prefuse.token_stats` or `prefuse.linear_token_stats` and call the objective, which compile whole.

    Args:
        objective: an `Objective` or the name of one, e.g. ``"simpo"``.
        labels: [R, T], or [N] or [1, N]: the token each row of logits is scored on (see `shift`).
        logits: padded [R, T, V], or packed [N, V] or [1, N, V] together with `cu_seqlens`. For pairs the responses come
            role by role, chosen first: with B pairs, rows 0 to B − 1 are chosen and B to 2B − 1 rejected (further
            roles follow in the order in which the objective names them).
        hidden: instead of `logits`, the hidden states that the head makes them of: [R, T, H], [N, H] or [1, N, H].
        weight: beside `hidden`, [V, H]; and so are `bias`, `lora`, `gradient_dtype`, `plan`, `workspace_bytes`,
            `group`, `sparse` and `logits_dtype`: as in `linear_token_stats`. `plan` may be "grouped" here.
        bias: see `weight`.
        lora: see `weight`.
        reference: of the reference model, constants for the gradient: its logits, in the shape of `logits` (or its
            hidden states, beside `hidden`); or its log-probability per token, in the shape of `labels`; or per
            response, [R].
        reference_weight: [V, H'], beside hidden states of the reference; None: it shares `weight` and `bias`.
        reference_bias: [V], beside `reference_weight`.
        mask: the shape of `labels`; 0 marks tokens to ignore.
        cu_seqlens: [R + 1] integers, where each packed response begins and the last ends.
        groups: [R] integers, for objectives over groups of responses: which prompt each answers.
        shift: `labels`, and with them `mask` and token columns, are aligned with the input tokens, as Hugging Face
            models take them: token t is scored with the logits of t − 1.
        ignore_index: the label that marks tokens to ignore.
        temperature: as in `prefuse.functional.token_stats`, and so are `softcap`, `scale`, `k` and `inplace`; they
            apply to the reference's logits too.
        statistics: what to gather beside, only to be looked at: names of `prefuse.functional`, from the same sweep, and
            ``"gradient"``, d(loss)/d(logp), for which the objective is evaluated once more. They are
            ``score.statistics``, each of the shape of `labels` and in their alignment, 0 where nothing is scored.
        softcap: see `temperature`.
        scale: see `temperature`.
        k: see `temperature`.
        inplace: let the backward pass write its gradient over `logits`.
        reduction: of the loss over pairs, responses or groups: "mean", "sum" or "none".
        gradient_dtype: see `weight`.
        plan: see `weight`.
        workspace_bytes: see `weight`.
        group: see `weight`.
        sparse: see `weight`.
        logits_dtype: see `weight`.
        data_group: the processes of data-parallel training whose batches are scored as one, for objectives that look at
            the whole batch (``kto``, ``bco``, ``aot``, ``orpo``, …): responses, the columns that belong to them and
            `groups`, whose ids then mean the same everywhere, follow each other in order of rank, as many as each
            process has. What comes back is that of the whole batch on every process, and the gradient is the number of
            processes times that of the process's part, so that DDP and FSDP, which average, arrive at the gradient of
            ``score.loss``. Every process calls, with the same objective. Objectives that read token columns are
            refused.
        columns: hyper-parameters of the objective, and the columns it reads beside the gathered ones.

    Returns:
        A `Score`: `.loss` to call ``backward()`` on, `.losses`, `.rewards`, `.metrics`, `.statistics`, and from hidden
        states `.plan`.

    Raises:
        TypeError: an argument of the wrong type or dtype, one that the objective does not read, or one that it misses.
        ValueError: a wrong shape, device, layout or range, a reference that is missing, not read, or too coarse, or a
            plan that is not possible.
    """
    call = _Call(
        _objective(objective),
        Responses(labels, mask, cu_seqlens, groups, shift, ignore_index),
        logits,
        HeadInputs(
            hidden,
            weight,
            bias,
            lora,
            reference_weight,
            reference_bias,
            gradient_dtype,
            plan,
            workspace_bytes,
            group,
            sparse,
            logits_dtype,
        ),
        reference,
        Transform(temperature, softcap, scale, k),
        statistics,
        inplace,
        reduction,
        data_group,
        columns,
    )
    with call.head.gathered():
        return call.prepared().score()


def explain(objective: str | Objective, *, device: str | None = None, **arguments: Any) -> Plan:
    """Tell how `preference_loss` would run from hidden states, without running it: plan, GEMMs, tiles, memory.

    A script prints the plan; at a prompt, Python's or a notebook's, it shows itself as what comes back.

    Args:
        objective: see `preference_loss`.
        device: "h200", "h100", "b200", "a100" or "rtx4090": the plan that would run there, whatever the tensors are
            on, and as ``plan.estimate`` what it should take there beside the bare GEMMs: arithmetic from the device's
            specification, not a measurement.
        arguments: those of `preference_loss`, `hidden`, `weight` and `labels` among them; on the device "meta" nothing
            is allocated, and every token is taken to be scored.

    Returns:
        The plan.

    Raises:
        TypeError, ValueError: as `preference_loss`.
    """
    if device is not None:
        checked(device)
    bound = inspect.signature(preference_loss).bind(objective, **arguments)
    bound.apply_defaults()
    given = dict(bound.arguments)
    parts = {
        "responses": _from(Responses, given),
        "head": _from(HeadInputs, given),
        "transform": _from(Transform, given),
    }
    call = _from(_Call, given | parts | {"objective": _objective(objective)})
    with call.head.gathered():
        batch = call.prepared()
    if not isinstance(batch, FromHidden):
        raise TypeError("hidden: missing; there is a plan only for hidden states and a weight, not for logits")
    made = batch.plan
    if device is not None:
        job = dataclasses.replace(made.job, device=DEVICES[device])
        made = choose(job, given["workspace_bytes"], given["plan"])
        made = dataclasses.replace(made, estimate=estimate(made, device))
    announce(made)
    return made


def batch_totals(
    objective: str | Objective,
    *,
    labels: Tensor,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    groups: Tensor | None = None,
    shift: bool = False,
    ignore_index: int = -100,
    **columns: Any,
) -> dict[str, float]:
    """What `objective` divides means over the tokens of this batch by, for a batch that is spread over several calls.

    Gradient accumulation averages the losses of micro-batches, and a mean over the tokens of each is not the mean over
    all. Add up the totals of the N micro-batches, and give each call the N-th part:

        totals = [prefuse.batch_totals("orpo", labels=labels, shift=True) for labels in micro_batches]
        mean = {name: sum(each[name] for each in totals) / len(totals) for name in totals[0]}
        for labels in micro_batches:
            loss = prefuse.preference_loss("orpo", labels=labels, shift=True, logits=model(labels), **mean).loss
            (loss / len(totals)).backward()

    With data-parallel processes, which average too, add up and divide by those as well. `prefuse.trl.PreferenceTrainer`
    does it by itself.

    Args:
        objective: an `Objective` or the name of one.
        labels: as in `preference_loss`, and so are `mask`, `cu_seqlens`, `groups`, `shift` and `ignore_index`.
        mask: see `labels`.
        cu_seqlens: see `labels`.
        groups: see `labels`.
        shift: see `labels`.
        ignore_index: see `labels`.
        columns: hyper-parameters, and the columns that the objective reads beside the gathered ones.

    Returns:
        Numbers by the names that `preference_loss` takes them under, such as ``chosen_batch_length``; empty where the
        objective has no mean over the batch's tokens. The host waits for them.

    Raises:
        TypeError, ValueError: as `preference_loss`.
    """
    objective = _with_settings(_objective(objective), columns)
    given = _columns_of(objective, columns)
    responses = Responses(labels, mask, cu_seqlens, groups, shift, ignore_index).checked()
    return Scoring(objective, reading(objective, tuple(given)), given, responses, {}, "mean", None).totals()


def pair_loss(
    objective: str | Objective,
    policy_chosen_logps: Any,
    policy_rejected_logps: Any,
    reference_chosen_logps: Any = None,
    reference_rejected_logps: Any = None,
    **hyper_and_columns: Any,
) -> tuple[Any, Any, Any]:
    """Any pair objective in the idiom of DPO scripts: log-probabilities in, three arrays out.

    Args:
        objective: a pair `Objective` or the name of one.
        policy_chosen_logps: [B], log π(chosen) summed over the response, in nats; torch (autograd) or NumPy.
        policy_rejected_logps: [B].
        reference_chosen_logps: [B], of the reference model; None for objectives without a reference.
        reference_rejected_logps: [B].
        hyper_and_columns: hyper-parameters, and further columns such as ``chosen_lengths``.

    Returns:
        losses, chosen rewards and rejected rewards, [B] each; the rewards are detached.

    Raises:
        TypeError: an argument of the wrong type, one that the objective does not read, or one that it misses.
        ValueError: shapes that do not fit, an objective that is not of pairs, or a reference that it does not read.
    """
    objective = _objective(objective)
    if objective.kind != "pair":
        raise ValueError(f"objective: expected a pair objective, got {objective.name}, a {objective.kind} objective")
    given = {
        "chosen_logps": policy_chosen_logps,
        "rejected_logps": policy_rejected_logps,
        "ref_chosen_logps": reference_chosen_logps,
        "ref_rejected_logps": reference_rejected_logps,
    }
    for name in ("ref_chosen_logps", "ref_rejected_logps"):
        if given[name] is not None and not _reads_reference(objective):
            raise ValueError(
                f"{name.replace('ref_', 'reference_')}: given, but {objective.name} reads nothing of a reference "
                "model; leave it out"
            )
    score = objective(**{name: value for name, value in given.items() if value is not None}, **hyper_and_columns)
    rewards = score.rewards
    return score.losses, rewards.get("chosen"), rewards.get("rejected")


def dpo_loss(
    policy_chosen_logps: Any,
    policy_rejected_logps: Any,
    reference_chosen_logps: Any,
    reference_rejected_logps: Any,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    **columns: Any,
) -> tuple[Any, Any, Any]:
    """DPO (Rafailov et al. 2023, arXiv:2305.18290, eq. 7), conservative where `label_smoothing` is above 0.

    ``−(1 − ε) log σ(βΔ) − ε log σ(−βΔ)`` with Δ the difference of the two log-ratios; the reward of a response is β
    times its log-ratio. Arguments and results are those of `pair_loss`.
    """
    return pair_loss(
        "dpo",
        policy_chosen_logps,
        policy_rejected_logps,
        reference_chosen_logps,
        reference_rejected_logps,
        beta=beta,
        label_smoothing=label_smoothing,
        **columns,
    )


def _objective(objective: str | Objective) -> Objective:
    if isinstance(objective, Objective):
        return objective
    if isinstance(objective, TorchObjective):
        raise TypeError(
            f"objective: {objective.name} is written in torch and does not say which columns it reads; "
            "gather them with prefuse.functional and call it yourself"
        )
    if not isinstance(objective, str):
        raise TypeError(f"objective: expected an Objective or the name of one, got {type(objective).__name__}")
    return find(objective) if objective in names() else get(objective)


def _reads_reference(objective: Objective) -> bool:
    return any(name.startswith("ref_") for name in objective.columns)


def _with_settings(objective: Objective, columns: dict[str, Any]) -> Objective:
    """The objective with those of the arguments that are hyper-parameters of it."""
    own = {name: value for name, value in columns.items() if name in objective.parameters}
    result: Objective = objective(**own) if own else objective
    return result


def _refuse_other_names_of_reference(columns: Collection[str], reads: Collection[str]) -> None:
    """What other functions call the argument `reference`."""
    for name in ("reference_logits", "ref_logits", "reference_hidden", "ref_hidden", "ref_logps", "reference_logps"):
        if name in columns and name not in reads:
            raise TypeError(f"{name}: no argument here; what there is of the reference model goes as reference=")


class _FromLogits(NamedTuple):
    """A batch from logits: statistics in one sweep, then the objective."""

    scoring: Scoring
    names: tuple[str, ...]
    arguments: dict[str, Any]
    beside: tuple[str, ...]

    def score(self) -> Score:
        """Run it."""
        values = token_stats(stats=self.names, **self.arguments) if self.names else {}
        score = self.scoring.score(values)
        score.statistics = self.scoring.looked_at(values, self.beside)
        return score


@dataclass(frozen=True)
class _Call:
    """A call of `preference_loss`: its arguments as they came, those that belong together in one."""

    objective: Objective
    responses: Responses
    logits: Tensor | None
    head: HeadInputs
    reference: Tensor | None
    transform: Transform
    statistics: Sequence[str]
    inplace: bool
    reduction: str
    data_group: ProcessGroup | None
    columns: dict[str, Any]

    def prepared(self) -> _FromLogits | FromHidden:
        """The call with everything checked, not yet run."""
        objective, reads = self.objective, self.objective.columns
        columns, source = self._source(reads)
        settled = _with_settings(objective, columns)
        # Numbers change nothing about what is read, and what is read is remembered by objective.
        read = reading(objective if settled._forms == objective._forms else settled, tuple(columns))
        # Nothing is gathered and no column given: a call would only configure, while the plan says what is missing.
        if not read.needs and reads.keys().isdisjoint(columns):
            settled._plan(_columns_of(objective, columns))
        given = self._responses()
        responses = given if source is None else given.at(source.hidden)
        rows, form = self._form_of_reference(source, responses)
        if form is None:
            _refuse_other_names_of_reference(columns, reads)
        check_reference(objective.name, read.needs, form, rows)
        made = form == rows
        scoring = Scoring(
            settled,
            read,
            _columns_of(objective, columns),
            responses,
            {} if self.reference is None or made or form is None else {form: self.reference.detach()},
            self.reduction,
            self.data_group,
        )
        beside = check_beside(self.statistics, made)
        names = row_statistics(read.needs, beside, made)
        reference = self.reference if made and REFERENCE_STATISTICS.intersection(names) else None
        if source is not None and names:
            known = self.reduction != "none"
            return FromHidden(source, scoring, given, names, beside, reference, self.transform, known=known)
        return _FromLogits(scoring, names, self._of_logits(responses, reference), beside)

    def _source(self, reads: Mapping[str, ColumnInfo]) -> tuple[dict[str, Any], HeadInputs | None]:
        """The columns, and the hidden states' arguments or None; without hidden states those may be columns, too."""
        if self.head.hidden is not None:
            self.head.check(self.logits, self.inplace, reads)
            return self.columns, self.head
        columns, others = self.head.as_columns(reads)
        others.check(self.logits, self.inplace, reads)
        check_tensor("logits", self.logits, FLOATS, "a float16, bfloat16, float32 or float64")  # type: ignore[arg-type]
        return self.columns | columns, None

    def _responses(self) -> Layout:
        responses = self.responses.checked()
        check_flag("inplace", self.inplace)
        check_process_group("data_group", self.data_group)
        if self.data_group is not None and self.data_group is self.head.group:
            raise ValueError("data_group: expected other processes than those of group, which share one batch")
        return responses

    def _form_of_reference(self, source: HeadInputs | None, responses: Layout) -> tuple[str, str | None]:
        """What the batch is made of, and which form the reference has: that, tokens, responses, or None."""
        if source is None:
            rows, shape = "logits", _shape(self.logits)
        else:
            rows, shape = "hidden states", _shape(source.hidden)
            if isinstance(source.reference_weight, Tensor):
                shape = (*shape[:-1], source.reference_weight.shape[-1])
        return rows, reference_form(self.reference, rows, shape, responses.labels, responses.offsets)

    def _of_logits(self, responses: Layout, reference: Tensor | None) -> dict[str, Any]:
        """The arguments of `token_stats`."""
        return {
            "logits": self.logits,
            "labels": responses.labels,
            "mask": responses.mask,
            "reference_logits": reference,
            "ignore_index": self.responses.ignore_index,
            "inplace": self.inplace,
            **dataclasses.asdict(self.transform),
        }


def _from(kind: type[T], arguments: Mapping[str, Any]) -> T:
    """A dataclass of those of the arguments that it has."""
    return kind(**{field.name: arguments[field.name] for field in dataclasses.fields(kind)})  # type: ignore[arg-type]


def _columns_of(objective: Objective, columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns among the further arguments; the others are hyper-parameters."""
    return {name: value for name, value in columns.items() if name not in objective.parameters}


def _shape(tensor: Any) -> tuple[int, ...]:
    """The shape of what should be a tensor, and is looked at more closely later."""
    return tuple(getattr(tensor, "shape", ()))
