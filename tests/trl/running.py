"""TRL's trainers on tiny models, with and without prefuse: what they log and what weights they end at."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn

import prefuse.trl
from prefuse.trl import compatibility
from tests.integration.models import VOCABULARY, causal_lm, saved

WORDS = [f"w{number}" for number in range(VOCABULARY - 5)]
TIMES = ("runtime", "per_second", "time", "memory", "total_flos", "clock", "mfu")
"""Parts of the names of what is logged and differs from run to run."""


@functools.cache
def tokenizer() -> Any:
    """One token per word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "<image>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        model_input_names=["input_ids", "attention_mask"],
    )


@functools.cache
def processor() -> Any:
    """Of `vision_language_model`: four tokens and 8 by 8 pixels an image; without torchvision."""
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}),
        tokenizer=tokenizer(),
        patch_size=4,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def text(length: int, seed: int) -> str:
    """Words with a blank before each, so that a prompt and a response join at a token's border."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(len(WORDS), (length,), generator=generator).repeat_interleave(2)
    return "".join(f" {WORDS[number]}" for number in words)  # each twice: a tied head gets some of them right


def pairs(count: int = 8, words: int = 2) -> Dataset:
    """Prompts of at least so many words with two or three responses, of different lengths."""
    return Dataset.from_dict(
        {
            "prompt": [text(words + row % 3, seed=row) for row in range(count)],
            "chosen": [text(3 + row % 4, seed=100 + row) for row in range(count)],
            "rejected": [text(2 + row % 5, seed=200 + row) for row in range(count)],
            "reference": [text(4 + row % 2, seed=300 + row) for row in range(count)],
        }
    )


def unpaired(count: int = 8) -> Dataset:
    """Prompts with a response that was liked or not."""
    made = pairs(count)
    label = [row % 3 != 0 for row in range(count)]
    return Dataset.from_dict({"prompt": made["prompt"], "completion": made["chosen"], "label": label})


def sampled(count: int = 8) -> Dataset:
    """Tokens of responses, with an advantage and the log-probability that each was drawn with."""
    responses = [[5 + (row + k) % 40 for k in range(3 + row % 4)] for row in range(count)]
    return Dataset.from_dict(
        {
            "prompt_ids": [[5, 6]] * count,
            "completion_ids": responses,
            "old_logps": [[-3.0 - 0.1 * k for k in range(len(ids))] for ids in responses],
            "advantage": [[0.5 * (-1) ** (row + k) for k in range(len(ids))] for row, ids in enumerate(responses)],
        }
    )


def illustrated(count: int = 8) -> Dataset:
    """Pairs with an image before each prompt."""
    from datasets import Features, Image, Value
    from PIL.Image import fromarray

    generator = torch.Generator().manual_seed(9)
    pixels = torch.randint(256, (count, 8, 8, 3), dtype=torch.uint8, generator=generator).numpy()
    made = {name: pairs(count)[name] for name in ("chosen", "rejected")}
    made |= {"prompt": [f"<image>{text(2, seed=row)}" for row in range(count)], "image": list(map(fromarray, pixels))}
    return Dataset.from_dict(made, Features({**dict.fromkeys(made, Value("string")), "image": Image()}))


def prompts(count: int = 8) -> Dataset:
    """Prompts to answer."""
    return pairs(count).select_columns(["prompt"])


def reward(completions: list[str], **_: Any) -> list[float]:
    """Of the words' letters, so that it depends on all of them."""
    return [float(sum(map(ord, completion)) % 17) for completion in completions]


@contextlib.contextmanager
def no_logits(trainer: Any) -> Iterator[None]:
    """Refuses the LM head of what is trained and of its reference, but for what generates or proves the head."""
    models = [trainer.model, getattr(trainer, "ref_model", None)]
    heads = {model.get_output_embeddings() for model in models if model is not None}
    linear = nn.Linear.forward

    def forward(self: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
        if self in heads and hidden.shape[:-1].numel() > 6:
            raise AssertionError("the logits were made")
        return linear(self, hidden)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Linear, "forward", forward)
        yield


