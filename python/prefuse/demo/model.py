"""The demo's language model: a Qwen3 of `transformers`, small and randomly initialised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prefuse.packing import PackedBatch, tree_attention

_HEAD_WIDTH = 32
_LONGEST = 128
_SPREAD = 0.05


def small_model(vocabulary: int, width: int, layers: int, seed: int) -> nn.Module:
    """A randomly initialised Qwen3 with tied embeddings, float32, on the CPU.

    Every attention layer begins with an output projection that is the transpose of its (orthogonal) value projection:
    what a head attends to it passes on unchanged, so that picking words out of the prompt is where training starts and
    not what its first thousand steps go into. The feed-forward layers begin as zero.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // _HEAD_WIDTH,
        num_key_value_heads=width // _HEAD_WIDTH,
        head_dim=_HEAD_WIDTH,
        max_position_embeddings=_LONGEST,
        initializer_range=_SPREAD,
        tie_word_embeddings=True,
        use_cache=False,
    )
    model = Qwen3ForCausalLM(config)
    for layer in model.model.layers:
        attention = layer.self_attn
        nn.init.orthogonal_(attention.v_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
        with torch.no_grad():
            attention.o_proj.weight.copy_(attention.v_proj.weight.T)
    made: nn.Module = model
    return made


def logits_of(model: Any, tokens: Tensor, packed: PackedBatch | None = None) -> Tensor:
    """Logits [R, T, V] of token ids [R, T]. Padding is on the right, where causal attention never looks: no mask.

    With `packed`, the same tokens as `prefuse.packing.share` packs them, what rows begin with alike is computed once.
    """
    if packed is None:
        logits: Tensor = model(input_ids=tokens).logits
        return logits
    with tree_attention():
        hidden = model.model(**packed.model_inputs()).last_hidden_state
    logits = model.lm_head(packed.unpack(hidden))
    return logits
