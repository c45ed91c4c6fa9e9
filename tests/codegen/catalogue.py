"""Every registered objective, scored and pulled back once, as recorded runs."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import torch

from prefuse import objectives
from tests.codegen.harness import Recorded, recording
from tests.objectives.checking import VARIANTS, column_names, random_columns, variant_id

SIZE = 37
NAMES = [variant_id(variant) for variant in VARIANTS]


@functools.cache
def runs() -> Mapping[str, list[Recorded]]:
    """By variant: a score with all gradients, and a pull-back of gradients of loss and losses."""
    columns = random_columns(SIZE, seed=0)
    found = {}
    for name, parameters in VARIANTS:
        tensors = {}
        for column in column_names(name, parameters):
            tensor = torch.from_numpy(np.asarray(columns[column]))
            tensors[column] = tensor.requires_grad_() if tensor.is_floating_point() else tensor
        with recording() as log:
            score = objectives.get(name)(**parameters)(**tensors)
            (score.loss + (score.losses * torch.linspace(0.5, 1.5, len(score.losses))).sum()).backward()
        found[variant_id((name, parameters))] = log
    return found