class Run(NamedTuple):
    """What came of a training run."""

    logs: list[dict[str, float]]
    change: dict[str, Tensor]  # of each weight


def train(
    made: Callable[[], Any],
    how: str,
    during: Callable[[Any], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    **options: Any,
) -> Run:
    """Trains what `made` makes: "plain", or with prefuse put in "before" or "after" it is made, with `options`."""
    torch.manual_seed(0)
    handle = prefuse.trl.accelerate(**options) if how == "before" else None
    try:
        trainer = made()
        if how == "after":
            handle = prefuse.trl.accelerate(trainer, **options)
        first = {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
        with during(trainer):
            trainer.train()
    finally:
        if handle is not None:
            handle.remove()
    logs = [
        {name: float(value) for name, value in entry.items() if not any(part in name for part in TIMES)}
        for entry in trainer.state.log_history
    ]
    return Run(logs, {name: value.detach() - first[name] for name, value in trainer.model.state_dict().items()})


def assert_same(found: Run, expected: Run, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """The same numbers in the logs, and weights that have changed by the same."""
    assert len(found.logs) == len(expected.logs) == 4  # three steps and the end
    for step, (mine, theirs) in enumerate(zip(found.logs, expected.logs, strict=True)):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            about = f"{name} of entry {step}"
            torch.testing.assert_close(
                mine[name], value, rtol=rtol, atol=atol, equal_nan=True, msg=lambda m, a=about: f"{a}: {m}"
            )
    assert found.change.keys() == expected.change.keys()
    most = max(value.abs().max().item() for value in expected.change.values())
    assert most > 1e-5
    for name, value in expected.change.items():
        torch.testing.assert_close(
            found.change[name], value, rtol=0, atol=rtol * most + 2e-7 * 8, msg=lambda m, n=name: f"{n}: {m}"
        )


def trainer(kind: str) -> tuple[type, type]:
    """A trainer's class and that of its configuration, where the installed TRL has them."""
    places = ("trl.experimental." + HOMES[kind], "trl") if kind in HOMES else ("trl",)
    for name in ("prefuse.trl",) if kind == "Preference" else places:
        home = compatibility.module(name)
        if hasattr(home, f"{kind}Trainer"):
            return getattr(home, f"{kind}Trainer"), getattr(home, f"{kind}Config")
    raise LookupError(f"trl has no {kind}Trainer")


HOMES = {"CPO": "cpo", "KTO": "kto", "ORPO": "orpo", "TPO": "tpo", "OnlineDPO": "online_dpo"}
"""The folders below `trl.experimental` of the trainers that are or were there."""


def make(kind: str, folder: Path, model: Any = "llama", **options: Any) -> Any:
    """A trainer of three steps by plain SGD, whose differences show in proportion; what it takes goes by name."""
    cls, config = trainer(kind)
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "max_steps": 3,
        "logging_steps": 1,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 1e9,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "seed": 0,
    }
    if kind in ("GRPO", "RLOO") and options.get("beta", 0.05) and "peft_config" not in options:
        policy = saved(model, folder / "model")  # of which they load their reference
    else:
        policy = causal_lm(model) if isinstance(model, str) else model
    given = {"train_dataset": pairs(), "processing_class": tokenizer()}
    if kind in ("DPO", "KTO", "OnlineDPO") and "peft_config" not in options and not hasattr(policy, "peft_config"):
        given["ref_model"] = causal_lm(model, seed=1) if isinstance(model, str) else causal_lm("llama", seed=1)
    given |= {name: options.pop(name) for name in TAKEN if name in options}
    return cls(model=policy, args=config(**{**settings, **options}), **given)


TAKEN = (
    "train_dataset",
    "eval_dataset",
    "processing_class",
    "ref_model",
    "peft_config",
    "reward_funcs",
    "data_collator",
)
"""Arguments of trainers; all others are their configurations'."""
