"""The equal losses that docstrings declare, each computed on both sides on random columns."""

from __future__ import annotations

import re

import numpy as np
import pytest
from numpy.testing import assert_allclose

from prefuse import objectives
from prefuse.catalogue import catalogue
from prefuse.language import Objective

from . import lists_and_tokens, pairs_and_points
from .numbers.batches import Columns

DECLARED = [(page.name, identity) for page in catalogue() for identity in page.identities]
SIZE = 4  # pairs: as many as `lists_and_tokens` draws
TOKENS = {"chosen": "chosen_mask", "rejected": "rejected_mask"}


def parsed(identity: str) -> tuple[Objective, Objective, list[tuple[str, str]]]:
    """Both sides and the conditions of `left = right where word=value, …`."""
    equation, _, conditions = identity.partition(" where ")
    sides = [eval(side, dict(vars(objectives))) for side in equation.split(" = ")]
    assert len(sides) == 2 and all(isinstance(side, Objective) for side in sides), identity
    return *sides, [tuple(condition.split("=")) for condition in filter(None, conditions.split(", "))]


def columns_of(*sides: Objective) -> Columns:
    """Random columns for both sides: those of pairs as the pair tests draw them, sums being those of the tokens."""
    levels = {name: info.level for side in sides for name, info in side.columns.items()}
    rng, columns = np.random.default_rng(11), {}
    for name in sorted(levels):
        columns[name] = lists_and_tokens.draw(name, lists_and_tokens.SHAPES.get(levels[name], ()), rng)
    if sides[0].kind != "pair":
        return columns
    drawn = pairs_and_points.random_columns(SIZE, seed=11)
    return {name: np.array(drawn.get(name, column)) for name, column in columns.items()}


def with_conditions(columns: Columns, conditions: list[tuple[str, str]]) -> Columns:
    """Every column in whose name the word occurs, set to a number or to the column with the other word in its place."""
    changed = dict(columns)
    for word, value in conditions:
        found = [name for name in columns if re.search(rf"(?:^|_){word}(?:_|$)", name)]
        assert found, f"no column has {word} in its name: {sorted(columns)}"
        for name in found:
            if re.fullmatch(r"[\d.]+", value):
                changed[name] = np.full_like(columns[name], float(value))
            else:
                changed[name] = columns[name.replace(word, value)]
    return changed


def losses(side: Objective, columns: Columns) -> np.ndarray:
    """Losses of one side, from the columns that it reads."""
    given = {name: columns[name] for name in side.columns}
    return np.asarray(side(**given).losses)


@pytest.mark.evidence("identities")
@pytest.mark.parametrize(("name", "identity"), DECLARED, ids=[identity for _, identity in DECLARED])
def test_equal_losses(name, identity):
    left, right, conditions = parsed(identity)
    assert name in identity
    columns = with_sums(with_conditions(columns_of(left, right), conditions))
    found, expected = np.broadcast_arrays(losses(left, columns), losses(right, columns))
    assert np.ptp(np.append(found, 0.0)) > 0  # or nothing would be compared
    assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def with_sums(columns: Columns) -> Columns:
    """The sums of the token columns, where there are any, in the place of those that were drawn."""
    sums = {}
    for role, mask in TOKENS.items():
        for name in (f"{role}_token_logps", f"ref_{role}_token_logps"):
            if name in columns and mask in columns:
                sums[name.replace("token_", "")] = np.where(columns[mask], columns[name], 0.0).sum(1)
    return columns | sums


def test_a_wrong_identity_would_be_found():
    with pytest.raises(AssertionError):
        test_equal_losses("ipo", "ipo = dpo")
    with pytest.raises(AssertionError, match="no column has"):
        test_equal_losses("dpo", "dpo = robust where length=3")
