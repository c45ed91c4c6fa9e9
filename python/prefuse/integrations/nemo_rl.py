"""NeMo-RL's log-probabilities from hidden states, by prefuse.

``prefuse.integrations.nemo_rl.accelerate()`` replaces `from_parallel_hidden_states_to_logprobs`, which its Megatron
policies call with ``use_linear_ce_fusion_loss``. The line is called in each worker, before the model is built.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

from prefuse._patches import Acceleration, Patch
from prefuse.integrations._functions import replace
from prefuse.integrations._places import Framework
from prefuse.integrations.megatron import IGNORED, token_stats

__all__ = ["NEMO_RL", "accelerate", "hidden_states_to_logprobs"]

NEMO_RL = Framework("nemo-rl", "nemo_rl", ("0.6.0",))

_PLACE = "nemo_rl.distributed.model_utils"
_NAME = "from_parallel_hidden_states_to_logprobs"
_PARAMETERS = (
    "tensor_parallel_hidden_states",
    "output_weight_layer",
    "runtime_gather_output",
    "target",
    "vocab_start_index",
    "vocab_end_index",
    "tp_group",
    "inference_only",
    "cp_group",
    "chunk_size",
)


def accelerate() -> Acceleration:
    """Runs NeMo-RL's log-probabilities from hidden states of this process on prefuse.

    Its other functions, which take logits, stay: policies without ``use_linear_ce_fusion_loss`` run as before.

    Returns:
        An `Acceleration`, whose `remove` puts NeMo-RL's function back.

    Raises:
        ImportError: nemo-rl is not installed.
        RuntimeError: the installed one has another function; nothing was changed.
    """
    NEMO_RL.version()
    functions = NEMO_RL.find(_PLACE)
    NEMO_RL.check(functions, _NAME, _PARAMETERS)

    def make(patch: Patch) -> Any:
        def run(tensor_parallel_hidden_states: Tensor, *arguments: Any, **options: Any) -> Any:
            ours = patch.active and tensor_parallel_hidden_states.device.type in ("cpu", "cuda")
            function = hidden_states_to_logprobs if ours else patch.original
            return function(tensor_parallel_hidden_states, *arguments, **options)

        return run

    acceleration = Acceleration()
    replace(acceleration, functions, _NAME, make, f"{_PLACE}.{_NAME}")
    return acceleration


def hidden_states_to_logprobs(
    tensor_parallel_hidden_states: Tensor,
    output_weight_layer: Tensor,
    runtime_gather_output: bool,
    target: Tensor,
    vocab_start_index: int,
    vocab_end_index: int,
    tp_group: Any,
    inference_only: bool = False,
    cp_group: Any = None,
    chunk_size: int | None = None,
) -> Tensor:
    """log p of each next token in nats, from sequence-parallel hidden states and this rank's rows of the head.

    Args:
        tensor_parallel_hidden_states: [S / P, B, H] of this rank.
        output_weight_layer: [V / P, H] of this rank.
        runtime_gather_output: not read, as in NeMo-RL.
        target: [B, S], the tokens, aligned with the inputs and the same on all ranks.
        vocab_start_index: of this rank's first class: its rank times V / P.
        vocab_end_index: not read: the rows of the weight say where this rank's classes end.
        tp_group: the tensor-parallel process group.
        inference_only: no gradient will come.
        cp_group: a context-parallel group of one process, or None.
        chunk_size: of how many positions logits may be in memory at a time; None: as much as the head chooses.

    Returns:
        [B, S − 1], float32, the same on all ranks.

    Raises:
        ValueError: several context-parallel processes; classes that do not begin where the rank says.
        TypeError, ValueError: as `prefuse.integrations.megatron.token_stats`.
    """
    if cp_group is not None and (size := dist.get_world_size(cp_group)) > 1:
        raise ValueError(f"cp_group: expected one process, as NeMo-RL's own function does, got {size}")
    first = dist.get_rank(tp_group) * output_weight_layer.shape[0]
    if vocab_start_index != first:
        raise ValueError(f"vocab_start_index: expected {first}, this rank times its rows, got {vocab_start_index}")
    labels = target.roll(-1, -1)
    labels[:, -1] = IGNORED
    workspace: dict[str, Any] = {}
    if chunk_size is not None:
        row_bytes = output_weight_layer.shape[0] * output_weight_layer.dtype.itemsize
        workspace = {"workspace_bytes": max(1, chunk_size * target.shape[0] * row_bytes)}
    found = token_stats(
        tensor_parallel_hidden_states,
        output_weight_layer,
        labels,
        group=tp_group,
        sequence_parallel=dist.get_world_size(tp_group) > 1,
        differentiable=() if inference_only else None,
        **workspace,
    )
    return found.logp[:, :-1]
