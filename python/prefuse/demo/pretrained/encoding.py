"""Prompts and responses as the tokens of a pretrained model, through its chat template where they are messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..batches import Encoded

Content = str | list[dict[str, Any]]


class Pair(NamedTuple):
    """A prompt with a chosen and a rejected response: all text, or all messages.

    `complete` says of each response that it ends; one that was cut off gets no end of text.
    """

    prompt: Content
    chosen: Content
    rejected: Content
    complete: tuple[bool, bool] = (True, True)


def user(text: str) -> list[dict[str, Any]]:
    """Text as a conversation's first message."""
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, Any]]:
    """Text as the model's answer."""
    return [{"role": "assistant", "content": text}]


def encode(pairs: Sequence[Pair], tokenizer: Any, longest: int) -> list[Encoded]:
    """Token ids of pairs, responses cut where a sequence would pass `longest` tokens.

    Raises:
        ValueError: messages without a chat template, a template that does not begin with the prompt, or a prompt that
            leaves no room for a response; the message names the row.
    """
    return [_encoded(row, pair, tokenizer, longest) for row, pair in enumerate(pairs)]


def prompt_ids(prompt: Content, tokenizer: Any) -> list[int]:
    """Token ids of what a model is given to continue."""
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    return list(tokenizer(_written(tokenizer, prompt, prompt=True), add_special_tokens=False)["input_ids"])


def _encoded(row: int, pair: Pair, tokenizer: Any, longest: int) -> Encoded:
    ids = prompt_ids(pair.prompt, tokenizer)
    if len(ids) >= longest:
        raise ValueError(
            f"data: row {row}: the prompt has {len(ids)} tokens, which leaves no room for a response; expected fewer "
            f"than --max-length, {longest}"
        )
    responses = zip((pair.chosen, pair.rejected), pair.complete, strict=True)
    return Encoded(
        ids,
        [
            _response(row, pair.prompt, given, complete, tokenizer)[: longest - len(ids)]
            for given, complete in responses
        ],
    )


def _response(row: int, prompt: Content, given: Content, complete: bool, tokenizer: Any) -> list[int]:
    """Ids of a response as the model would have to write it: without the template's words for the prompt."""
    if isinstance(given, str) or isinstance(prompt, str):
        text = str(given)
    else:
        start, whole = _written(tokenizer, prompt, prompt=True), _written(tokenizer, prompt + given)
        if not whole.startswith(start):
            raise ValueError(
                f"data: row {row}: the chat template writes the prompt in another way before a response than alone; "
                "expected the conversation to begin with the prompt"
            )
        text = whole[len(start) :].rstrip("\n")
    text = text.removesuffix(tokenizer.eos_token)
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return [*ids, tokenizer.eos_token_id] if complete else ids


def _written(tokenizer: Any, messages: list[dict[str, Any]], *, prompt: bool = False) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("data: the rows are messages, and the model's tokenizer has no chat template; expected text")
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))
    except Exception as error:  # a chat template is a program of someone else's
        raise ValueError(f"data: the chat template refuses {str(messages)[:80]}…: {error}") from error
