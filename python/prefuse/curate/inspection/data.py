"""Preference data of every kind as flat lists of responses, so that each check is written once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np

from prefuse.curate._rows import Floats, Indices, table
from prefuse.curate.inspection.files import rows_of

COLUMNS = (
    *("prompt", "chosen", "rejected", "completion", "completions", "label", "scores"),
    *("tools", "chat_template_kwargs"),
)
EXPECTED = (
    "prompt, chosen and rejected (pairs; the prompt may be what both begin with), "
    "prompt, completion and label (labelled responses), or prompt and completions (lists)"
)
_TRUE, _FALSE = ("true", "1", "1.0"), ("false", "0", "0.0")


@dataclass(frozen=True)
class Data:
    """Rows of one kind; response i belongs to row `rows[i]`.

    Attributes:
        kind: "pairs", "labelled" or "lists".
        messages: whether prompts and responses are lists of messages rather than text.
        prompts: one per row; None where it is missing.
        responses: all of them; None where one is missing.
        rows: the row of each response.
        roles: by name ("chosen", "rejected", "completion", …), which responses have it.
        scores: one per response (labels as 1 and 0, chosen 1 and rejected 0); NaN without.
        template_options: one per row, what the chat template is given beside messages; empty where no row has any.
    """

    kind: str
    messages: bool
    prompts: list[Any]
    responses: list[Any]
    rows: Indices
    roles: Mapping[str, Indices]
    scores: Floats
    template_options: Sequence[Mapping[str, Any]] = ()

    def __len__(self) -> int:
        return len(self.prompts)

    @cached_property
    def texts(self) -> list[str]:
        """What is to be read of each response: the content of its messages, one after the other."""
        return list(map(_visible, self.responses)) if self.messages else [text or "" for text in self.responses]

    @cached_property
    def prompt_texts(self) -> list[str]:
        """The same of prompts."""
        return list(map(_visible, self.prompts)) if self.messages else [text or "" for text in self.prompts]

    @cached_property
    def keys(self) -> list[Any]:
        """Of each response what is equal where responses are."""
        return list(map(_key, self.responses)) if self.messages else self.responses

    @cached_property
    def prompt_keys(self) -> list[Any]:
        """The same of prompts."""
        return list(map(_key, self.prompts)) if self.messages else self.prompts

    @cached_property
    def lengths(self) -> Indices:
        """Characters of each response."""
        return np.fromiter(map(len, self.texts), np.int64, len(self.texts))

    @cached_property
    def prompt_lengths(self) -> Indices:
        """Characters of each prompt."""
        return np.fromiter(map(len, self.prompt_texts), np.int64, len(self.prompts))

    @cached_property
    def bounds(self) -> Indices:
        """Where the responses of each row begin in `by_row`, and where the last end."""
        return np.concatenate([[0], np.cumsum(np.bincount(self.rows, minlength=len(self)))]).astype(np.int64)

    @cached_property
    def by_row(self) -> Indices:
        """All responses, row by row."""
        return np.argsort(self.rows, kind="stable")

    def of_row(self, row: int) -> list[int]:
        """The responses of a row, chosen before rejected."""
        return cast("list[int]", self.by_row[self.bounds[row] : self.bounds[row + 1]].tolist())

    def preferred(self) -> tuple[Indices, Indices]:
        """(better, worse): chosen and rejected; of lists with scores the best and the worst, where they differ."""
        if self.kind == "pairs":
            return self.roles["chosen"], self.roles["rejected"]
        order = np.lexsort([self.scores, self.rows])
        first, last = self.bounds[:-1], self.bounds[1:] - 1
        some = last >= first
        worse, better = order[first[some]], order[last[some]]
        apart = self.scores[better] > self.scores[worse]
        return better[apart], worse[apart]


def read(source: Any, columns: Mapping[str, str | None] | None) -> Data:
    """Data of any kind: a file, a list of dicts, columns by name, a `pandas.DataFrame` or a `datasets.Dataset`.

    Raises:
        TypeError: no rows at all, or a value of another type than a column has.
        ValueError: the columns are of no kind, there is no row, or a file that cannot be read.
    """
    names = _names(columns)
    given = _columns(rows_of(source) if isinstance(source, (str, Path)) else source)
    there = {name: column for name, column in names.items() if column is not None and column in given.names}
    kind = _kind(there, given.names, names)
    if not given.count:
        raise ValueError("data: expected at least one row, got none")
    values = {name: given.values(column) for name, column in there.items()}
    made = {"pairs": _pairs, "labelled": _labelled, "lists": _lists}[kind](values, there)
    return replace(made, template_options=_template_options(values, there))


def _template_options(values: Mapping[str, list[Any]], names: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """What rows give the chat template: their tools, and keyword arguments, as trainers hand them on."""
    tools = _each_checked(values, names, "tools", _tools)
    options = _each_checked(values, names, "chat_template_kwargs", _options)
    if not (tools or options):
        return ()
    count = len(tools or options)
    given = zip(options or [{}] * count, tools or [None] * count, strict=True)
    return [{**own, "tools": row_tools} if row_tools else own for own, row_tools in given]


def _each_checked(
    values: Mapping[str, list[Any]], names: Mapping[str, Any], name: str, check: Callable[[Any, int, str], Any]
) -> list[Any]:
    return [check(value, row, names[name]) for row, value in enumerate(values.get(name, ()))]


def _tools(value: Any, row: int, name: str) -> list[Any] | None:
    """A list of tools' JSON schemas, or such as JSON text; None without any."""
    expected = "a list of tools, each a dict, or such as JSON text"
    found = value
    if isinstance(value, str):
        try:
            found = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            _wrong_type(name, row, expected, value)
    if _is_missing(found):
        return None
    found = found.tolist() if isinstance(found, np.ndarray) else found
    if not isinstance(found, (list, tuple)) or not all(isinstance(tool, dict) for tool in found):
        _wrong_type(name, row, expected, value)
    return list(found)


