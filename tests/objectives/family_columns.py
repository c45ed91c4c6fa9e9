"""The wider family of pair and point objectives: variants to try, and the columns they take beyond the usual ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from .fixtures import Columns

Parameters = dict[str, Any]

# Responses beyond chosen and rejected, in sums; and those that are looked at token by token.
ROLES = ("gold", "rationale")
TOKEN_ROLES = ("chosen", "rejected")
TOKENS = 6

# Objectives with a weight or a scale that depends on the columns and takes no gradient.
DETACHED = frozenset({"beta_dpo", "wpo"})

VARIANTS: list[tuple[str, Parameters]] = [
    # a likelihood held up
    ("dpop", {"beta": 0.3, "penalty": 2.0}),
    ("rpo", {"beta": 0.3, "alpha": 0.7}),
    ("rpo", {"beta": 0.3, "label_smoothing": 0.1, "nll": "token_mean"}),
    ("rpo", {"beta": 0.3, "alpha": 0.02, "nll": "sum"}),
    ("codpo", {"beta": 0.3, "weight": 2.0}),
    ("cal_dpo", {"beta": 0.3}),
    ("cal_dpo", {"beta": 0.3, "variant": "original"}),
    ("rationale_dpo", {"beta": 0.3, "gamma": 0.5}),
    ("rationale_dpo", {"beta": 0.3, "gamma": 0.05, "variant": "original"}),
    ("rationale_orpo", {"beta": 0.3, "gamma": 2.0}),
    ("rationale_orpo", {"nll": "response_mean"}),
    ("spo_degree", {"beta": 0.3, "weight": 0.4}),
    # lengths
    ("r_dpo", {"beta": 0.3, "alpha": 0.05}),
    ("ld_dpo", {"beta": 0.3, "alpha": 0.4}),
    ("ld_dpo", {"beta": 0.3, "scope": "policy"}),
    ("sampo", {"beta": 0.3}),
    ("sampo", {"beta": 0.3, "independent": True}),
    # weights and strengths
    ("wpo", {"beta": 0.3}),
    ("wpo", {"beta": 0.3, "label_smoothing": 0.1, "variant": "trl-1.16"}),
    ("wpo", {"variant": "trl-0.24"}),
    ("beta_dpo", {"beta": 0.3, "sensitivity": 0.2, "centre": 0.5}),
    ("beta_dpo", {"beta": 0.3, "sensitivity": 0.2, "level": "pair"}),
    ("ns_dpo", {"beta": 0.3, "gamma": 0.8}),
    ("mallows_po", {"beta": 0.3}),
    # without a reference
    ("alphapo", {"beta": 3.0, "alpha": 0.3}),
    ("alphapo", {"beta": 3.0, "alpha": -0.4, "gamma": 0.7, "label_smoothing": 0.1}),
    ("alphapo", {"beta": 3.0, "alpha": 0.0, "gamma_beta_ratio": 0.2}),
    ("simper", {}),
    ("slic", {"delta": 2.0, "alpha": 0.3}),
    ("slic", {"nll": "response_mean"}),
    ("tpo", {"beta": 0.2, "alpha": 0.7, "label_smoothing": 0.1}),
    ("tpo", {"nll": "response_mean"}),
    ("tpo_l", {"beta": 1.5, "gamma": 0.4, "alpha": 0.7, "label_smoothing": 0.1}),
    ("asft", {"beta": 0.6, "weight": 0.4, "alpha": 0.5}),
    # further options of the objectives in `checking`
    ("f_dpo", {"divergence": "alpha", "coefficient": 0.3, "beta": 0.3}),
    ("f_dpo", {"divergence": "alpha", "coefficient": 1.0, "beta": 0.3}),
]


def random_columns(size: int, seed: int) -> Columns:
    """What the family reads beyond log-probabilities of the usual responses."""
    rng = np.random.default_rng([seed, 1])
    columns: Columns = {}
    for role in ROLES:
        lengths = rng.integers(1, 30, size)
        columns[f"{role}_lengths"] = lengths
        columns[f"{role}_logps"] = -rng.uniform(0.1, 3.0, size) * lengths
        columns[f"ref_{role}_logps"] = columns[f"{role}_logps"] + rng.normal(0, 2, size)
    for role in TOKEN_ROLES:
        columns |= token_columns(rng, role, size)
    columns["age"] = rng.uniform(0, 5, size)
    columns["degree_loss"] = rng.uniform(0, 2, size)
    columns["dispersion"] = rng.uniform(0.2, 2, size)
    return columns


def token_columns(rng: np.random.Generator, role: str, size: int) -> Columns:
    """A response of up to `TOKENS` tokens."""
    lengths = rng.integers(1, TOKENS + 1, size)
    shape = (size, TOKENS)
    policy = -rng.uniform(0.1, 3.0, shape)
    return {
        f"{role}_mask": np.arange(TOKENS) < lengths[:, None],
        f"{role}_token_logps": policy,
        f"ref_{role}_token_logps": policy + rng.normal(0, 0.5, shape),
        f"{role}_token_log_sum_sq": -rng.uniform(0.1, 5.0, shape),
        f"{role}_token_sampled": rng.uniform(0, 1, shape) < 0.7,
        f"{role}_token_ref_sampled": rng.uniform(0, 1, shape) < 0.7,
    }
