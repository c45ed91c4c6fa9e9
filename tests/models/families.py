"""A tiny random model of every family of transformers' auto mappings for causal, image-text and multimodal LMs."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

VOCABULARY = 99
MAPPINGS = ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")

_SIZES: dict[int, str] = {
    VOCABULARY: "vocab_size vocab_size_per_layer_input",
    64: "hidden_size n_embd d_model dim hidden_dim embed_dim width word_embed_proj_dim embedding_size lru_width "
    "attention_hidden_size emb_dim model_dim vision_hidden_size",
    96: "intermediate_size n_inner ffn_dim decoder_ffn_dim encoder_ffn_dim d_inner ffn_hidden_size dim_ff "
    "moe_intermediate_size shared_expert_intermediate_size block_ff_dim",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers depth num_experts_per_tok top_k "
    "moe_top_k num_key_value_heads num_kv_heads multi_query_groups num_hidden_groups",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads num_experts "
    "num_local_experts n_routed_experts moe_num_experts",
    16: "head_dim q_lora_rank kv_lora_rank v_head_dim qk_nope_head_dim",
    8: "qk_rope_head_dim patch_size rotary_dim",
    32: "image_size",
    128: "max_position_embeddings n_positions n_ctx max_seq_len sliding_window",
    0: "pad_token_id first_k_dense_replace",
    1: "bos_token_id n_group topk_group n_shared_experts",
    3: "eos_token_id",
}
_FIELDS: dict[str, Any] = {name: size for size, names in _SIZES.items() for name in names.split()} | {
    "logit_scale": 0.37,
    "logits_scaling": 2.7,
    "lm_head_multiplier": 0.61,
    "final_logit_softcapping": 3.0,
    "logits_soft_cap": 3.0,
    "logit_softcap": 3.0,
    "output_logit_soft_cap": 3.0,
    "output_multiplier": 0.71,
    "logits_mup_width_multiplier": 2.4,
    "dim_model_base": 24,
    "unpadded_vocab_size": VOCABULARY - 6,
    "is_decoder": True,
}
"""Small sizes, and numbers that transform logits off their defaults, set wherever a configuration has the field."""

_EXCEPTIONS: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1, "state_size": 16},
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1},
    "recurrent_gemma": {"num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 16, "num_key_value_heads": 1},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 96, "moe_top_k": 2},
    },
    "minicpm3": {"qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "head_dim": 24, "num_key_value_heads": 4},
    "jetmoe": {"num_key_value_heads": 2, "kv_channels": 16},
}
"""What a family needs where the usual numbers do not fit together."""


def families() -> list[tuple[str, str]]:
    """(family, name of the class), each once, in the order of transformers' mappings."""
    from transformers.models.auto import modeling_auto

    found: dict[tuple[str, str], None] = {}
    for mapping in MAPPINGS:
        for family, classes in getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES").items():
            for name in (classes,) if isinstance(classes, str) else classes:
                found[family, name] = None
    return list(found)


def build(family: str, name: str) -> nn.Module:
    """The model in float32 on the CPU, in eval mode. Raises whatever transformers raises where it does not fit."""
    import transformers

    cls = getattr(transformers, name)
    torch.manual_seed(0)
    config = cls.config_class(**_arguments(cls.config_class, family))
    if sum(p.numel() for p in _on_meta(cls, config).parameters()) > 3e7:
        raise ValueError("the small configuration leaves more than 30 million parameters")
    model: nn.Module = cls(config).float().eval()
    _shake(model)
    return model


def _on_meta(cls: Any, config: Any) -> nn.Module:
    import copy

    with torch.device("meta"):
        model: nn.Module = cls(copy.deepcopy(config))
    return model


def _arguments(config_class: Any, family: str) -> dict[str, Any]:
    names = set(inspect.signature(config_class.__init__).parameters)
    for cls in config_class.__mro__:
        names |= set(vars(cls).get("__annotations__", {}))
    chosen = {name: value for name, value in _FIELDS.items() if name in names}
    if "qk_rope_head_dim" in names:
        chosen["num_key_value_heads"] = 4  # latent attention expands to as many as there are heads
    for name, part in getattr(config_class, "sub_configs", {}).items():
        if hasattr(part, "model_type") and part.model_type:
            chosen[name] = _arguments(part, part.model_type)
    return chosen | _EXCEPTIONS.get(family, {})


def _shake(model: Any) -> None:
    generator = torch.Generator().manual_seed(1)

    def noise(tensor: torch.Tensor, deviation: float) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator) * deviation

    output = model.get_output_embeddings()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise(parameter, 0.08))
        if isinstance(getattr(output, "weight", None), torch.Tensor):
            output.weight.copy_(noise(output.weight, 0.5))
        if isinstance(getattr(output, "bias", None), torch.Tensor):
            output.bias.copy_(noise(output.bias, 1.0))