def _options(value: Any, row: int, name: str) -> dict[str, Any]:
    if _is_missing(value):
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        _wrong_type(name, row, "a dict of the chat template's arguments by name", value)
    if taken := next((key for key in _OWN_OPTIONS if key in value), None):
        raise ValueError(f"data: {name}, row {row}: got {taken!r}, which is not the row's to say")
    return {key: own for key, own in value.items() if own is not None}  # as a column of dicts fills up what rows lack


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value) or type(value).__name__ == "NAType"


_OWN_OPTIONS = ("conversation", "chat_template", "tokenize", "add_generation_prompt")
"""Arguments of `apply_chat_template` that whoever calls it sets."""


@dataclass(frozen=True)
class _Columns:
    names: Sequence[str]
    count: int
    values: Callable[[str], list[Any]]


def _columns(rows: Any) -> _Columns:
    if isinstance(rows, Mapping) and all(isinstance(column, (list, tuple, np.ndarray)) for column in rows.values()):
        counts = {len(column) for column in rows.values()}
        if len(counts) > 1:
            raise ValueError(f"data: expected columns of equal lengths, got {', '.join(map(str, sorted(counts)))}")
        return _Columns(list(rows), max(counts, default=0), lambda name: list(rows[name]))
    if isinstance(rows, Mapping):  # what a list of dicts is one of, or a DatasetDict
        splits = [name for name, part in rows.items() if hasattr(part, "column_names")]
        hint = f"; pass one of its splits: {', '.join(splits)}" if splits else "; pass a list of such"
        raise TypeError(f"data: expected rows, got {type(rows).__name__}{hint}")
    given = table(rows, "data")
    return _Columns(list(map(str, given.names)), len(given), given.values)


def _names(columns: Mapping[str, str | None] | None) -> dict[str, str | None]:
    for name in columns or ():
        if name not in COLUMNS:
            raise ValueError(f"columns: expected names among {', '.join(COLUMNS)}, got {name!r}")
    return {**dict(zip(COLUMNS, COLUMNS, strict=True)), **(columns or {})}


def _kind(there: Mapping[str, Any], found: Sequence[str], names: Mapping[str, str | None]) -> str:
    for kind, needed in (
        ("pairs", ("chosen", "rejected")),
        ("lists", ("prompt", "completions")),
        ("labelled", ("prompt", "completion", "label")),
    ):
        if all(name in there for name in needed):
            return kind
    hint = "; other names go as columns={'prompt': 'question', …}"
    if "completion" in there and "prompt" in there:
        hint = "; prompt and completion alone tell no preference: label is missing"
    missing = [f"'{column}'" for column in names.values() if column not in (*COLUMNS, *found, None)]
    hint = f"; there is no {', '.join(missing)}" if missing else hint
    raise ValueError(f"data: expected the columns {EXPECTED}; got {', '.join(found) or 'none'}{hint}")


