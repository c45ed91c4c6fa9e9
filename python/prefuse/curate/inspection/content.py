"""Checks that need no tokenizer: of all rows, by what is written there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from prefuse.curate._rows import Floats, Indices
from prefuse.curate.inspection.data import Data, content_of
from prefuse.curate.inspection.lengths import bias, capped
from prefuse.curate.inspection.results import EXAMPLES, Check, Example, example

_TURNS = ("\n\nHuman:", "\n\nAssistant:", "\nUser:", "<|im_start|>", "<|start_header_id|>", "[INST]")
"""How text shows that another turn begins."""


def duplicate(data: Data) -> tuple[Check, Check]:
    """The checks duplicate and contradiction: rows that repeat an earlier one, and rows that say its opposite."""
    seen: dict[Any, int] = {}
    repeats: list[tuple[int, int]] = []
    opposite: list[tuple[int, int]] = []
    keys, opposites = _rows_and_opposites(data)
    for row, (key, other) in enumerate(zip(keys, opposites, strict=True)):
        if (first := seen.setdefault(key, row)) != row:
            repeats.append((row, first))
        if other is not None and (first := seen.get(other, row)) != row:
            opposite.append((row, first))
    what = "chosen and rejected the other way round" if data.kind == "pairs" else "with another label"
    applies = data.kind != "lists"
    return (
        Check(
            "duplicate",
            len(repeats),
            len(data),
            f"rows that repeat an earlier row: {len(repeats)}" if repeats else "no row is there twice",
            "keep one of each: what is there twice is learnt twice, and may be in training and evaluation"
            * bool(repeats),
            tuple(_repeat(data, row, f"as row {first}") for row, first in repeats[:EXAMPLES]),
            {"different prompts": float(len(set(data.prompt_keys)))},
        ),
        Check(
            "contradiction",
            len(opposite),
            len(data) * applies,
            f"rows that repeat an earlier row {what}: {len(opposite)}"
            if opposite
            else "no row says the opposite of another"
            if applies
            else "lists have no opposite",
            "leave out both, or keep what most annotators said: such rows pull in both directions" * bool(opposite),
            tuple(_repeat(data, row, f"opposite of row {first}") for row, first in opposite[:EXAMPLES]),
        ),
    )


def _rows_and_opposites(data: Data) -> tuple[Iterable[Any], Iterable[Any]]:
    """What equal rows have equal, and the same of a row that would say the opposite (None: there is no such row)."""
    prompts, keys = data.prompt_keys, data.keys
    if data.kind == "pairs":
        chosen, rejected = keys[: len(data)], keys[len(data) :]
        # responses that are equal have no opposite: they are their own
        swapped = (
            None if good == bad else (prompt, bad, good)
            for prompt, good, bad in zip(prompts, chosen, rejected, strict=True)
        )
        return zip(prompts, chosen, rejected, strict=True), swapped
    if data.kind == "labelled":
        labels = data.scores.tolist()
        other = ((prompt, key, 1.0 - label) for prompt, key, label in zip(prompts, keys, labels, strict=True))
        return zip(prompts, keys, labels, strict=True), other
    lists = [tuple(keys[index] for index in data.of_row(row)) for row in range(len(data))]
    return zip(prompts, lists, strict=True), (None for _ in prompts)


def _repeat(data: Data, row: int, what: str) -> Example:
    first = next(iter(data.of_row(row)), None)
    return Example(
        row, f"{what}: {example(row, data.prompt_texts[row], '' if first is None else data.texts[first]).text}"
    )


def identical(data: Data) -> Check:
    """Pairs and lists whose responses are all the same, blanks around them aside."""
    if data.kind == "labelled":
        return Check("identical", 0, 0, "rows have one response")
    if data.kind == "pairs":
        pairs = zip(data.keys[: len(data)], data.keys[len(data) :], strict=True)
        found = [row for row, (good, bad) in enumerate(pairs) if good == bad or _stripped(good) == _stripped(bad)]
    else:
        found = [row for row in range(len(data)) if _all_equal([data.keys[index] for index in data.of_row(row)])]
    return Check(
        "identical",
        len(found),
        len(data),
        f"rows whose responses are the same: {len(found)}" if found else "responses differ",
        "leave them out: their margin is always 0" * bool(found),
        tuple(example(row, *(data.texts[index] for index in data.of_row(row)[:1])) for row in found[:EXAMPLES]),
    )


def _all_equal(keys: Sequence[Any]) -> bool:
    return len(keys) > 1 and len(set(map(_stripped, keys))) == 1


def _stripped(key: Any) -> Any:
    if isinstance(key, tuple):
        return tuple((role, content.strip()) for role, content in key)
    return key if key is None else key.strip()


def empty(data: Data) -> Check:
    """Rows with a prompt or response in which there is nothing to be read, or none at all."""
    blank = _each(data.texts, _is_blank)
    if data.messages:
        blank |= _each(data.responses, _ends_blank)
    prompts = _each(data.prompt_texts, _is_blank)
    rows = np.zeros(len(data), bool)
    rows[data.rows[blank]] = True
    none = np.diff(data.bounds) == 0
    found = np.flatnonzero(rows | prompts | none)
    parts = [
        f"{count} {what}"
        for count, what in (
            (int(blank.sum()), "responses"),
            (int(prompts.sum()), "prompts"),
            (int(none.sum()), "lists without a response"),
        )
        if count
    ]
    return Check(
        "empty",
        len(found),
        len(data),
        f"empty: {', '.join(parts)}" if parts else "nothing is empty",
        "leave them out, or find where the text was lost: an empty response teaches to stop at once" * bool(parts),
        tuple(example(row, data.prompt_texts[row], *_some(data, row)) for row in found[:EXAMPLES].tolist()),
    )


def _is_blank(text: str) -> bool:
    return not text or text.isspace()


def _ends_blank(messages: Any) -> bool:
    """Whether the last message is empty, whatever was said before."""
    return not messages or _is_blank(content_of(messages[-1]))


def _some(data: Data, row: int) -> list[str]:
    return [data.texts[index] for index in data.of_row(row)[:2]]


def _each(values: Sequence[Any], test: Callable[[Any], bool]) -> Any:
    return np.fromiter(map(test, values), bool, len(values))


def truncated(data: Data, sample: Indices, also: Any = False, notes: Sequence[str] = ()) -> Check:
    """Responses that end early: in a block of code, in a thought, or many at exactly one length.

    Args:
        data: of any kind.
        sample: the rows whose words are counted.
        also: responses [R] that are cut for another reason, which `notes` say.
        notes: of `also`.
    """
    fences = _each(data.texts, _in_a_fence)
    thoughts = _each(data.texts, _in_a_thought)
    caps, said = _caps(data, sample)
    cut = fences | thoughts | caps | also
    parts = [f"{int(fences.sum())} end in a block of code"] if fences.any() else []
    parts += [f"{int(thoughts.sum())} end in <think>"] if thoughts.any() else []
    parts += [*said, *notes]
    found = np.unique(data.rows[cut])
    first = {int(data.rows[index]): data.texts[index][-80:] for index in np.flatnonzero(cut)[::-1].tolist()}
    return Check(
        "truncated",
        len(found),
        len(data),
        "; ".join(parts) if parts else "no response seems to be cut",
        "generate longer, or leave them out: the model learns to stop there" * bool(parts),
        tuple(example(row, f"…{first[row]}") for row in found[:EXAMPLES].tolist()),
    )


def _caps(data: Data, sample: Indices) -> tuple[Any, list[str]]:
    """Responses cut at one number of characters (of all rows) or words (of the sample), by role, and how to say it."""
    caps = np.zeros(len(data.texts), bool)
    notes = []
    sampled = np.isin(data.rows, sample)
    for role, indices in data.roles.items():
        few = indices[sampled[indices]]
        words = np.array([len(data.texts[index].split()) for index in few.tolist()], np.int64)
        for places, lengths, unit, least in (
            (indices, data.lengths[indices], "characters", 64),
            (few, words, "words", 16),
        ):
            found, note = capped([data.texts[index] for index in places.tolist()], lengths, unit, least)
            caps[places[found]] = True
            notes += [f"{note} of {role}"] if note else []
    return caps, notes


def _in_a_fence(text: str) -> bool:
    """Whether a block of code is open at the end; marks of it inside a line are no fence."""
    count = text.count("```")
    if count % 2 == 0:
        return False
    return sum(line.lstrip().startswith("```") for line in text.splitlines()) % 2 == 1


def _in_a_thought(text: str) -> bool:
    return "<think>" in text and text.count("<think>") > text.count("</think>")


def length(data: Data) -> Check:
    """Whether the better response is mostly the longer, or mostly the shorter, in characters of all rows."""
    if data.kind == "lists" and np.isnan(data.scores).all():
        return Check("length", 0, 0, "lists without scores tell no preference")
    if data.kind == "labelled":
        good, bad = (data.lengths[data.roles[role]] for role in ("desirable", "undesirable"))
        return bias(good, bad, "characters", len(data), paired=False)
    better, worse = data.preferred()
    return bias(data.lengths[better], data.lengths[worse], "characters", len(data))


def turns(data: Data) -> Check:
    """Responses of another number of turns than the other of their row, or that are not the assistant's at all."""
    counts = np.fromiter(map(_turns if data.messages else _markers, data.responses), np.int64, len(data.responses))
    rows = data.bounds[:-1][np.diff(data.bounds) > 0]
    ordered = counts[data.by_row]
    most, least = (function.reduceat(ordered, rows) if len(rows) else rows for function in (np.maximum, np.minimum))
    faults: dict[str, Indices] = {
        "responses of different numbers of turns": np.flatnonzero(np.diff(data.bounds) > 0)[most != least]
    }
    if data.messages:
        others = _each(data.responses, lambda content: bool(content) and content[-1].get("role") != "assistant")
        asked = _each(data.responses, lambda content: bool(content) and content[0].get("role") in ("user", "system"))
        answered = _each(data.prompts, lambda content: bool(content) and content[-1].get("role") == "assistant")
        faults["a response that does not end with the assistant"] = np.unique(data.rows[others])
        faults["a response that begins with the user or the system"] = np.unique(data.rows[asked])
        faults["a prompt that ends with the assistant"] = np.flatnonzero(answered)
    else:
        repeated = _repeats_prompt(data)
        faults["all responses begin with the prompt, which is then there twice"] = np.flatnonzero(repeated)
    parts = [f"{len(found)} {what}" for what, found in faults.items() if len(found)]
    found = np.unique(np.concatenate(list(faults.values())))
    return Check(
        "turns",
        len(found),
        len(data),
        "; ".join(parts) if parts else "responses of a row have as many turns",
        "cut responses before the next user's turn, and leave what comes before them to the prompt" * bool(parts),
        tuple(example(row, *(f"…{text[-40:]}" for text in _some(data, row))) for row in found[:EXAMPLES].tolist()),
    )


def _turns(messages: Any) -> int:
    return len(messages or ())


def _markers(text: Any) -> int:
    return sum(map(text.count, _TURNS)) if text else 0


def _repeats_prompt(data: Data) -> Any:
    """Rows of which every response begins with the prompt, of at least a few words."""
    prompts = data.prompt_texts
    begins = np.fromiter(
        (text.startswith(prompts[row]) for text, row in zip(data.texts, data.rows.tolist(), strict=True)),
        bool,
        len(data.texts),
    )
    missing = np.bincount(data.rows[~begins], minlength=len(data)) > 0
    return ~missing & (data.prompt_lengths >= 16) & (np.diff(data.bounds) > 0)


def repeated_characters(data: Data) -> float:
    """The share of characters that are a prompt again, in another response of the same row."""
    counts = np.diff(data.bounds)
    again: Floats = data.prompt_lengths * np.maximum(counts - 1, 0)
    total = (data.prompt_lengths * counts).sum() + data.lengths.sum()
    return float(again.sum() / total) if total else 0.0
