"""Preference data looked at before it costs a day of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from prefuse._arguments.checks import check_integer
from prefuse.curate._numbers import Seed, generator
from prefuse.curate._rows import Indices
from prefuse.curate.inspection import content, tokens
from prefuse.curate.inspection.data import Data, read
from prefuse.curate.inspection.results import EXAMPLES, Check, Example, Inspection
from prefuse.curate.inspection.tokenizers import loaded

__all__ = ["Check", "Example", "Inspection", "inspect"]

_NEEDS = "needs a tokenizer: tokenizer=…, on the command line --tokenizer NAME"


def inspect(
    data: Any,
    tokenizer: Any = None,
    *,
    columns: Mapping[str, str | None] | None = None,
    sample: int = 10_000,
    max_length: int | None = None,
    tolerance: float = 0.0,
    seed: Seed = 0,
) -> Inspection:
    """Look for what spoils preference training: faults of the data, and of how it becomes tokens.

    | check | finds |
    | --- | --- |
    | `duplicate` | rows that are there twice |
    | `contradiction` | rows that are there again with chosen and rejected swapped, or with the other label |
    | `identical` | rows whose responses are the same, blanks around them aside (with a tokenizer: as tokens) |
    | `empty` | prompts or responses without a visible character, or missing; lists without a response |
    | `truncated` | responses that end in a block of code or in <think>, are cut at one length, or pass `max_length` |
    | `prefix` | prompts whose tokens are not those that prompt and response together begin with |
    | `length` | a better response that is the longer (or shorter) in over 60 % of pairs, its 99 % interval included |
    | `turns` | responses of different numbers of turns, or not the assistant's; prompts repeated in responses |
    | `template` | bos twice, no eos, special tokens in a response, content that the chat template loses or refuses |

    `prefix` and `template` need a tokenizer. They, and lengths in words and tokens, are of a sample; everything else is
    of all rows.

    Args:
        data: a file (JSON lines, JSON, CSV, Parquet; the first and the third also as .gz), a folder that `datasets`
            saved, a list of dicts, a dict of columns, a `pandas.DataFrame` or a `datasets.Dataset`. Columns are
            prompt, chosen and rejected; chosen and rejected, which begin with the prompt; prompt, completion and label;
            or prompt and completions, a list, with or without scores. All are text, or all lists of messages, which the
            chat template writes with the row's ``tools`` and ``chat_template_kwargs``, if it has such columns.
        tokenizer: a transformers tokenizer or processor, or a name or folder of one.
        columns: other names of columns, such as {"prompt": "question"}; None leaves a column out.
        sample: how many rows are tokenised.
        max_length: tokens of prompt and response that training keeps; by default the tokenizer's, if it knows one.
        tolerance: the share of rows that each check may find while the result is still `ok`.
        seed: of the sample.

    Returns:
        An `Inspection`: prints as a table with what to do; `.ok`; `["prefix"]` and its like have counts, examples.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: the data are no rows, a value has another type than expected, or the tokenizer is none.
        ValueError: no column or row that is needed, a file that is not what its name says, or a number out of range.
        ImportError: Parquet without pyarrow, or a tokenizer's name without transformers.
    """
    _check(sample, max_length, tolerance)
    rng = generator(seed)
    given = read(data, columns)
    used = None if tokenizer is None else loaded(tokenizer)
    rows = _drawn(len(given), sample, rng)
    checks = {
        **{check.name: check for check in content.duplicate(given)},
        "identical": content.identical(given),
        "empty": content.empty(given),
        "truncated": content.truncated(given, rows),
        "prefix": Check("prefix", 0, 0, _NEEDS),
        "length": content.length(given),
        "turns": content.turns(given),
        "template": Check("template", 0, 0, _NEEDS),
    }
    if used is None:
        return _result(given, rows, checks, tolerance)
    return _with_tokens(given, tokens.tokenised(given, used, rows), checks, max_length, tolerance)


def _check(sample: int, max_length: int | None, tolerance: float) -> None:
    for name, value in (("sample", sample), ("max_length", max_length)):
        if value is not None and check_integer(name, value) < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)):
        raise TypeError(f"tolerance: expected a number, got {type(tolerance).__name__}")
    if not 0.0 <= tolerance < 1.0:
        raise ValueError(f"tolerance: expected a share in [0, 1), got {tolerance}")


def _drawn(rows: int, sample: int, rng: np.random.Generator) -> Indices:
    """So many rows in their order; all where there are fewer."""
    if rows <= sample:
        return np.arange(rows)
    return np.sort(rng.choice(rows, sample, replace=False)).astype(np.int64)


def _result(data: Data, rows: Indices, checks: Mapping[str, Check], tolerance: float) -> Inspection:
    sampled = np.isin(data.rows, rows)
    lengths = {role: data.lengths[indices[sampled[indices]]] for role, indices in data.roles.items()}
    shared = content.repeated_characters(data)
    return Inspection(
        data.kind,
        data.messages,
        len(data),
        len(rows),
        tuple(checks.values()),
        "characters",
        lengths,
        data.prompt_lengths[rows],
        shared,
        float(tolerance),
    )


def _with_tokens(
    data: Data, given: tokens.Tokenised, checks: dict[str, Check], max_length: int | None, tolerance: float
) -> Inspection:
    checks["identical"] = _also(checks["identical"], tokens.same_tokens(given))
    cut, notes = tokens.cut(given, max_length)
    if notes:
        checks["truncated"] = content.truncated(data, given.sample, cut, notes)
    if not checks["length"].count and (of_tokens := tokens.length(given)).count:
        checks["length"] = of_tokens  # the same number of characters, and more tokens
    checks["prefix"], checks["template"] = tokens.prefix(given), tokens.template(given)
    found = _result(data, given.sample, checks, tolerance)
    return replace(
        found,
        unit="tokens",
        lengths={role: given.lengths[places] for role, places in given.by_role()},
        prompt_lengths=np.array([len(ids) for _, ids in given.prompts.values()], np.int64),
        shared=tokens.repeated_tokens(given),
    )


def _also(check: Check, same: Mapping[int, str]) -> Check:
    """The check `identical` with rows whose responses are the same as tokens alone."""
    if not same or not check.of:
        return check
    what = f"rows whose responses are the same as tokens alone: {len(same)}"
    return replace(
        check,
        count=check.count + len(same),
        what=f"{check.what}; {what}" if check.count else what,
        advice=check.advice or "leave them out: their margin is always 0",
        examples=(*check.examples, *(Example(row, text) for row, text in same.items()))[:EXAMPLES],
    )
