"""Batches of pairs about images: text and pixels are processed batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from trl.data_utils import apply_chat_template, prepare_multimodal_messages
from trl.trainer.utils import flush_left

from prefuse.trl.batches import column_of
from prefuse.trl.requirements import Sources

_TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")


@dataclass
class ImageCollator:
    """Makes batches of pairs with images, role by role, each role with all the images of its prompts.

    Attributes:
        sources: what is where in the rows; ``image`` or ``images`` beside it.
        processor: of the model.
        max_length: tokens of prompt and response together, images included; None: any. The beginning is kept.
    """

    sources: Sources
    processor: Any
    max_length: int | None = None

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A batch of `rows`, as `PreferenceCollator` gives it, with what the processor makes of the images."""
        images = [_images_of(row) for row in rows]
        texts = [
            self._texts(row[prompt], row[response], given)
            for prompt, response in zip(self.sources.prompts, self.sources.responses, strict=True)
            for row, given in zip(rows, images, strict=True)
        ]
        # With no image at all there must be none, not a list of empty lists.
        repeated = images * len(self.sources.responses) if any(images) else None
        prompts = self._processed([prompt for prompt, _ in texts], "left", images=repeated)
        responses = self._processed([response for _, response in texts], "right")
        batch: dict[str, Any] = {**prompts, **self._joined(prompts, responses)}
        batch["columns"] = {name: column_of(name, level, source, rows) for name, level, source in self.sources.columns}
        return batch

    def _texts(self, prompt: Any, response: Any, images: list[Any]) -> tuple[str, str]:
        if isinstance(prompt, str):
            return prompt, response
        messages = {
            "prompt": prepare_multimodal_messages(prompt, images=images),
            "completion": prepare_multimodal_messages(response),
        }
        made = apply_chat_template(messages, self.processor)
        return made["prompt"], made["completion"]

    def _processed(self, texts: list[str], side: str, **images: Any) -> dict[str, Tensor]:
        # Special tokens are in the text: those of a template, or of the data.
        return dict(
            self.processor(
                text=texts, padding=True, padding_side=side, return_tensors="pt", add_special_tokens=False, **images
            )
        )

    def _joined(self, prompts: dict[str, Tensor], responses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Prompts and responses one after the other, what fills them up at the end."""
        parts = {name: torch.cat([prompts[name], responses[name]], 1) for name in ("attention_mask", "input_ids")}
        mask = responses["attention_mask"]
        parts["completion_mask"] = torch.cat([torch.zeros_like(prompts["attention_mask"]), mask], 1)
        for name in _TOKEN_TYPES:
            if name in prompts:
                other = responses.get(name, torch.zeros_like(responses["input_ids"]))
                parts[name] = torch.cat([prompts[name], other], 1)
        flushed = flush_left(*parts.values())
        return {name: value[:, : self.max_length] for name, value in zip(parts, flushed, strict=True)}


def _images_of(row: dict[str, Any]) -> list[Any]:
    return list(row["images"]) if "images" in row else [row["image"]]
