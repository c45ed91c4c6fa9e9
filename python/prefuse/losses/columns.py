"""Which columns of an objective the rows give, and how token statistics are cut into them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefuse._arguments.checks import FLOATS, INTEGERS, check_tensor
from prefuse._backends.rows import REFERENCE_STATISTICS, STATISTICS
from prefuse._statistics.responses import sum_responses
from prefuse.scoring.objective import Objective
from prefuse.scoring.settings import Form, form_of
from prefuse.tracing.kinds import GROUP, PAIR, POINT, TOKEN

_KINDS = {kind.name: kind for kind in (PAIR, POINT, GROUP, TOKEN)}
_PER_RESPONSE = ("logp", "ref_logp", "length")
GRADIENT = "gradient"
"""Among statistics that are only looked at: d(loss)/d(logp) of each token."""


class Need(NamedTuple):
    """A column that the objective reads and the rows give."""

    argument: str
    role: str | None
    level: str  # "token" or "response"
    name: str  # a statistic, or "length"


class Reading(NamedTuple):
    """What an objective reads of a batch."""

    needs: tuple[Need, ...]
    roles: tuple[str, ...]
    laid_out: tuple[str | None, ...]  # roles whose token columns want a mask or offsets
    given_tokens: tuple[tuple[str, str | None], ...]  # token columns of the caller's, and their roles


class Batch:
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

    def column(self, need: Need) -> Tensor:
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


@lru_cache(maxsize=256)
def reading(objective: Objective, given: tuple[str, ...]) -> Reading:
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
                    needs.append(Need(argument, role, level, name))
        prefix, level = (f"{role}_", f"token of {role}") if role else ("", "token")
        if f"{prefix}mask" in reads and f"{prefix}mask" not in given:
            laid_out.append(role)
        given_tokens += [(name, role) for name in given if name in reads and reads[name].level == level]
    return Reading(tuple(needs), roles, tuple(laid_out), tuple(given_tokens))


def reference_form(
    reference: Tensor | None, rows: str, shape: tuple[int, ...], labels: Tensor, offsets: Tensor | None
) -> str | None:
    """Which of the three forms `reference` has, by its shape: `rows` (what is of `shape`), tokens, or responses."""
    if reference is None:
        return None
    check_tensor("reference", reference, FLOATS, "a floating-point", like=labels)
    responses = labels.shape[0] if offsets is None else offsets.shape[0] - 1
    for form, expected in ((rows, shape), ("tokens", labels.shape), ("responses", (responses,))):
        if tuple(reference.shape) == tuple(expected):
            return form
    raise ValueError(
        f"reference: expected the shape of {rows}, {shape}, of labels, {tuple(labels.shape)}, "
        f"or one value per response, ({responses},), got {tuple(reference.shape)}"
    )


def check_reference(objective: str, needs: Sequence[Need], form: str | None, rows: str) -> None:
    """Refuses a reference that is not read, or not given, or too coarse for what is made of it."""
    wanting = [need for need in needs if need.name in REFERENCE_STATISTICS]
    if form is not None and not wanting:
        raise ValueError(f"reference: given, but {objective} reads nothing of a reference model; leave it out")
    for need in wanting:
        if form is None:
            raise ValueError(f"reference: missing, and {objective} reads {need.argument}")
        if form != rows and need.name != "ref_logp":
            raise ValueError(f"reference: expected reference {rows}, from which {need.argument} is made, got {form}")
        if form == "responses" and need.level == "token":
            raise ValueError(f"reference: expected a value per token, as {need.argument} has, got one per response")


def check_beside(names: Sequence[str], made: bool) -> tuple[str, ...]:
    """The statistics that are only looked at; those of the reference only where it is `made` in the rows.

    Raises:
        TypeError, ValueError: not a sequence of names, a name that means nothing, or a reference that is missing.
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise TypeError(f"statistics: expected a sequence of names, got {names!r}")
    for name in names:
        if name not in (*STATISTICS, GRADIENT):
            raise ValueError(f"statistics: expected names out of {', '.join((*STATISTICS, GRADIENT))}, got {name!r}")
        if name in REFERENCE_STATISTICS and not made:
            raise ValueError(f"statistics: {name} needs a reference in the form that log-probabilities are made from")
    return tuple(dict.fromkeys(names))


def row_statistics(needs: Sequence[Need], beside: Sequence[str], made: bool) -> tuple[str, ...]:
    """The statistics that the rows must give; those of the reference only where it is `made` there."""
    names = dict.fromkeys([*(need.name for need in needs if need.name != "length"), *beside])
    return tuple(name for name in names if name != GRADIENT and (name != "ref_logp" or made))


def check_exchangeable(objective: Objective, read: Reading) -> None:
    """Refuses what cannot be put together from the processes of `data_group`.

    Raises:
        ValueError: the objective reads token columns, or has a hyper-parameter with one value per item.
    """
    tokens = [need.argument for need in read.needs if need.level == "token"] + [name for name, _ in read.given_tokens]
    if tokens or read.laid_out:
        what = ", ".join(tokens) or "how tokens are laid out"
        raise ValueError(
            f"data_group: {objective.name} reads {what}, and only columns with one value per response or pair are "
            "exchanged between processes; leave data_group out, so that each process scores its own batch"
        )
    for name, value in objective.parameters.items():
        if form_of(value) is Form.ITEMS:
            raise ValueError(
                f"data_group: {objective.name} has one value of {name} per item, which processes do not exchange; "
                "give a number, or write it as a column"
            )


def check_item_column(name: str, column: Any, level: str, items: int, like: Tensor) -> Tensor:
    """A column that can be exchanged between processes: one value per response, or per pair.

    Raises:
        TypeError, ValueError: it is not; the message names it, what came and what was expected.
    """
    if level not in ("response", "pair"):
        raise ValueError(f"{name}: expected a value per response or pair with data_group, got one per {level}")
    check_tensor(name, column, (*FLOATS, *INTEGERS, torch.bool), "a float, integer or bool", like=like)
    if tuple(column.shape) != (items,):
        raise ValueError(f"{name}: expected shape ({items},) with data_group, got {tuple(column.shape)}")
    return column  # type: ignore[no-any-return]
