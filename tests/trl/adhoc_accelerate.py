"""`prefuse.trl.accelerate`: TRL's trainers log the same numbers and end at the same weights."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
class TrlsFunction:
    @staticmethod
    def forward(): ...

from prefuse.compat.trl import ChunkedLogProbFunction
from prefuse.trl import fused, gathered
from tests.integration.models import vision_language_model
from tests.trl import running
from tests.trl.running import assert_same, make, train

pytestmark = pytest.mark.filterwarnings("ignore")

GENERATED = {
    "train_dataset": running.prompts,
    "reward_funcs": running.reward,
    "num_generations": 2,
    "max_completion_length": 5,
}


def lora(*modules: str) -> Any:
    peft = pytest.importorskip("peft")
    return peft.LoraConfig(r=2, target_modules=list(modules), task_type="CAUSAL_LM", init_lora_weights=False)


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dpo": ("DPO", {}),
    "dpo of two losses, softcap": ("DPO", {"model": "gemma2", "loss_type": ["sigmoid", "apo_zero"]}),
    "dpo, router loss": ("DPO", {"model": "mixtral"}),
    "dpo, router loss of Qwen": ("DPO", {"model": "qwen3-moe"}),
    "dpo, tied embeddings, WPO's weights": ("DPO", {"model": "qwen3-tied", "use_weighting": True}),
    "dpo, LoRA, accumulation, checkpointing": (
        "DPO",
        {
            "model": "qwen3",
            "peft_config": lambda: lora("q_proj", "v_proj"),
            "gradient_accumulation_steps": 2,
            "gradient_checkpointing": True,
        },
    ),
    "dpo, precomputed reference": ("DPO", {"precompute_ref_log_probs": True}),
    "dpo, sft and ipo": ("DPO", {"loss_type": ["sft", "ipo"], "loss_weights": [1.0, 0.1]}),
    "dpo, length": ("DPO", {"ld_alpha": 0.4, "f_divergence_type": "js_divergence"}),
    "dpo, discopop, evaluated": ("DPO", {"loss_type": ["discopop", "aot"], "loss_weights": [1.0, 1.0]}),
    "dpo, bf16": ("DPO", {"bf16": True}),
    "dpo with images": (
        "DPO",
        {
            "model": vision_language_model,
            "train_dataset": running.illustrated,
            "processing_class": running.processor,
            "max_length": None,
        },
    ),
    "kto": ("KTO", {"train_dataset": running.unpaired, "per_device_train_batch_size": 4}),
    "kto, LoRA, tied embeddings": (
        "KTO",
        {"model": "qwen3-tied", "train_dataset": running.unpaired, "peft_config": lambda: lora("q_proj")},
    ),
    "sft, tied embeddings": ("SFT", {"model": "qwen3-tied", "train_dataset": running.unpaired}),
    "sft without padding, router loss": (
        "SFT",
        {"model": "mixtral", "train_dataset": running.unpaired, "padding_free": True, "max_length": None},
    ),
    "sft, packed": ("SFT", {"train_dataset": running.unpaired, "packing": True, "max_length": 32}),
    "grpo": ("GRPO", {**GENERATED, "beta": 0.1, "temperature": 0.7}),
    "grpo, head in float32, quantile of entropy": (
        "GRPO",
        {**GENERATED, "model": "gemma2", "top_entropy_quantile": 0.5, "cast_lm_head_to_fp32": True, "beta": 0.0},
    ),
    "grpo, LoRA, bonus of entropy": (
        "GRPO",
        {**GENERATED, "model": "qwen3", "beta": 0.1, "entropy_coef": 0.1, "peft_config": lambda: lora("q_proj")},
    ),
    "grpo, tied embeddings, bonus of entropy": (
        "GRPO",
        {**GENERATED, "model": "qwen3-tied", "beta": 0.0, "entropy_coef": 0.1},
    ),
    "rloo, tied embeddings": ("RLOO", {**GENERATED, "model": "qwen3-tied", "beta": 0.1}),
    "cpo, bf16": ("CPO", {"bf16": True}),
    "cpo, router loss": ("CPO", {"model": "mixtral"}),
    "simpo, softcap": ("CPO", {"model": "gemma2", "loss_type": "simpo", "cpo_alpha": 0.0}),
    "orpo": ("ORPO", {"gradient_accumulation_steps": 2}),
    "orpo, LoRA on the head, checkpointing": (
        "ORPO",
        {"model": "qwen3-tied", "peft_config": lambda: lora("q_proj", "lm_head"), "gradient_checkpointing": True},
    ),
    "tpo": ("TPO", {"model": "qwen3-moe"}),
    "tpo, of average, tied embeddings": ("TPO", {"model": "qwen3-tied", "loss_type": "tpo-l"}),
    "tpo without likelihood, softcap": ("TPO", {"model": "gemma2", "tpo_alpha": 0.0}),
    "online dpo": (
        "OnlineDPO",
        {"train_dataset": running.prompts, "reward_funcs": running.reward, "max_new_tokens": 5},
    ),
}


def refusing(like: Any) -> Any:
    @functools.wraps(like)
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the logits were made")

    return refuse


@contextlib.contextmanager
def no_logits(trainer: Any) -> Iterator[None]:
    """Refuses TRL's kernel and what stands in its place; and the LM head where nothing is generated.

    The few tokens with which the head is proven may pass.
    """
    places = [(TrlsFunction, "forward"), (ChunkedLogProbFunction, "apply")]
    linear, head = nn.Linear.forward, set()
    if type(trainer).__name__ in ("CPOTrainer", "ORPOTrainer", "TPOTrainer", "DPOTrainer", "KTOTrainer"):
        head = set(trainer.model.get_output_embeddings().modules())

    def forward(self: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
        if self in head and hidden.shape[:-1].numel() > 6:
            raise AssertionError("the logits were made")
        return linear(self, hidden)

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in places:
            patch.setattr(owner, name, refusing(getattr(owner, name)))
        patch.setattr(nn.Linear, "forward", forward)
        yield


@pytest.mark.parametrize("case", CASES)
def test_the_same_training(case, tmp_path, monkeypatch):
    kind, options = CASES[case]

    def made() -> Any:
        own = {
            name: value() if callable(value) and name != "reward_funcs" else value for name, value in options.items()
        }
        return make(kind, tmp_path, **own)

    expected = train(made, "plain")
    calls = []
    for module in (fused, gathered):
        counted = module.token_outputs
        monkeypatch.setattr(module, "token_outputs", lambda *a, f=counted, **k: calls.append(1) or f(*a, **k))
    rtol = 5e-3 if options.get("bf16") else 1e-4
    plain = case == kind.lower() or kind == "OnlineDPO"
    for how in ("before", "after") if plain else ("after",) if list(CASES).index(case) % 2 else ("before",):
        calls.clear()
        assert_same(train(made, how, no_logits), expected, rtol=rtol, atol=0.1 * rtol)
        assert len(calls) >= 3
