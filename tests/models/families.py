"""A tiny random model of every family of transformers' auto mappings for causal, image-text and multimodal LMs."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

VOCABULARY = 99
MAPPINGS = ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")

_SIZES: dict[int, str] = {
    VOCABULARY: "vocab_size vocab_size_per_layer_input",
    64: "hidden_size n_embd d_model dim hidden_dim embed_dim width word_embed_proj_dim embedding_size lru_width "
    "attention_hidden_size emb_dim model_dim vision_hidden_size out_hidden_size text_hidden_size audio_hidden_size "
    "projection_dim projector_hidden_size hidden_size_global codebook_dim out_dim adapter_in_dim",
    96: "intermediate_size n_inner ffn_dim decoder_ffn_dim encoder_ffn_dim d_inner ffn_hidden_size dim_ff "
    "moe_intermediate_size shared_expert_intermediate_size block_ff_dim expert_ffn_hidden_size",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers depth num_experts_per_tok top_k "
    "moe_top_k moe_topk moe_k num_key_value_heads num_kv_heads multi_query_groups num_hidden_groups",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads num_experts "
    "num_local_experts n_routed_experts moe_num_experts",
    16: "head_dim q_lora_rank kv_lora_rank v_head_dim qk_nope_head_dim d_head hidden_size_per_layer_input "
    "zero_expert_num num_queries",
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
    **dict.fromkeys(("image_token_id", "image_token_index"), 90),
    **dict.fromkeys(("video_token_id", "video_token_index"), 91),
    **dict.fromkeys(("audio_token_id", "audio_token_index"), 92),
    "vision_start_token_id": 93,
    "vision_end_token_id": 94,
    "use_cache": False,  # caches of hybrid models are refused for so few layers
}
"""Small sizes, and numbers that transform logits off their defaults, set wherever a configuration has the field."""

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "encoder_layers", "decoder_layers")


def _rope(*sections: int) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)}}


_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16}
_LINEAR = {"linear_head_dim": 16, "linear_num_heads": 4}
_KIMI = {"num_expert_group": 1, "num_experts_per_token": 2, **_LINEAR}
_INDEX = {"index_n_heads": 4, "index_head_dim": 16}

_EXCEPTIONS: dict[str, dict[str, Any]] = {
    "apertus1p5": {
        "image_token_id": 90,
        "audio_token_id": 92,
        "image_token_offset": 92,
        "audio_token_offset": 95,
        "vision_config": {"codebook_size": 3, "base_channels": 32},
        "audio_config": {"codebook_size": 3},
    },
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    "bailing_hybrid": _KIMI,
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "big_bird": {"attention_type": "original_full"},
    "blt": {"encoder_hash_byte_group_vocab": 50},
    "granite4_vision": {"deepstack_layer_map": [[0, 0]], "spatial_target_layers": [1], "downsample_rate": "1/2"},
    "perception_lm": {
        "vision_config": {
            "architecture": "vit_tiny_patch16_224",
            "model_args": {"embed_dim": 64, "depth": 2, "num_heads": 4, "img_size": [32, 32], "patch_size": 8},
        }
    },
    "chameleon": {"vocabulary_map": {"<image>": 90}, "vq_config": {"base_channels": 32}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "cosmos3_edge_text": _rope(2, 3, 3),
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 96, "moe_top_k": 2},
    },
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"]},
    "diffusion_gemma_text": {"top_k_experts": 2},
    "dory": {
        "num_hidden_layers": 6,
        "n_input_layers": 2,
        "n_recurrent_layers": 2,
        "n_output_layers": 2,
        "layer_types": ["sliding_attention", "mlp", "full_attention", "mlp", "sliding_attention", "mlp"],
    },
    "dots3_note_audio_encoder": {"adapter_input_size": 64, "adapter_out_dim": 64},
    "dots3_note_text": {**_INDEX, "shared_experts_intermediate_size": 96, "layer_types": ["indexed_attention"] * 2},
    "dots3_note_vision_encoder": {"adapter_out_dim": 64},
    "emu3": {"vocabulary_map": {"<image>": 90}, "image_token_id": 90, "vq_config": {"base_channels": 32}},
    "ernie4_5_vl_moe_text": {**_rope(3, 3, 2), "moe_intermediate_size": [96, 48]},
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1},
    "fast_vlm": {"vision_config": {"architecture": "fastvit_t8"}},
    "florence_vision": {"embed_dim": [16, 32, 64, 64], "num_heads": [1, 2, 4, 4], "num_groups": [1, 2, 4, 4]},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 16}},
    "gemma3n_text": {"num_kv_shared_layers": 0, "intermediate_size": [96, 96], "laurel_rank": 16},
    "gemma3": {"mm_tokens_per_image": 4},
    "glm4v_moe_text": _rope(2, 1, 1),
    "glm4v_text": _rope(2, 3, 3),
    "glm5_next_text": {**_INDEX, **_LINEAR, "qk_rope_head_dim": 0, "qk_head_dim": 16},
    "glm_ocr_text": _rope(2, 3, 3),
    "granitemoehybrid": _MAMBA,
    "hunyuan_vl_text": _rope(2, 2, 2, 2),
    "hy_v4_vl_text": {**_INDEX, **_rope(2, 1, 1)},
    "janus_vqgan": {"num_embeddings": 32, "base_channels": 32, "image_token_embed_dim": 64},
    "jetmoe": {"num_key_value_heads": 2, "kv_channels": 16},
    "kimi_linear": _KIMI,
    "kyutai_speech_to_text": {"audio_pad_token_id": 98, "codec_config": {"upsample_groups": 64, "num_filters": 8}},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1, "state_size": 16},
    "minicpm3": {"qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "head_dim": 24, "num_key_value_heads": 4},
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}, "vision_config": {"image_size": [32, 32]}},
    "paddleocr_vl_text": _rope(2, 3, 3),
    "qwen2_5_omni_audio_encoder": {"output_dim": 64},
    "qwen2_5_omni_text": _rope(2, 3, 3),
    "qwen2_5_omni_thinker": {"vision_start_token_id": 93},
    "qwen2_5_vl_text": _rope(2, 3, 3),
    "qwen2_vl_text": _rope(2, 3, 3),
    "qwen3_omni_moe_audio_encoder": {"output_dim": 64},
    "qwen3_omni_moe_text": _rope(2, 3, 3),
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 93},
    "qwen4_exp_text": {
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "hc_lowrank": 16,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 16,
        "indexer_compress_ratio": 2,
    },
    "recurrent_gemma": {"num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 16, "num_key_value_heads": 1},
    "reformer": {
        "axial_pos_embds": False,
        "attention_head_size": 16,
        "feed_forward_size": 96,
        "hash_seed": 0,
        "num_buckets": 2,
        "hidden_dropout_prob": 0.0,
        "local_attention_probs_dropout_prob": 0.0,  # it draws its seeds from the clock
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
    },
    "shieldgemma2": {"mm_tokens_per_image": 4},
    "vipllava": {"vision_feature_layers": [-2, -1]},
    "xlstm": {"embedding_dim": 64, "num_blocks": 2},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
    },
    "zamba2": {"mamba_headdim": 16, "attention_head_dim": 32, "attention_hidden_size": 128, "hybrid_layer_ids": [1]},
    "zaya": {"num_experts_per_tok": 1},
}
"""What a kind of configuration needs where the usual numbers do not fit together."""


def families() -> list[tuple[str, str]]:
    """(family, name of the class), each once, in the order of transformers' mappings."""
    from transformers.models.auto import modeling_auto

    found: dict[tuple[str, str], None] = {}
    for mapping in MAPPINGS:
        for family, classes in getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES").items():
            for name in (classes,) if isinstance(classes, str) else classes:
                found[family, name] = None
    return list(found)


