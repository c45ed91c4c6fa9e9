"""Preference optimisation, fused: log-probabilities, DPO-family objectives and their gradients without big temporaries.

Three steps, each a drop-in function and together `preference_loss`:

1. gather: `token_stats`, `token_logps`, `sequence_logps`, from logits; the same with `linear_` before the name from
   hidden states and the LM-head weight, without the logits; of diffusion models `squared_errors`, `gaussian_logps`;
2. score: an objective of `prefuse.objectives`, or one of your own written in `prefuse.language`;
3. pull back: the exact gradient, through autograd for torch tensors.

Importing initialises nothing: no thread pool, no device.
"""

import importlib
from typing import Any

from prefuse import language, objectives
from prefuse._backends.storage import release_memory
from prefuse._parallel.context import sum_over_group
from prefuse._prefuse import __version__
from prefuse._statistics.support import Support
from prefuse.catalogue.checking import check
from prefuse.denoising import gaussian_logps, squared_errors
from prefuse.errors import LanguageError
from prefuse.functional import TokenStats, response_lengths, sequence_logps, token_logps, token_stats
from prefuse.language import (
    Objective,
    Score,
    from_torch,
    group_objective,
    pair_objective,
    point_objective,
    token_objective,
)
from prefuse.linear.functions import linear_sequence_logps, linear_token_logps, linear_token_stats
from prefuse.linear.sparse import Sparse
from prefuse.losses.preference import batch_totals, dpo_loss, explain, pair_loss, preference_loss
from prefuse.models.head import Head, head

__all__ = [
    "Head",
    "LanguageError",
    "Objective",
    "Score",
    "Sparse",
    "Support",
    "TokenStats",
    "__version__",
    "batch_totals",
    "check",
    "dpo_loss",
    "explain",
    "from_torch",
    "gaussian_logps",
    "group_objective",
    "head",
    "language",
    "linear_sequence_logps",
    "linear_token_logps",
    "linear_token_stats",
    "objectives",
    "pair_loss",
    "pair_objective",
    "point_objective",
    "preference_loss",
    "release_memory",
    "response_lengths",
    "sequence_logps",
    "squared_errors",
    "sum_over_group",
    "token_logps",
    "token_objective",
    "token_stats",
]

_LAZY = frozenset({"compat", "curate", "doctor", "integrations", "metrics", "outer", "packing", "runs", "trl", "viz"})


def __getattr__(name: str) -> Any:
    """Packages that most programs do without are imported when they are first named."""
    if name in _LAZY:
        return importlib.import_module(f"prefuse.{name}")
    raise AttributeError(f"module 'prefuse' has no attribute '{name}'")