def _pairs(values: Mapping[str, list[Any]], names: Mapping[str, Any]) -> Data:
    count = len(values["chosen"])
    sides = {name: _contents(values[name], names[name]) for name in ("chosen", "rejected")}
    messages = _same_kind({names[name]: content for name, content in sides.items()})
    chosen, rejected = (content for content, _ in sides.values())
    if "prompt" in values:
        prompts, kind = _contents(values["prompt"], names["prompt"])
        if messages and kind == "text":
            raise ValueError(
                f"data: {names['prompt']} is text and {names['chosen']} are messages; expected both to be text or both "
                "messages. If the messages begin with the prompt, leave the column out: columns={'prompt': None}"
            )
        contents = {names["prompt"]: (prompts, kind), **{names[name]: side for name, side in sides.items()}}
        messages = _same_kind(contents)
    else:
        prompts, chosen, rejected = _implicit(chosen, rejected)
    at = np.arange(count)
    return Data(
        "pairs",
        messages,
        prompts,
        chosen + rejected,
        np.concatenate([at, at]),
        {"chosen": at, "rejected": at + count},
        np.repeat([1.0, 0.0], count),
    )


def _labelled(values: Mapping[str, list[Any]], names: Mapping[str, Any]) -> Data:
    prompts, completions = (_contents(values[name], names[name]) for name in ("prompt", "completion"))
    messages = _same_kind({names["prompt"]: prompts, names["completion"]: completions})
    labels = np.array([_label(row, value, names["label"]) for row, value in enumerate(values["label"])], np.float64)
    at = np.arange(len(labels))
    roles = {"desirable": at[labels == 1.0], "undesirable": at[labels == 0.0]}
    return Data("labelled", messages, prompts[0], completions[0], at, roles, labels)


def _lists(values: Mapping[str, list[Any]], names: Mapping[str, Any]) -> Data:
    prompts = _contents(values["prompt"], names["prompt"])
    for row, found in enumerate(values["completions"]):
        if isinstance(found, np.ndarray):
            values["completions"][row] = found.tolist()
        elif not isinstance(found, (list, tuple)) and found is not None:
            _wrong_type(names["completions"], row, "a list of responses", found)
    counts = [len(found or ()) for found in values["completions"]]
    flat = _contents([one for found in values["completions"] for one in found or ()], names["completions"])
    messages = _same_kind({names["prompt"]: prompts, names["completions"]: flat})
    rows = np.repeat(np.arange(len(counts)), counts)
    scores = np.full(len(rows), np.nan)
    if "scores" in values:
        scores = _scores(values["scores"], counts, names["scores"])
    return Data("lists", messages, prompts[0], flat[0], rows, {"completions": np.arange(len(rows))}, scores)


def _scores(given: list[Any], counts: list[int], name: str) -> Floats:
    for row, (found, count) in enumerate(zip(given, counts, strict=True)):
        if not isinstance(found, (list, tuple, np.ndarray)) or len(found) != count:
            _wrong_type(name, row, f"a list of {count} numbers, one per response", found)
        for value in found:
            if not (isinstance(value, (int, float, np.number)) and np.isfinite(value)):
                _wrong_type(name, row, "finite numbers", value)
    return np.array([float(value) for found in given for value in found], np.float64)


def _label(row: int, value: Any, name: str) -> float:
    word = str(value).lower()
    if word in _TRUE or word in _FALSE:
        return float(word in _TRUE)
    _wrong_type(name, row, "True or False", value)


def _contents(values: Sequence[Any], name: str) -> tuple[list[Any], str]:
    """A column's values, and "text", "messages" or, where all are missing, "none"."""
    if set(map(type, values)) <= {str}:
        _no_written_messages(values, name)
        return list(values), "text"
    contents = [_content(value, row, name) for row, value in enumerate(values)]
    kinds = {type(content) for content in contents} - {type(None)}
    if len(kinds) > 1:
        text = next(row for row, content in enumerate(contents) if isinstance(content, str))
        other = next(row for row, content in enumerate(contents) if isinstance(content, list))
        raise TypeError(
            f"data: {name}: expected text or messages in all rows, got text in row {text}, messages in {other}"
        )
    return contents, "none" if not kinds else "text" if kinds == {str} else "messages"


