"""A tokenizer with what its model says of templates and ends."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prefuse._pretrained.smollm2 import SMOLLM2, smollm2_folder


@dataclass(frozen=True)
class Used:
    """A tokenizer that data is looked at with.

    Attributes:
        tokenizer: of transformers.
        template: the chat template; None where there is none.
        parts: whether a message's text goes to the template as a list of parts, as those of processors read it.
        stops: at which tokens the model stops, by its generation_config; empty where that is not known.
    """

    tokenizer: Any
    template: str | None
    parts: bool
    stops: frozenset[str]

    @cached_property
    def marks(self) -> frozenset[str]:
        """All special tokens."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        special = {token.content for token in added.values() if token.special}
        return frozenset(filter(None, {*self.tokenizer.all_special_tokens, *special}))

    def written(self, messages: Sequence[dict[str, Any]], *, prompt: bool = False, **options: Any) -> str:
        """Messages as the chat template writes them, a prompt with the beginning of an answer behind it.

        `options` are the template's own: tools, and whatever it reads beside.
        """
        given = [_in_parts(message) for message in messages] if self.parts else list(messages)
        text: str = self.tokenizer.apply_chat_template(
            given, chat_template=self.template, tokenize=False, add_generation_prompt=prompt, **options
        )
        return text


def loaded(tokenizer: Any) -> Used:
    """A tokenizer: itself, that of a processor, or of a name or folder.

    Raises:
        TypeError: it is none.
        ValueError: there is none of that name.
        FileNotFoundError: it is "smollm2", whose wheel is not installed.
        ImportError: transformers is not installed, and a name was given.
    """
    if isinstance(tokenizer, (str, Path)):
        return _by_name(str(tokenizer))
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    if not (callable(inner) and hasattr(inner, "apply_chat_template")):
        hint = "; wrap it as transformers.PreTrainedTokenizerFast(tokenizer_object=…)"
        raise TypeError(
            f"tokenizer: expected a transformers tokenizer, or a name or folder of one, got {type(tokenizer).__name__}"
            f"{hint if type(tokenizer).__module__.startswith('tokenizers') else ''}"
        )
    template = getattr(tokenizer, "chat_template", None) or getattr(inner, "chat_template", None)
    return Used(inner, template, inner is not tokenizer, frozenset())


def _by_name(name: str) -> Used:
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise ImportError("transformers is not installed, which loads tokenizers; pip install transformers") from error
    if name == SMOLLM2:
        name = str(smollm2_folder())
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"tokenizer: no tokenizer can be loaded from {name!r}: {first[0]}") from error
    used = Used(tokenizer, getattr(tokenizer, "chat_template", None), False, _stops(transformers, name, tokenizer))
    # a name also stands for a processor, whose template may read nothing but parts
    parts = Used(tokenizer, used.template, True, used.stops)
    return parts if _keeps_text(parts) and not _keeps_text(used) else used


def _stops(transformers: Any, name: str, tokenizer: Any) -> frozenset[str]:
    try:
        ids = transformers.GenerationConfig.from_pretrained(name).eos_token_id
    except (OSError, ValueError):
        return frozenset()
    ids = [] if ids is None else ids if isinstance(ids, list) else [ids]
    return frozenset(filter(None, tokenizer.convert_ids_to_tokens(ids)))


def _keeps_text(used: Used) -> bool:
    if not used.template:
        return False
    try:
        return "probe" in used.written([{"role": "user", "content": "probe"}])
    except Exception:  # a chat template is a program of someone else's
        return False


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message