def build(family: str, name: str, tied: bool | None = None, **instead: Any) -> nn.Module:
    """The model in float32 on the CPU, in eval mode. Raises whatever transformers raises where it does not fit.

    Args:
        tied: whether embedding and head are; None: as the family's default.
        instead: numbers of the configuration, and of its parts, where it has them and they are not None.
    """
    import transformers

    cls = getattr(transformers, name)
    torch.manual_seed(0)
    config = cls.config_class.from_dict(_replaced(_small(cls.config_class().to_dict()), instead))
    if tied is not None:
        for part in (config, config.get_text_config()):
            part.tie_word_embeddings = tied
    count = sum(p.numel() for p in _on_meta(cls, config).parameters())
    if count > 3e7:
        raise ValueError(f"the small configuration leaves {count / 1e6:.0f} million parameters")
    model: nn.Module = cls(config).float().eval()
    _shake(model)
    return model


def _on_meta(cls: Any, config: Any) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = cls(copy.deepcopy(config))
    return model


def _replaced(whole: dict[str, Any], instead: dict[str, Any]) -> dict[str, Any]:
    parts = {name: _replaced(value, instead) for name, value in whole.items() if isinstance(value, dict)}
    return whole | parts | {name: value for name, value in instead.items() if whole.get(name) is not None}


def _small(whole: dict[str, Any]) -> dict[str, Any]:
    """The configuration, as a dictionary, and its parts, with few layers of each kind and small sizes."""
    kept = _kept_layers(whole)
    layers = next((whole[name] for name in _LAYERS if isinstance(whole.get(name), int)), len(_types(whole)))
    small: dict[str, Any] = {}
    for name, value in whole.items():
        if name in ("transformers_version", "architectures", "dtype", "per_layer_config"):
            continue
        if isinstance(value, dict) and "model_type" in value:
            small[name] = _small(value)
        elif isinstance(value, (list, tuple)) and len(value) == layers and layers > 2:
            small[name] = [value[i] for i in kept]
        elif name in _FIELDS and not isinstance(value, (list, tuple, dict)):
            small[name] = _FIELDS[name]
        else:
            small[name] = value
    if "qk_rope_head_dim" in whole:
        small["num_key_value_heads"] = 4  # latent attention expands to as many as there are heads
        if whole.get("head_dim") == whole["qk_rope_head_dim"]:
            small["head_dim"] = _FIELDS["qk_rope_head_dim"]
    if "qk_head_dim" in whole:
        small["qk_head_dim"] = 24
    for name, value in _EXCEPTIONS.get(whole.get("model_type", ""), {}).items():
        part = small.get(name)
        small[name] = part | value if isinstance(part, dict) and isinstance(value, dict) else value
    return small


def _kept_layers(whole: dict[str, Any]) -> tuple[int, int]:
    """The first layer, and the first of another type if there is one."""
    types = _types(whole)
    return 0, next((i for i, kind in enumerate(types) if kind != types[0]), 1)


def _types(whole: dict[str, Any]) -> list[str]:
    """What each layer is, where the configuration says it."""
    return next(
        (whole[name] for name in ("layer_types", "layers_block_type", "mlp_layer_types") if whole.get(name)), []
    )


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
