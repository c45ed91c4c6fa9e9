"""Preference losses from logits: gather the log-probabilities an objective reads, score it, pull its gradient back.

`preference_loss` is the whole flow in one call. `pair_loss` and `dpo_loss` are for scripts that have log-probabilities
already and expect three tensors back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefuse import language
from prefuse._layout import check_layout, scored_tokens, shift_left, sum_responses
from prefuse._rows import FLOATS, REFERENCE_STATISTICS, STATISTICS, check_integer, check_tensor
from prefuse.functional import token_stats
from prefuse.language import Objective, Score, TorchObjective
from prefuse.tracing.kinds import GROUP, PAIR, POINT, TOKEN

__all__ = ["dpo_loss", "pair_loss", "preference_loss"]

_KINDS = {kind.name: kind for kind in (PAIR, POINT, GROUP, TOKEN)}
_PER_RESPONSE = ("logp", "ref_logp", "length")


def preference_loss(
    objective: str | Objective,
    *,
    logits: Tensor,
    labels: Tensor,
    reference: Tensor | None = None,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    groups: Tensor | None = None,
    shift: bool = False,
    ignore_index: int = -100,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    scale: float = 1.0,
    k: int = 10,
    inplace: bool = False,
    reduction: str = "mean",
    **columns: Any,
) -> Score:
    """The loss of `objective` on a batch of responses, with its gradient to the logits: gather, score and pull back.

    What the objective reads is gathered, and nothing else: sums of log-probabilities and lengths per response, token
    columns where it reads such (``logp``, ``entropy``, ``kl`` and the other statistics of `prefuse.functional`). A
    column given by the caller is taken as it is.

    Under ``torch.compile`` it breaks the graph, as it asks the objective what it reads; with ``fullgraph=True`` gather
    with `prefuse.functional` and call the objective, both of which compile whole.

    Args:
        objective: an `Objective` or the name of one, e.g. ``"simpo"``.
        logits: padded [R, T, V], or packed [N, V] or [1, N, V] together with `cu_seqlens`. For pairs the responses come
            role by role, chosen first: with B pairs, rows 0 to B − 1 are chosen and B to 2B − 1 rejected (further
            roles follow in the order in which the objective names them).
        labels: [R, T], or [N] or [1, N]: the token each row of logits is scored on (see `shift`).
        reference: of the reference model, constants for the gradient: its logits, in the shape of `logits`; or its
            log-probability per token, in the shape of `labels`; or per response, [R].
        mask: the shape of `labels`; 0 marks tokens to ignore.
        cu_seqlens: [R + 1] integers, where each packed response begins and the last ends.
        groups: [R] integers, for objectives over groups of responses: which prompt each answers.
        shift: `labels`, and with them `mask` and token columns, are aligned with the input tokens, as Hugging Face
            models take
            them: token t is scored with the logits of t − 1.
        ignore_index: the label that marks tokens to ignore.
        temperature: as in `prefuse.functional.token_stats`, and so are `softcap`, `scale`, `k` and `inplace`; they
            apply to reference logits too.
        softcap: see `temperature`.
        scale: see `temperature`.
        k: see `temperature`.
        inplace: let the backward pass write its gradient over `logits`.
        reduction: of the loss over pairs, responses or groups: "mean", "sum" or "none".
        columns: hyper-parameters of the objective, and the columns it reads beside the gathered ones.

    Returns:
        A `Score`: `.loss` to call ``backward()`` on, `.losses`, `.rewards`, `.metrics`.

    Raises:
        TypeError: an argument of the wrong type or dtype, one that the objective does not read, or one that it misses.
        ValueError: a wrong shape, device, layout or range, or a reference that is missing, not read, or too coarse.
    """
    objective = _objective(objective)
    reading = _reading(objective, tuple(columns))
    offsets = check_layout(labels, mask, cu_seqlens)
    check_integer("ignore_index", ignore_index)
    at_logits = shift_left(labels, mask, ignore_index, offsets) if shift else (labels, mask)
    scored = scored_tokens(*at_logits, ignore_index)
    form = _reference_form(reference, logits, labels, offsets)
    _check_reference(objective.name, reading.needs, form, reference)
    names = _statistics(reading.needs, form)
    tokens = {}
    if names:
        tokens = dict(
            token_stats(
                logits,
                at_logits[0],
                names,
                reference_logits=reference if form == "logits" and REFERENCE_STATISTICS.intersection(names) else None,
                mask=at_logits[1],
                ignore_index=ignore_index,
                temperature=temperature,
                softcap=softcap,
                scale=scale,
                k=k,
                inplace=inplace,
            )
        )
    if shift:  # back to where the labels are, in whose alignment the caller's columns come
        tokens = {name: value.roll(1, -1) for name, value in tokens.items()}
        scored = scored.roll(1, -1)
    if reference is not None and form == "tokens":
        tokens["ref_logp"] = torch.where(scored, reference.detach(), 0.0)
    sums = {"ref_logp": reference.detach()} if reference is not None and form == "responses" else {}
    batch = _Batch(tokens, sums, scored, offsets, reading.roles)
    arguments: dict[str, Any] = {need.argument: batch.column(need) for need in reading.needs}
    for role in reading.laid_out:
        arguments.update([batch.token_layout(role)])
    if offsets is not None:
        columns |= {name: batch.packed(columns[name], role) for name, role in reading.given_tokens}
    if groups is not None:
        arguments["groups"] = groups
    if reduction != "mean":
        arguments["reduction"] = reduction
    score: Score = objective(**columns, **arguments)
    return score


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
        ValueError: shapes that do not fit, or an objective that is not of pairs.
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


class _Need(NamedTuple):
    """A column that the objective reads and the rows give."""

    argument: str
    role: str | None
    level: str  # "token" or "response"
    name: str  # a statistic, or "length"


class _Reading(NamedTuple):
    """What an objective reads of a batch."""

    needs: tuple[_Need, ...]
    roles: tuple[str, ...]
    laid_out: tuple[str | None, ...]  # roles whose token columns want a mask or offsets
    given_tokens: tuple[tuple[str, str | None], ...]  # token columns of the caller's, and their roles


class _Batch:
    """Token statistics in the labels' alignment, cut into what each column of the objective wants."""

    def __init__(
        self,
        tokens: Mapping[str, Tensor],
        sums: Mapping[str, Tensor],
        scored: Tensor,
        offsets: Tensor | None,
        roles: Sequence[str],
    ) -> None:
        self.tokens = tokens
        self.sums = dict(sums)
        self.scored = scored
        self.offsets = offsets
        self.roles = roles
        self.responses = scored.shape[0] if offsets is None else offsets.shape[0] - 1
        if roles and self.responses % len(roles):
            raise ValueError(
                f"labels: expected as many responses of each role, {', then '.join(roles)}, got {self.responses} in all"
            )

    def column(self, need: _Need) -> Tensor:
        """The values of one column, in the objective's shape."""
        if need.level == "token":
            values = self.tokens[need.name]
            if self.offsets is None:
                return values[self._responses_of(need.role)]
            return self.packed(values.reshape(-1)[self._tokens_of(need.role)], need.role)
        if need.name not in self.sums:
            self.sums[need.name] = self._per_response(need.name)
        return self.sums[need.name][self._responses_of(need.role)]

    def token_layout(self, role: str | None) -> tuple[str, Tensor]:
        """Which tokens of a role are scored: its mask, or where the batch is packed its offsets among the scored."""
        prefix = f"{role}_" if role else ""
        if self.offsets is None:
            return f"{prefix}mask", self.scored[self._responses_of(role)]
        lengths = self._per_response("length")[self._responses_of(role)]
        return f"{prefix}cu_seqlens", torch.nn.functional.pad(lengths.cumsum(0), (1, 0))

    def packed(self, values: Tensor, role: str | None) -> Tensor:
        """The scored ones of a role's packed tokens."""
        return values.reshape(-1)[self.scored.reshape(-1)[self._tokens_of(role)]]

    def _per_response(self, name: str) -> Tensor:
        if name == "length":
            counted = self.scored.to(torch.float64)
            return sum_responses(counted, self.offsets).to(torch.int64)
        return sum_responses(self.tokens[name], self.offsets)

    def _responses_of(self, role: str | None) -> slice:
        if role is None:
            return slice(None)
        count = self.responses // len(self.roles)
        first = self.roles.index(role) * count
        return slice(first, first + count)

    def _tokens_of(self, role: str | None) -> slice:
        if role is None or self.offsets is None:
            return slice(None)
        responses = self._responses_of(role)
        return slice(int(self.offsets[responses.start]), int(self.offsets[responses.stop]))


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
    from prefuse import objectives

    return language.find(objective) if objective in language.names() else objectives.get(objective)


