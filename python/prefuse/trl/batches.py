"""From tokenised rows to a batch: responses of any number to a row, and the objective's columns beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prefuse.trl.requirements import LISTS, PAIRS, Sources
from prefuse.trl.rows import reference_columns


class Response(NamedTuple):
    """One response of a batch with its prompt, cut to length.

    Attributes:
        ids: tokens of prompt and response.
        scored: 1 for those of the response.
        first: which of the response's tokens is the first that was kept.
        length: of the whole response.
    """

    ids: list[int]
    scored: list[int]
    first: int
    length: int


@dataclass
class PreferenceCollator:
    """Makes batches of tokenised rows.

    For pairs the responses come role by role, chosen first; otherwise in the order of the rows.

    Attributes:
        sources: what is where in the rows.
        pad_token_id: fills up.
        max_length: tokens of prompt and response together; None: any.
        truncation_mode: which end of longer ones is kept: "keep_start" or "keep_end".
        pad_to_multiple_of: of the padded length; None: 1.
        packed: responses lie end to end instead of being padded.
        mismatched: also make prompts with the completion of the row before, in lists with its responses in turn.
        precomputed: also read the reference's log-probabilities, where rows have them.

    A batch has ``input_ids`` and ``completion_mask``, beside them ``attention_mask``, or packed ``position_ids`` and
    ``cu_seqlens`` [R + 1]; ``columns`` by argument of the objective, ``groups`` [R] in lists, ``reference`` [R], and
    ``mismatched``, a batch of its own; a batch of one row takes the completion of the last row of the batch before, and
    has None where there is none.

    Raises:
        ValueError: an unknown `truncation_mode`; a value is missing or there are too many or too few; the message names
            the column.
    """

    sources: Sources
    pad_token_id: int
    max_length: int | None = None
    truncation_mode: str = "keep_start"
    pad_to_multiple_of: int | None = None
    packed: bool = False
    mismatched: bool = False
    precomputed: bool = False
    _before: list[tuple[list[int], list[int]]] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.truncation_mode not in ("keep_start", "keep_end"):
            raise ValueError(
                f"Unsupported truncation mode: {self.truncation_mode}, expected 'keep_start' or 'keep_end'"
            )

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A batch of `rows`."""
        responses = [self._cut(prompt, ids) for prompt, ids in self._pieces(rows)]
        batch = self._laid_out(responses)
        batch["columns"] = {
            name: self._column(name, level, [_given(row, source) for row in rows], responses, batch)
            for name, level, source in self.sources.columns
        }
        if self.sources.layout == LISTS:
            counts = torch.tensor([len(row["completions_ids"]) for row in rows])
            batch["groups"] = torch.arange(len(rows)).repeat_interleave(counts)
        references = reference_columns(self.sources)
        if self.precomputed and set(references) <= rows[0].keys():
            values = [row[name] for name in references for row in rows]
            batch["reference"] = torch.tensor(_flat(values) if self.sources.layout == LISTS else values)
        if self.mismatched:
            batch["mismatched"] = self._mismatched(rows)
        return batch

    def _mismatched(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        """Each prompt with the completion of the row before; None where there is no row but its own."""
        pieces = [self._pieces([row]) for row in rows]
        # The completion of the only row of a batch is its own answer; that of the batch before is not.
        before, self._before = (self._before if len(rows) == 1 else pieces[-1]), pieces[-1]
        if before is None or (before == pieces[-1] and len(rows) == 1):
            return None
        others = []
        for row, other in zip(pieces, [before, *pieces[:-1]], strict=True):
            others += [self._cut(prompt, other[i % len(other)][1]) for i, (prompt, _) in enumerate(row)]
        return self._laid_out(others)

    def _pieces(self, rows: Sequence[dict[str, Any]]) -> list[tuple[list[int], list[int]]]:
        """Prompt and response of everything that is scored, in order."""
        if self.sources.layout == LISTS:
            return [(row["prompt_ids"], ids) for row in rows for ids in row["completions_ids"]]
        both = zip(self.sources.prompts, self.sources.responses, strict=True)
        return [(row[f"{prompt}_ids"], row[f"{response}_ids"]) for prompt, response in both for row in rows]

    def _cut(self, prompt: list[int], response: list[int]) -> Response:
        length = len(prompt) + len(response)
        kept = length if self.max_length is None else min(length, self.max_length)
        first = 0 if self.truncation_mode == "keep_start" else length - kept
        part = slice(first, first + kept)
        ids, scored = [*prompt, *response], [0] * len(prompt) + [1] * len(response)
        return Response(ids[part], scored[part], max(first - len(prompt), 0), len(response))

    def _laid_out(self, responses: Sequence[Response]) -> dict[str, Any]:
        if self.packed:
            lengths = torch.tensor([len(response.ids) for response in responses])
            return {
                "input_ids": torch.tensor([_flat(response.ids for response in responses)]),
                "completion_mask": torch.tensor([_flat(response.scored for response in responses)]),
                "position_ids": torch.cat([torch.arange(int(length)) for length in lengths])[None],
                "cu_seqlens": torch.nn.functional.pad(lengths.cumsum(0), (1, 0)),
            }
        return {
            "input_ids": self._padded([response.ids for response in responses], self.pad_token_id),
            "attention_mask": self._padded([[1] * len(response.ids) for response in responses], 0),
            "completion_mask": self._padded([response.scored for response in responses], 0),
        }

    def _padded(self, rows: Sequence[list[Any]], filler: Any, length: int | None = None) -> Tensor:
        if length is None:
            step = self.pad_to_multiple_of or 1
            length = -(-max(map(len, rows)) // step) * step
        return torch.tensor([row + [filler] * (length - len(row)) for row in rows])

    def _column(
        self, name: str, level: str, values: list[Any], responses: Sequence[Response], batch: dict[str, Any]
    ) -> Tensor:
        if level.startswith("token"):
            return self._token_column(name, level, values, responses, batch["input_ids"].shape[-1])
        if self.sources.layout == LISTS and level == "response":
            self._check_lists(name, values, responses)
            values = _flat(values)
        elif level == "(i, j)":
            values = _flat(line for value in values for line in value)
        return _numbers(name, level, values)

    def _check_lists(self, name: str, values: list[Any], responses: Sequence[Response]) -> None:
        if any(not isinstance(value, list) for value in values) or sum(map(len, values)) != len(responses):
            raise ValueError(f"{name}: expected one value per response, a list in each row as long as completions")

    def _token_column(
        self, name: str, level: str, values: list[Any], responses: Sequence[Response], length: int
    ) -> Tensor:
        """One value per token of the responses, 0 for the prompts': [R, T], or packed [N]."""
        role = level.removeprefix("token").removeprefix(" of ")
        if role:  # those of one role, whose responses lie together
            first = self.sources.responses.index(role) * len(values)
            responses = responses[first : first + len(values)]
        elif self.sources.layout == LISTS:
            values = [tokens for value in values for tokens in value]
        laid = []
        for given, response in zip(values, responses, strict=True):
            if len(given) != response.length:
                raise ValueError(f"{name}: expected one value per token, {response.length}, got {len(given)}")
            own = iter(given[response.first :])
            laid.append([float(next(own)) if scored else 0.0 for scored in response.scored])
        return torch.tensor(_flat(laid)) if self.packed else self._padded(laid, 0.0, length)


def column_of(name: str, level: str, source: str, rows: Sequence[dict[str, Any]]) -> Tensor:
    """A column with one value per row."""
    return _numbers(name, level, [_given(row, source) for row in rows])


def _numbers(name: str, level: str, values: list[Any]) -> Tensor:
    try:
        return torch.tensor(values)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name}: expected one number per {level}, got {values[0]!r}") from None


def _given(row: dict[str, Any], source: str) -> Any:
    value = row[source]
    if value is None:
        raise ValueError(f"{source}: a row has no value in this column")
    return value


def _flat(parts: Any) -> list[Any]:
    return [value for part in parts for value in part]


def labels_of(batch: Mapping[str, Any]) -> Tensor:
    """The labels of a batch, aligned with its tokens: −100 where none is scored."""
    labels: Tensor = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    return labels


def joined(*batches: Mapping[str, Any]) -> dict[str, Tensor]:
    """The rows of several padded batches as those of one, padded on the right to one length; what the model takes."""
    length = max(batch["input_ids"].shape[1] for batch in batches)

    def rows(name: str) -> Tensor:
        return torch.cat([nn.functional.pad(each[name], (0, length - each[name].shape[1])) for each in batches])

    return {name: rows(name) for name in ("input_ids", "attention_mask", "completion_mask")}


def scored_of(labels: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Which labels are scored, in their own alignment: not the first of a response, which nothing predicts."""
    scored = labels != -100
    if cu_seqlens is None:
        scored[:, 0] = False
    else:
        starts = cu_seqlens[:-1]
        scored[0, starts[starts < labels.shape[-1]]] = False
    return scored


def roles_of(sources: Sources, responses: int) -> dict[str, slice]:
    """Which rows of a batch of pairs each role has."""
    if sources.layout != PAIRS:
        return {}
    count = responses // len(sources.responses)
    return {role: slice(i * count, (i + 1) * count) for i, role in enumerate(sources.responses)}


def responses_in(batch: Mapping[str, Any]) -> int:
    """The number of responses of a batch, padded or packed."""
    offsets = batch.get("cu_seqlens")
    return len(batch["input_ids"]) if offsets is None else len(offsets) - 1
