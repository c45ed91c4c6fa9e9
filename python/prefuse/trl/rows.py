"""Rows of a preference data set, from text to tokens: prompts and any number of responses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from datasets import Dataset, IterableDataset
from transformers.utils import logging
from trl.data_utils import _tokenize, common_prefix_length, extract_prompt
from trl.trainer.utils import global_then_local_main_first

from prefuse.trl.requirements import LISTS, PAIRS, Sources

logger = logging.get_logger(__name__)


def has_images(names: Iterable[str]) -> bool:
    """Whether rows with these columns come with images, which are processed batch by batch."""
    return not {"image", "images"}.isdisjoint(names)


def names_of(dataset: Any) -> list[str]:
    """The columns of a data set, also where it does not know them before the first row."""
    return list(getattr(dataset, "column_names", None) or next(iter(dataset)))


def tokenised(dataset: Any, name: str, sources: Sources, processing_class: Any, eos: str, processes: int | None) -> Any:
    """The data set with ``<response>_ids`` for each response and ``<prompt>_ids`` for each prompt.

    What is tokenised already stays. Where there is no prompt, it is what chosen and rejected have in common at their
    beginning. Text that is not a conversation ends in the EOS token.

    Raises:
        ValueError: there is no prompt, and it cannot be told from the responses.
    """
    wanted = {f"{column}_ids" for column in (*sources.responses, *sources.prompts)}
    with global_then_local_main_first():
        names = names_of(dataset)
        if wanted <= set(names):
            return dataset
        options = {"num_proc": processes} if isinstance(dataset, Dataset) else {}
        if "prompt" in sources.prompts and "prompt" not in names:
            if sources.responses != ("chosen", "rejected"):
                raise ValueError(f"{name}: expected a column prompt with {', '.join(sources.responses)}, got {names}")
            dataset = dataset.map(extract_prompt, **options, **_described(dataset, f"Extracting prompts of {name}"))
        return dataset.map(
            _Tokeniser(sources, processing_class, eos), **options, **_described(dataset, f"Tokenising {name}")
        )


def with_room(dataset: Any, name: str, sources: Sources, length: int, processes: int | None) -> Any:
    """The rows whose prompts leave at least one token of `length` to the responses; a warning counts the others.

    Raises:
        ValueError: there is no such row. Streamed data sets cannot tell.
    """
    prompts = [f"{prompt}_ids" for prompt in dict.fromkeys(sources.prompts)]
    options = {"num_proc": processes} if isinstance(dataset, Dataset) else {}
    kept = dataset.filter(
        _Shorter(prompts, length), **options, **_described(dataset, f"Dropping prompts without room in {name}")
    )
    if isinstance(dataset, Dataset) and len(kept) < len(dataset):
        if len(kept) == 0:
            raise ValueError(
                f"max_length: expected more than the tokens of a prompt, got {length}, and in all {len(dataset)} rows "
                f"of the data set {name!r} the prompt alone has {length} tokens or more"
            )
        logger.warning(
            f"{len(dataset) - len(kept)} of {len(dataset)} rows of the data set {name!r} are dropped, because their "
            f"prompts have {length} tokens or more and max_length={length} leaves no token of a response"
        )
    return kept


def _described(dataset: Any, text: str) -> dict[str, str]:
    return {} if isinstance(dataset, IterableDataset) else {"desc": text}


class _Shorter:
    """Whether all prompts of a row are shorter than a length."""

    def __init__(self, prompts: list[str], length: int) -> None:
        self.prompts = prompts
        self.length = length

    def __call__(self, row: dict[str, Any]) -> bool:
        return all(len(row[prompt]) < self.length for prompt in self.prompts)


class _Tokeniser:
    """Tokenises one row."""

    def __init__(self, sources: Sources, processing_class: Any, eos: str) -> None:
        self.sources = sources
        self.processing_class = processing_class
        self.eos = eos

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        tokens = self._tokens_of(row)
        for prompt in dict.fromkeys(self.sources.prompts):
            mine = [name for name, of in zip(self.sources.responses, self.sources.prompts, strict=True) if of == prompt]
            texts = [text for name in mine for text in (row[name] if self.sources.layout == LISTS else [row[name]])]
            start = tokens(row[prompt], add_generation_prompt=True)
            whole = [tokens(_joined(row[prompt], text, self.eos)) for text in texts]
            # The responses begin where the first of them parts from the prompt alone, so that all share one prompt.
            shared = min((common_prefix_length(start, ids) for ids in whole), default=len(start))
            if shared < len(start):
                logger.warning_once(
                    f"{prompt}: tokenised alone it is not how it is tokenised with a response; the response begins "
                    "where they part, and the rest of the prompt is left out"
                )
            made[f"{prompt}_ids"] = start[:shared]
            rest: list[Any] = [ids[shared:] for ids in whole]
            if self.sources.layout == LISTS:
                rest = [rest]
            made |= {f"{name}_ids": ids for name, ids in zip(mine, rest, strict=True)}
        return made

    def _tokens_of(self, row: dict[str, Any]) -> Callable[..., list[int]]:
        import json

        tools = row.get("tools")
        template = {
            "tools": json.loads(tools) if isinstance(tools, str) else tools,
            **(row.get("chat_template_kwargs") or {}),
        }

        def tokens(text: Any, **options: Any) -> list[int]:
            if isinstance(text, str):
                return list(_tokenize(self.processing_class, text)["input_ids"])
            return list(_tokenize(self.processing_class, text, **options, **template)["input_ids"])

        return tokens


def _joined(prompt: Any, response: Any, eos: str) -> Any:
    """Prompt and response, text or messages."""
    if not isinstance(prompt, str):
        return prompt + response
    return prompt + response if response.endswith(eos) else prompt + response + eos


def columns_to_keep(sources: Sources, precomputed: Iterable[str]) -> list[str]:
    """The columns that a collator reads."""
    ids = [f"{name}_ids" for name in dict.fromkeys((*sources.prompts, *sources.responses))]
    return [*ids, *(source for _, _, source in sources.columns), *precomputed]


def reference_columns(sources: Sources) -> tuple[str, ...]:
    """Where log-probabilities of the reference are kept in a data set: one column per response column."""
    return tuple(f"ref_{name}_logps" for name in sources.responses) if sources.layout == PAIRS else ("ref_logps",)