def _no_written_messages(values: Sequence[str], name: str) -> None:
    """Messages as they print: what CSV makes of lists."""
    if values and all(value.startswith(("[{'", '[{"')) and "role" in value[:80] for value in values[:8]):
        raise ValueError(
            f"data: {name}: got messages written out as text, {values[0][:40]!r}…; expected a list of messages, for "
            "which a file must be JSON lines or Parquet, not CSV"
        )


def _content(value: Any, row: int, name: str) -> Any:
    if value is None or isinstance(value, str):
        return value
    if _is_missing(value):  # as pandas writes it
        return None
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, dict) and "role" in value:
        value = [value]
    if not isinstance(value, (list, tuple)):
        _wrong_type(name, row, "text or a list of messages", value)
    return [_message(message, row, name) for message in value]


def _message(message: Any, row: int, name: str) -> dict[str, Any]:
    if _is_plain(message):  # as nearly all are
        return message  # type: ignore[no-any-return]
    if not isinstance(message, dict) or "role" not in message:
        hint = "; from and value must be renamed" if isinstance(message, dict) and "from" in message else ""
        got = f"a dict with {', '.join(map(str, message))}" if isinstance(message, dict) else _shown(message)
        raise TypeError(f"data: {name}, row {row}: expected messages with role and content, got {got}{hint}")
    if not isinstance(message["role"], str):
        _wrong_type(name, row, "a message's role to be text", message["role"])
    made = {key: value for key, value in message.items() if value is not None or key == "content"}
    if isinstance(content := made.get("content"), np.ndarray):
        made["content"] = content = content.tolist()
    if not (content is None or isinstance(content, (str, list))):
        _wrong_type(name, row, "a message's content to be text or a list of parts", content)
    for part in content if isinstance(content, list) else ():
        if not isinstance(part, (str, dict)):
            _wrong_type(name, row, "parts of a message's content to be text or dicts with a type", part)
    return made


def _is_plain(message: Any) -> bool:
    """Whether a message is a role and text, and nothing else."""
    if not isinstance(message, dict) or len(message) != 2:
        return False
    return isinstance(message.get("role"), str) and isinstance(message.get("content"), str)


def _same_kind(columns: Mapping[str, tuple[list[Any], str]]) -> bool:
    """Whether all are messages; ValueError where some are and others text."""
    kinds = {name: kind for name, (_, kind) in columns.items() if kind != "none"}
    if len(set(kinds.values())) > 1:
        got = ", ".join(f"{name} is {kind}" for name, kind in kinds.items())
        raise ValueError(f"data: expected all columns to be text or all to be messages; {got}")
    return "messages" in kinds.values()


def _implicit(chosen: list[Any], rejected: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Prompts are what both responses begin with; something is left of each."""
    prompts: list[Any] = []
    rest: tuple[list[Any], list[Any]] = ([], [])
    for pair in zip(chosen, rejected, strict=True):
        if pair[0] is None or pair[1] is None:
            prompts.append(None)
            shared = 0
        else:
            shared = common(*pair)
            prompts.append(pair[0][:shared])
        for side, content in zip(rest, pair, strict=True):
            side.append(content if content is None else content[shared:])
    return prompts, *rest


def common(first: Any, second: Any) -> int:
    """How much of the two is prompt: all they begin with alike, less one where nothing would remain.

    A blank before the place where texts part belongs to the responses, as tokens begin with it.
    """
    low, high = 0, max(0, min(len(first), len(second)) - 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[low:middle] == second[low:middle] else (low, middle - 1)
    if low and isinstance(first, str) and first[low - 1] == " ":
        low -= 1
    if isinstance(first, list):  # an answer that both begin with is no prompt
        while low and first[low - 1].get("role") == "assistant":
            low -= 1
    return low


def _visible(messages: Any) -> str:
    return "\n".join(filter(None, map(content_of, messages or ())))


def content_of(message: Mapping[str, Any]) -> str:
    """What is to be read of one message; calls of tools as they print, an image as its kind."""
    content = message.get("content")
    if len(message) == 2 and isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part if isinstance(part, str) else part.get("text") or f"<{part.get('type')}>" for part in content]
        content = "".join(map(str, parts))
    calls = message.get("tool_calls")
    return f"{content or ''}{calls}" if calls else content or ""


def _key(messages: Any) -> Any:
    return None if messages is None else tuple((message.get("role"), content_of(message)) for message in messages)


def _wrong_type(name: str, row: int, expected: str, got: Any) -> NoReturn:
    raise TypeError(f"data: {name}, row {row}: expected {expected}, got {_shown(got)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:40] + '…'}"
