"""Pairs of a user's own: out of a file, or a data set's name, by the reader that `prefuse.curate.inspect` has."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import prefuse.curate.inspection.data as inspected
from prefuse.curate.inspection.files import SUFFIXES, rows_of

from .encoding import Pair

FEWEST = 8
"""Pairs that training and evaluation take at least."""


def pairs_of(source: str) -> list[Pair]:
    """The pairs of a file, of a folder that `datasets` saved, or of a data set by name (its split "train").

    Raises:
        FileNotFoundError: there is no such file, and no data set of that name.
        TypeError: a value has another type than its column.
        ValueError: not what its name says, other columns than those of pairs, or pairs that nothing can be learnt from.
        ImportError: a library that reads it is not installed.
    """
    return pairs_in(_rows(source))


def pairs_in(rows: Any) -> list[Pair]:
    """The same of rows in memory, of any kind that `prefuse.curate.inspect` takes."""
    given = inspected.read(rows, None)
    if given.kind != "pairs":
        raise ValueError(f"data: expected the columns prompt, chosen and rejected (pairs), got {given.kind}")
    if given.template_options:
        raise ValueError("data: got tools or chat_template_kwargs, which the demo does not read; leave the columns out")
    chosen, rejected = (given.roles[role].tolist() for role in ("chosen", "rejected"))
    keys = given.keys
    pairs = []
    for row, (good, bad) in enumerate(zip(chosen, rejected, strict=True)):
        if given.responses[good] is None or given.responses[bad] is None or given.prompts[row] is None:
            raise ValueError(f"data: row {row}: expected prompt, chosen and rejected, got a row where one is missing")
        if given.messages and not given.prompts[row]:
            raise ValueError(f"data: row {row}: expected a prompt, got chosen and rejected that begin with none alike")
        if keys[good] != keys[bad]:
            pairs.append(Pair(given.prompts[row], given.responses[good], given.responses[bad]))
    if not pairs:
        raise ValueError(f"data: chosen and rejected are the same in all {len(given)} rows; nothing can be learnt")
    if len(different := set(map(repr, pairs))) < FEWEST:
        raise ValueError(
            f"data: expected at least {FEWEST} different pairs, to train on some and evaluate on others, got "
            f"{len(different)} in {len(given)} rows"
        )
    return pairs


def split(pairs: list[Pair], held_out: float, most: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(to train on, held out): about a share `held_out` of the prompts, not more than `most` pairs of them."""
    prompts = sorted({repr(pair.prompt) for pair in pairs})
    random.Random(seed).shuffle(prompts)
    kept = set(prompts[: max(1, round(held_out * len(prompts)))])
    training = [pair for pair in pairs if repr(pair.prompt) not in kept]
    if not training:
        raise ValueError("data: expected at least 2 different prompts, to keep one from training, got 1")
    return training, [pair for pair in pairs if repr(pair.prompt) in kept][:most]


def _rows(source: str) -> Any:
    path = Path(source)
    if path.exists() or path.suffix.lower() in (*SUFFIXES, ".gz") or source.startswith((".", "/", "~")):
        return rows_of(path)
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"data: no file or folder {source}; datasets is not installed, which loads data sets by name"
        ) from error
    try:
        return datasets.load_dataset(source, split="train")
    except Exception as error:  # of the hub's client, of the file system, of the script: all of other libraries
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise FileNotFoundError(f"data: no file or folder {source}, and no data set of that name: {first}") from error
