"""`share_prompts=True` in TRL's trainers and in `PreferenceTrainer`: the same training, with prompts computed once."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import pytest
from datasets import Dataset

from prefuse.models.causal_lm import find_causal_lm
from prefuse.models.sharing import Counts, counts
from tests.trl import running
from tests.trl.running import assert_same, make, train
from tests.trl.test_accelerate import lora

pytestmark = pytest.mark.filterwarnings("ignore")

WORDS = 12


def pairs() -> Dataset:
    """Pairs with prompts of 24 tokens and more."""
    return running.pairs(words=WORDS)


def judged() -> Dataset:
    """Each prompt twice in a row, with a response that was liked and one that was not."""
    made = pairs()
    rows = [(row["prompt"], row[role], role == "chosen") for row in made for role in ("chosen", "rejected")]
    prompts, completions, labels = (list(column) for column in zip(*rows, strict=True))
    return Dataset.from_dict({"prompt": prompts, "completion": completions, "label": labels})


def lists() -> Dataset:
    """Prompts with three responses each."""
    made = pairs()
    completions = [[row["chosen"], row["rejected"], row["reference"]] for row in made]
    return Dataset.from_dict(
        {"prompt": made["prompt"], "completions": completions, "label": [[2.0, 0.0, 1.0]] * len(made)}
    )


def answered() -> Dataset:
    """Each prompt twice in a row, with a completion each."""
    return judged().remove_columns("label")


def prompts() -> Dataset:
    return pairs().select_columns(["prompt"])


GENERATED = {
    "train_dataset": prompts,
    "reward_funcs": running.reward,
    "num_generations": 4,
    "max_completion_length": 5,
    "per_device_train_batch_size": 4,
    "beta": 0.1,
    "temperature": 0.7,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dpo": ("DPO", {}),
    "dpo, LoRA, accumulation, checkpointing": (
        "DPO",
        {"peft_config": lambda: lora("q_proj"), "gradient_accumulation_steps": 2, "gradient_checkpointing": True},
    ),
    "dpo, precomputed reference, router loss": ("DPO", {"precompute_ref_log_probs": True, "model": "qwen3-moe"}),
    "kto": (
        "KTO",
        {"train_dataset": judged, "per_device_train_batch_size": 4, "train_sampling_strategy": "sequential"},
    ),
    "simpo, sliding windows": ("CPO", {"loss_type": "simpo", "cpo_alpha": 0.0, "model": "gemma2"}),
    "orpo": ("ORPO", {}),
    "tpo": ("TPO", {}),
    "sft": (
        "SFT",
        {"train_dataset": answered, "per_device_train_batch_size": 4, "train_sampling_strategy": "sequential"},
    ),
    "online dpo": (
        "OnlineDPO",
        {"train_dataset": prompts, "reward_funcs": running.reward, "max_new_tokens": 5},
    ),
    "grpo": ("GRPO", GENERATED),
    "grpo, pass of the policy before": ("GRPO", {**GENERATED, "num_iterations": 2}),
    "rloo": ("RLOO", GENERATED),
}


@contextlib.contextmanager
def spared(trainer: Any, least: float) -> Iterator[None]:
    """The policy and its reference have computed fewer tokens than they were given."""
    precomputed = getattr(trainer.args, "precompute_ref_log_probs", False)  # before the training
    models = [trainer.model, None if precomputed else getattr(trainer, "ref_model", None)]
    found = [find_causal_lm(model) for model in models if model is not None]
    before = [copy.copy(counts(causal_lm)) for causal_lm in found]
    yield
    for causal_lm, earlier in zip(found, before, strict=True):
        made: Counts = counts(causal_lm).since(earlier)
        assert made.spared > least, made


@pytest.mark.parametrize("case", CASES)
def test_trls_trainers(case, tmp_path):
    kind, options = CASES[case]

    def made() -> Any:
        own = {
            name: value() if callable(value) and name != "reward_funcs" else value for name, value in options.items()
        }
        return make(kind, tmp_path, **{"train_dataset": pairs(), **own})

    expected = train(made, "plain")
    how = ("before", "after")[list(CASES).index(case) % 2]
    least = 0.5 if kind in ("GRPO", "RLOO") else 0.2  # of groups, in all of their passes
    found = train(made, how, lambda trainer: spared(trainer, least), share_prompts=True)
    # Mean logits are taken of padding, too, whose hidden states are others.
    for run in (expected, found) if kind in ("CPO", "ORPO", "TPO") else ():
        for entry in run.logs:
            for name in [name for name in entry if name.startswith("logits/")]:
                del entry[name]
    assert_same(found, expected, rtol=1e-4, atol=1e-5)


OURS: dict[str, dict[str, Any]] = {
    "dpo": {"train_dataset": pairs},
    "simpo, packed": {"objective": "simpo", "padding_free": True, "train_dataset": pairs},
    "tdpo1": {"train_dataset": pairs},  # reads hidden states of the reference
    "lipo": {"train_dataset": lists},
    "kto": {"train_dataset": judged, "per_device_train_batch_size": 4},  # runs completions of other prompts, too
}


@pytest.mark.parametrize("case", OURS)
def test_our_trainer(case, tmp_path):
    made: list[Any] = []

    options = {"objective": case.partition(",")[0], **OURS[case], "train_sampling_strategy": "sequential"}

    def run(share: bool) -> running.Run:
        own = {name: value() if callable(value) else value for name, value in options.items()}
        made.append(None)

        def trainer() -> Any:
            made[-1] = make("Preference", tmp_path, share_prompts=share, **own)
            return made[-1]

        return train(trainer, "plain")

    expected, found = run(False), run(True)
    if made[-1].ref_model is not None:
        # Of KTO, each prompt once for its own two completions and for two of other prompts.
        assert counts(find_causal_lm(made[-1].ref_model)).spared > (0.55 if case == "kto" else 0.2)
    for entry in found.logs[:-1]:
        assert entry.pop("prompts/spared") > 0.2
    assert_same(found, expected, rtol=1e-4, atol=1e-5)
