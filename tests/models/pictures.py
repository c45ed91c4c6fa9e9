"""Tiny images for image-text models, made from what a model's own forward and configuration ask for."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tests.models.cases import Case

TEXT = 8
"""Tokens of text behind an image."""


def picture(model: nn.Module) -> Case | None:
    """Two rows, each an image and text; None where none of the usual forms is what the model takes.

    That the image is looked at is seen from logits that change with it.
    """
    for pixels in _forms(model):
        try:
            case = _case(model, pixels)
            with torch.no_grad():
                one, other = (
                    model(**{**case.inputs, "pixel_values": seen}).logits[:, -TEXT:]
                    for seen in (pixels["pixel_values"], pixels["pixel_values"].flip(-1))
                )
        except Exception:  # the next form
            continue
        if one.isfinite().all() and (one - other).abs().max() > 1e-3:
            return case
    return None


def _forms(model: Any) -> Iterator[dict[str, Tensor]]:
    """Pixels, and what says how they lie, as processors of the families make them."""
    dtype = next(model.parameters()).dtype
    generator = torch.Generator().manual_seed(5)

    def pixels(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    vision = getattr(model.config, "vision_config", model.config)
    size = getattr(vision, "image_size", 32)
    size = 32 if not isinstance(size, int) else size
    patch = getattr(vision, "patch_size", 8)
    patch = patch if isinstance(patch, int) else 8
    sizes = torch.tensor([[size, size]] * 2)
    yield {"pixel_values": pixels(2, 3, size, size)}
    yield {"pixel_values": pixels(2, 3, size, size), "image_sizes": sizes}
    yield {"pixel_values": pixels(2, 3, size, size), "qformer_input_ids": torch.full((2, 4), 5)}
    yield {"pixel_values": pixels(2, 1, 3, size, size)}
    yield {"pixel_values": pixels(2, 2, 3, size, size), "image_sizes": sizes}
    times = getattr(vision, "temporal_patch_size", 1)
    for depth in dict.fromkeys((times, 1, 2)):
        grid = torch.tensor([[1, 4, 4]] * 2)
        yield {"pixel_values": pixels(32, 3 * depth * patch * patch), "image_grid_thw": grid}
    yield {"pixel_values": pixels(2, 16, 3 * patch * patch)}
    places = torch.cartesian_prod(torch.arange(4), torch.arange(4)).expand(2, 16, 2)
    yield {"pixel_values": pixels(2, 16, 3 * patch * patch), "image_position_ids": places}
    yield {"pixel_values": pixels(2, 1, 3, size, size), "pixel_attention_mask": torch.ones(2, 1, size, size).long()}


def _case(model: Any, pixels: dict[str, Tensor]) -> Case:
    count = _features(model, pixels)
    token = next(
        value for name in ("image_token_id", "image_token_index") if (value := getattr(model.config, name, None))
    )
    generator = torch.Generator().manual_seed(6)
    text = torch.randint(4, 80, (2, TEXT), generator=generator)
    tokens = torch.cat([torch.full((2, count), token), text], 1)
    takes = set(inspect.signature(type(model).forward).parameters)
    kinds = {name: (tokens == token).long() for name in ("token_type_ids", "mm_token_type_ids") if name in takes}
    labels = tokens.masked_fill(tokens == token, -100)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), **kinds, **pixels}
    return Case(inputs, labels, torch.randn(tokens.shape, generator=generator))


def _features(model: Any, pixels: dict[str, Tensor]) -> int:
    """How many tokens an image becomes."""
    holder = model if hasattr(model, "get_image_features") else model.model
    width = model.config.get_text_config().hidden_size
    with torch.no_grad():
        found = holder.get_image_features(**pixels)
    found = getattr(found, "pooler_output", found)
    parts = found if isinstance(found, (list, tuple)) else [found]
    return sum(part.numel() for part in parts) // width // 2
