"""What an objective demands of a data set and of the models, known before anything is loaded."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from prefuse._backends.rows import REFERENCE_STATISTICS
from prefuse.language import Objective
from prefuse.losses.columns import reading

MISMATCHED = ("kl_logps", "ref_kl_logps")
"""Columns of point objectives that the trainer makes: log-probabilities of completions that answer other prompts."""

PAIRS, SINGLE, LISTS = "pairs", "single", "lists"
"""What one row of a data set holds: responses by role, one response, or several responses to one prompt."""


class Column(NamedTuple):
    """A column that the data must give."""

    name: str
    level: str


@dataclass(frozen=True)
class Requirements:
    """What an objective reads that is not made of the policy's logits.

    Attributes:
        objective: its name.
        kind: pair, point, group or token.
        roles: the responses of a pair, in the order of the batch; empty for other kinds.
        columns: what the data must give by name.
        reference: what is wanted of the reference model: None, its log-probability per response ("responses") or per
            token ("tokens"), or its hidden states ("hidden"), of which divergences are made.
        mismatched: whether completions of other prompts are scored as well.
        grouped: whether it looks at groups of responses.
        coupled: whether the loss of one item depends on others of the batch.
        compares_rows: whether it depends on more of them than how many tokens they have: a mean over the batch's tokens
            is well defined for one row, a mean reward to compare with is not.
        tokens: whether it reads columns with one value per token.
        totals: whether it has means over the tokens of the batch, or of some of them.
        token_metrics: which of its metrics are means over tokens.
    """

    objective: str
    kind: str
    roles: tuple[str, ...]
    columns: tuple[Column, ...]
    reference: str | None
    mismatched: bool
    grouped: bool
    coupled: bool
    compares_rows: bool
    tokens: bool
    totals: bool
    token_metrics: frozenset[str]


def requirements_of(objective: Objective) -> Requirements:
    """What `objective` demands."""
    read = reading(objective, ())
    made = {need.argument for need in read.needs}
    found = {name: info.level for name, info in objective.columns.items() if name not in made and not _is_layout(name)}
    mismatched = objective.kind == "point" and set(MISMATCHED) <= set(found)
    if mismatched:
        found = {name: level for name, level in found.items() if name not in MISMATCHED}
    wanting = [need for need in read.needs if need.name in REFERENCE_STATISTICS]
    reference = None
    if any(need.name != "ref_logp" for need in wanting):
        reference = "hidden"
    elif wanting:
        reference = "tokens" if any(need.level == "token" for need in wanting) else "responses"
    traced = objective._traced(None)
    return Requirements(
        objective.name,
        objective.kind,
        read.roles,
        tuple(Column(name, level) for name, level in found.items()),
        reference,
        mismatched,
        "groups" in objective.columns,
        traced.couples_groups(tuple(traced.columns)),
        traced.couples_groups(tuple(name for name in traced.columns if not name.endswith("lengths"))),
        bool(read.laid_out) or any(info.level.startswith("token") for info in objective.columns.values()),
        bool(traced.trace.totals),
        frozenset(name for name, value in traced.trace.records.items() if value.space.startswith("token")),
    )


def _is_layout(name: str) -> bool:
    return name == "groups" or name.endswith("mask")


@dataclass(frozen=True)
class Sources:
    """Where in a data set each thing comes from.

    Attributes:
        layout: `PAIRS`, `SINGLE` or `LISTS`.
        responses: the columns that hold responses.
        prompts: the prompt's column of each response column.
        columns: for each column that the objective reads: its name there, its level, and its name in the data set.
    """

    layout: str
    responses: tuple[str, ...]
    prompts: tuple[str, ...]
    columns: tuple[tuple[str, str, str], ...]


def find_sources(required: Requirements, names: Collection[str], dataset: str) -> Sources:
    """Finds what `required` names among the columns `names` of a data set, which errors call `dataset`.

    Raises:
        ValueError: something is missing; the message names it, its level, and what there is.
    """
    layout = _layout(required, names, dataset)
    responses = {PAIRS: required.roles, SINGLE: ("completion",), LISTS: ("completions",)}[layout]
    for response in responses:
        if response not in names and f"{response}_ids" not in names:
            raise _missing(required, response, "a response", names, dataset)
    prompts = tuple(
        own if (own := f"{response}_prompt") in names or f"{own}_ids" in names else "prompt" for response in responses
    )
    columns = []
    for name, level in required.columns:
        if level == "batch":
            raise ValueError(
                f"{dataset}: {required.objective} reads {name}, one value for the batch, and rows do not hold such; "
                "write it as a hyper-parameter of the objective"
            )
        source = next((option for option in _spellings(name, required, layout) if option in names), None)
        if source is None:
            raise _missing(required, name, f"one value per {level}", names, dataset)
        columns.append((name, level, source))
    return Sources(layout, responses, prompts, tuple(columns))


def _layout(required: Requirements, names: Collection[str], dataset: str) -> str:
    if required.kind == "pair":
        return PAIRS
    if "completions" in names or "completions_ids" in names:
        return LISTS
    if "completion" not in names and "completion_ids" not in names and "chosen" in names:
        raise ValueError(
            f"{dataset}: {required.objective} scores single responses, and these are pairs; "
            "trl.unpair_preference_dataset takes them apart"
        )
    if required.grouped:
        raise _missing(required, "completions", "the list of responses to a prompt", names, dataset)
    return SINGLE


def _spellings(name: str, required: Requirements, layout: str) -> list[str]:
    """The names a column may come under: ``chosen_score`` also as ``score_chosen``, ``score`` of a list ``scores``."""
    options = [name]
    for role in required.roles:
        if name.startswith(f"{role}_"):
            options.append(f"{name.removeprefix(f'{role}_')}_{role}")
    return [*options, f"{name}s"] if layout == LISTS else options


def _missing(required: Requirements, name: str, what: str, names: Collection[str], dataset: str) -> ValueError:
    return ValueError(
        f"{dataset}: {required.objective} reads {name} ({what}), and there is no such column among {', '.join(names)}"
    )
