"""What the command lines of training frameworks read: a tiny model with a tokenizer in a folder, and data in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.integration.models import VOCABULARY, causal_lm

WORDS = [f"w{number}" for number in range(VOCABULARY - 4)]


def save_model(folder: Path, family: str = "llama", seed: int = 0, change: Any = None) -> Path:
    """A model with random weights, and a tokenizer of one token per word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model: nn.Module = causal_lm(family, seed)
    if change is not None:
        change(model)
    model.save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


def text(length: int, seed: int) -> str:
    """So many words."""
    generator = torch.Generator().manual_seed(seed)
    return " ".join(WORDS[number] for number in torch.randint(len(WORDS), (length,), generator=generator))


def pair(row: int) -> tuple[str, str, str]:
    """A prompt, a chosen and a rejected response; lengths differ from row to row."""
    return text(3 + row % 3, row), text(3 + row % 5, 100 + row), text(2 + row * 2 % 7, 200 + row)


def save_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    """JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
