"""The demo's language model: a Qwen3 of `transformers`, small and randomly initialised."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prefuse.functional import sequence_logps
from prefuse.language import Objective
from prefuse.packing import PackedBatch, share, tree_attention

from .batches import Batch
from .scored import Scored, needs_reference, score

_SHORTEST_SHARED = 8  # tokens; the demo's prompts are short
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


class Models(NamedTuple):
    """The policy and the frozen model that it is compared with."""

    policy: nn.Module
    reference: nn.Module

    def score(
        self, objective: Objective, batch: Batch, *, share_prompts: bool = False, compare: bool = False
    ) -> Scored:
        """A pass of both over a batch, from logits; the reference runs where the objective or `compare` asks for it."""
        packed = share(batch.tokens, minimum=_SHORTEST_SHARED) if share_prompts else None
        wanted = needs_reference(objective)
        with torch.no_grad():
            reference = logits_of(self.reference, batch.tokens, packed) if wanted or compare else None
            logps_there = None if reference is None else sequence_logps(reference, batch.labels, shift=True)
        logits = logits_of(self.policy, batch.tokens, packed)
        logps = sequence_logps(logits.detach(), batch.labels, shift=True)
        return Scored(
            score(objective, logits, batch, reference if wanted else None),
            logps,
            logps_there if compare else None,
            batch.tokens.numel() if packed is None else packed.tree.tokens,
        )
