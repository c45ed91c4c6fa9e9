"""Random columns, and losses and gradients on them, for the tests of identities."""

from __future__ import annotations

import numpy as np
from numpy.testing import assert_allclose

from tests.objectives import pairs_and_points
from tests.objectives.lists_and_tokens import evaluate as evaluate_lists
from tests.objectives.lists_and_tokens import random_columns as random_lists
from tests.objectives.pairs_and_points import evaluate, random_columns

SIZE = 9

COLUMNS = random_columns(SIZE, seed=22)

H = {role: COLUMNS[f"{role}_logps"] - COLUMNS[f"ref_{role}_logps"] for role in ("chosen", "rejected")}

MARGIN = H["chosen"] - H["rejected"]


def losses(name, columns=COLUMNS, **parameters):
    return np.broadcast_to(evaluate(name, parameters, columns).losses, (SIZE,))


def gradients(name, columns=COLUMNS, **parameters):
    return evaluate(name, parameters, columns).gradients


def same(first, second, rtol=1e-12):
    assert_allclose(first, second, rtol=rtol, atol=1e-13)


PAIR = ("chosen", "rejected")

SWAPPED = {f"{ref}{a}_logps": COLUMNS[f"{ref}{b}_logps"] for ref in ("", "ref_") for a, b in (PAIR, PAIR[::-1])}

TOKEN_SUMS = {
    f"{ref}{role}_logps": (COLUMNS[f"{ref}{role}_token_logps"] * COLUMNS[f"{role}_mask"]).sum(1)
    for role in ("chosen", "rejected")
    for ref in ("", "ref_")
}

PAIRS = pairs_and_points.random_columns(5, seed=41)


def as_lists(**extra):
    """The pairs as lists of two, chosen first."""
    both = lambda name: np.stack([PAIRS[f"{name}chosen_logps"], PAIRS[f"{name}rejected_logps"]], 1)  # noqa: E731
    columns = {"logps": both(""), "ref_logps": both("ref_")}
    return columns | {name: np.tile(values, (5, 1)) for name, values in extra.items()}


def pair_losses(name, **parameters):
    return pairs_and_points.evaluate(name, parameters, PAIRS).losses


def list_losses(name, columns, **parameters):
    return evaluate_lists(name, parameters, columns).losses


def list_gradients(name, columns, **parameters):
    return evaluate_lists(name, parameters, columns).gradients


LIST = random_lists("lipo", {}, seed=42)

PAIR_TOKENS = random_lists("sparse_po", {}, seed=46)

ROLES = ("chosen", "rejected")


def plain(columns, *names):
    """Those columns an objective on the same pairs reads."""
    kept = ("_mask", "token_logps", *names)
    return {name: value for name, value in columns.items() if name.endswith(kept)}
