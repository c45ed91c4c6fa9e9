"""Calls of a model that are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.models.families import VOCABULARY


@dataclass(frozen=True)
class Case:
    """A call: the model's inputs, labels [B, T] and the weights of the log-probs."""

    inputs: dict[str, Tensor]
    labels: Tensor
    weights: Tensor


def case(padding: str, **inputs: Any) -> Case:
    """Two rows of text; `inputs` of the model besides."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(4, VOCABULARY - 19, (2, 12), generator=generator)
    mask = torch.ones_like(tokens)
    if padding != "no":
        mask[1, slice(8, None) if padding == "right" else slice(0, 4)] = 0
    labels = tokens.masked_fill(mask == 0, -100)
    if padding == "left":
        labels[1, 4] = -100  # its predecessor is padding
    weights = torch.randn(2, 12, generator=generator)
    return Case({"input_ids": tokens, "attention_mask": mask, **inputs}, labels, weights)
