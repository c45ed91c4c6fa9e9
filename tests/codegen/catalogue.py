"""Every registered objective, scored and pulled back once, as recorded runs."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from prefuse import objectives
from tests.codegen.harness import Recorded, recording
from tests.objectives import lists_and_tokens
from tests.objectives.pairs_and_points import VARIANTS, column_names, random_columns, variant_id

SIZE = 37
NAMES = [variant_id(variant) for variant in [*VARIANTS, *lists_and_tokens.VARIANTS]]


@functools.cache
def runs() -> Mapping[str, list[Recorded]]:
    """By variant: a score with all gradients, and a pull-back of gradients of loss and losses."""
    columns = random_columns(SIZE, seed=0)
    found = {}
    for name, parameters in VARIANTS:
        given = {column: columns[column] for column in column_names(name, parameters)}
        found[variant_id((name, parameters))] = recorded(name, parameters, given)
    for name, parameters in lists_and_tokens.VARIANTS:
        given = lists_and_tokens.random_columns(name, parameters, seed=0)
        found[variant_id((name, parameters))] = recorded(name, parameters, given)
    return found


def recorded(name: str, parameters: dict[str, Any], columns: Mapping[str, np.ndarray]) -> list[Recorded]:
    """Scores and pulls back once."""
    tensors = {}
    for column, values in columns.items():
        tensor = torch.from_numpy(np.asarray(values))
        tensors[column] = tensor.requires_grad_() if tensor.is_floating_point() else tensor
    with recording() as log:
        score = objectives.get(name)(**parameters)(**tensors)
        losses = score.losses.flatten()
        (score.loss + (losses * torch.linspace(0.5, 1.5, len(losses))).sum()).backward()
    return log
