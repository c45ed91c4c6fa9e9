"""Tiny real models of transformers, made from their configurations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

VOCABULARY = 96
IMAGE = 4
"""The token that stands for an image; those of text are above."""

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "output_router_logits": True, "router_aux_loss_coef": 0.1}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "qwen3": ("Qwen3ForCausalLM", {"head_dim": 8}),
    "qwen3-tied": ("Qwen3ForCausalLM", {"head_dim": 8, "tie_word_embeddings": True}),
    "gemma2": (
        "Gemma2ForCausalLM",
        {"head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 2.0, "sliding_window": 64},
    ),
    "mixtral": ("MixtralForCausalLM", {"num_local_experts": 4, **_EXPERTS}),
    "qwen3-moe": ("Qwen3MoeForCausalLM", {"head_dim": 8, "num_experts": 4, "moe_intermediate_size": 16, **_EXPERTS}),
    "cohere": ("CohereForCausalLM", {"logit_scale": 0.25}),
    "granite": ("GraniteForCausalLM", {"logits_scaling": 4.0}),
    "hyperclovax": ("HyperCLOVAXForCausalLM", {"logits_scaling": 4.0}),
    "recurrent-gemma": (
        "RecurrentGemmaForCausalLM",
        {"logits_soft_cap": 2.0, "lru_width": 32, "block_types": ["recurrent", "attention"]},
    ),
    "phi": ("PhiForCausalLM", {}),  # its head has a bias
    "modernbert": (  # a transform comes before its head
        "ModernBertDecoderForCausalLM",
        {"cls_token_id": 1, "sep_token_id": 2, "tie_word_embeddings": False},
    ),
}


def causal_lm(family: str, seed: int = 0, **changes: Any) -> nn.Module:
    """A model of one of `FAMILIES` with random weights; `changes` to its configuration."""
    import transformers

    name, options = FAMILIES[family]
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    cls = getattr(transformers, name)
    torch.manual_seed(seed)
    model = cls(cls.config_class(**{**_SIZES, **options, **changes}))
    model.generation_config.eos_token_id = None
    with torch.no_grad():  # logits of some size, so that a cap or a scale shows
        model.get_output_embeddings().weight.mul_(8)
        if model.get_output_embeddings().bias is not None:
            model.get_output_embeddings().bias.normal_()
    return model


def saved(family: str, folder: Any, seed: int = 0) -> nn.Module:
    """The same as a model that was loaded from a folder, whose name it knows."""
    import transformers

    causal_lm(family, seed).save_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def vision_language_model(seed: int = 0) -> nn.Module:
    """A Llava of a CLIP tower of two patches by two, and a Llama."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=8,
                patch_size=4,
                projection_dim=16,
            ),
            text_config=LlamaConfig(**_SIZES),
            image_token_index=IMAGE,
            image_seq_length=4,
        )
    )
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8)
    return model