@lru_cache(maxsize=256)
def _reading(objective: Objective, given: tuple[str, ...]) -> _Reading:
    """What `objective` reads, where the caller gives the columns `given`."""
    kind, reads = _KINDS[objective.kind], objective.columns
    pairs = objective.kind == "pair"  # whose rows always hold both roles
    roles = tuple(dict.fromkeys(("chosen", "rejected", *objective.roles))) if pairs else ()
    needs, laid_out, given_tokens = [], [], []
    for role in roles or (None,):
        for level, names in (("token", STATISTICS), ("response", _PER_RESPONSE)):
            for name in names:
                argument = kind.argument(role, level, name)
                if argument in given or argument not in reads:
                    continue
                if reads[argument].level.startswith("token") == (level == "token"):
                    needs.append(_Need(argument, role, level, name))
        prefix, level = (f"{role}_", f"token of {role}") if role else ("", "token")
        if f"{prefix}mask" in reads and f"{prefix}mask" not in given:
            laid_out.append(role)
        given_tokens += [(name, role) for name in given if name in reads and reads[name].level == level]
    return _Reading(tuple(needs), roles, tuple(laid_out), tuple(given_tokens))


def _reference_form(reference: Tensor | None, logits: Tensor, labels: Tensor, offsets: Tensor | None) -> str | None:
    """Which of the three forms `reference` has, by its shape."""
    if reference is None:
        return None
    check_tensor("reference", reference, FLOATS, "a floating-point", like=labels)
    responses = labels.shape[0] if offsets is None else offsets.shape[0] - 1
    for form, shape in (("logits", logits.shape), ("tokens", labels.shape), ("responses", (responses,))):
        if tuple(reference.shape) == tuple(shape):
            return form
    raise ValueError(
        f"reference: expected the shape of logits, {tuple(logits.shape)}, of labels, {tuple(labels.shape)}, "
        f"or one value per response, ({responses},), got {tuple(reference.shape)}"
    )


def _check_reference(objective: str, needs: Sequence[_Need], form: str | None, reference: Tensor | None) -> None:
    wanting = [need for need in needs if need.name in REFERENCE_STATISTICS]
    if reference is not None and not wanting:
        raise ValueError(f"reference: given, but {objective} reads nothing of a reference model; leave it out")
    for need in wanting:
        if form is None:
            raise ValueError(f"reference: missing, and {objective} reads {need.argument}")
        if form != "logits" and need.name != "ref_logp":
            raise ValueError(f"reference: expected reference logits, from which {need.argument} is made, got {form}")
        if form == "responses" and need.level == "token":
            raise ValueError(f"reference: expected a value per token, as {need.argument} has, got one per response")


def _statistics(needs: Sequence[_Need], form: str | None) -> tuple[str, ...]:
    names = dict.fromkeys(need.name for need in needs if need.name != "length")
    return tuple(name for name in names if name != "ref_logp" or form == "logits")
