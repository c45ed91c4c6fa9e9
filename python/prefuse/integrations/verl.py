"""verl's log-probabilities, entropies and Σp², by prefuse: ``prefuse.integrations.verl.accelerate()``.

With ``actor_rollout_ref.model.use_fused_kernels=True`` and the backend "torch" (or "liger") verl's models call
`FusedLinearForPPO` on hidden states, which runs on `prefuse.linear_token_stats` then; without it they make logits, and
`logprobs_from_logits`, `entropy_from_logits`, `entropy_from_logits_with_chunking` and
`calculate_sum_pi_squared_from_logits` run on `prefuse.token_stats`, each in one sweep.

verl's workers are processes of their own. ``actor_rollout_ref.model.external_lib=prefuse.integrations.on_import.verl``
(or the environment variable ``VERL_USE_EXTERNAL_MODULES``) has them import a module that makes this call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prefuse._patches import Acceleration, Patch
from prefuse.functional import token_logps, token_stats
from prefuse.integrations._functions import Make, replace
from prefuse.integrations._places import Framework
from prefuse.linear.functions import linear_token_stats
from prefuse.linear.plans import WHOLE_ROWS, WORKSPACE_BYTES

__all__ = [
    "VERL",
    "accelerate",
    "entropy_from_logits",
    "fused_linear_for_ppo",
    "logprobs_from_logits",
    "sum_pi_squared_from_logits",
]

VERL = Framework("verl", "verl", ("0.9.1",))

_FUNCTIONS = "verl.utils.torch_functional"
_FUSED = "verl.utils.experimental.torch_functional"
_TRITON = 'verl.utils.kernel.linear_cross_entropy (backend "triton")'


def accelerate() -> Acceleration:
    """Runs verl's log-probabilities, entropies and Σp² of this process on prefuse, whatever was imported before.

    Shapes are verl's, and so are dtypes but for one: of 16-bit logits `logprobs_from_logits` gives float32, as verl's
    own does with flash-attn; without flash-attn verl rounds them to 16 bits. Beyond verl's: a temperature per sample or
    token in `FusedLinearForPPO`, and labels of −100, whose numbers and gradients are 0. Tensors of other devices than
    CPU and CUDA go to verl's own functions.

    Returns:
        An `Acceleration`, whose `remove` puts verl's functions back.

    Raises:
        ImportError: verl is not installed.
        RuntimeError: the installed verl has other functions; nothing was changed.
    """
    VERL.version()
    functions, fused = VERL.find(_FUNCTIONS), VERL.find(_FUSED)
    head = getattr(fused, "FusedLinearForPPO", None)
    if head is None:
        raise VERL.moved(f"{_FUSED}.FusedLinearForPPO")
    VERL.check(head, "forward", ("self", "hidden_states", "vocab_weights", "input_ids", "temperature"))
    places: dict[str, tuple[tuple[str, ...], Make]] = {
        "logprobs_from_logits": (("logits", "labels", "inplace_backward"), _on_devices(_logprobs_as_verl)),
        "entropy_from_logits": (("logits",), _on_devices(entropy_from_logits)),
        "entropy_from_logits_with_chunking": (("logits", "chunk_size"), _on_devices(_entropy_in_float32)),
        "calculate_sum_pi_squared_from_logits": (("logits",), _without_gradient(sum_pi_squared_from_logits)),
    }
    for name, (parameters, _) in places.items():
        VERL.check(functions, name, parameters)

    acceleration = Acceleration()
    replace(acceleration, head, "forward", _fused_forward, f"{_FUSED}.FusedLinearForPPO")
    for name, (_, make) in places.items():
        replace(acceleration, functions, name, make, f"{_FUNCTIONS}.{name}")
    acceleration.left[_TRITON] = "set actor_rollout_ref.model.fused_kernel_options.impl_backend=torch"
    return acceleration


def fused_linear_for_ppo(
    hidden_states: Tensor,
    vocab_weights: Tensor,
    input_ids: Tensor,
    temperature: float | Tensor = 1.0,
    chunk_size: int = 512,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of ``z = hidden_states @ vocab_weights.T / temperature``, both differentiable.

    Args:
        hidden_states: [N, H] or [B, T, H].
        vocab_weights: [V, H].
        input_ids: [N] or [B, T], any integer dtype; −100 is not scored.
        temperature: a number above 0, or a tensor of such: one number, one for each sample ([B], beside [B, T, H]), or
            anything that expands to the shape of `input_ids`.
        chunk_size: of how many tokens logits may be in memory at a time, as verl's module has it. Of few tokens less
            are: a thirteenth, unless that is small beside the gradient of the weight.

    Returns:
        (log_probs float32, entropy in the dtype of `hidden_states`), in nats and in the shape of `input_ids`; 0 where
        it is −100. Both are float64 for float64.

    Raises:
        TypeError, ValueError: as `prefuse.linear_token_stats`.
    """
    if isinstance(temperature, Tensor) and input_ids.ndim == 2 and temperature.shape == input_ids.shape[:1]:
        temperature = temperature[:, None]
    workspace = _rows_at_a_time(chunk_size, hidden_states) * vocab_weights.shape[0] * vocab_weights.dtype.itemsize
    made = linear_token_stats(
        hidden_states,
        vocab_weights,
        input_ids,
        ("logp", "entropy"),
        temperature=temperature,
        workspace_bytes=min(workspace, WORKSPACE_BYTES),
    )
    return made.logp, made.entropy.to(hidden_states.dtype)


def _rows_at_a_time(chunk_size: int, hidden_states: Tensor) -> int:
    """Tokens whose logits take no more than a thirteenth of all, or a quarter of what the weight's gradient takes."""
    features = hidden_states.shape[-1]
    tokens = hidden_states.numel() // max(1, features)
    return min(max(1, chunk_size), max(WHOLE_ROWS, tokens // 13, features // 4))


def logprobs_from_logits(
    logits: Tensor, labels: Tensor, inplace_backward: bool = True, *, overwrites: bool = False
) -> Tensor:
    """Log-probabilities of `labels` [*lead] under `logits` [*lead, V] in nats, float32 (float64 for float64).

    Args:
        logits: any float dtype.
        labels: any integer dtype; those of −100 give 0.
        inplace_backward: the backward pass may write the gradient over `logits`.
        overwrites: it does so, where the layout of `logits` lets it; verl's own does with flash-attn alone.

    Raises:
        TypeError, ValueError: as `prefuse.token_logps`.
    """
    base = logits if logits._base is None else logits._base
    inplace = overwrites and inplace_backward and logits.is_contiguous() and not base.is_leaf
    return token_logps(logits, labels, inplace=inplace)


def entropy_from_logits(logits: Tensor) -> Tensor:
    """The entropy of each row of `logits` [*lead, V] in nats, [*lead] in their dtype, differentiable.

    A class whose logit is −inf takes no part; verl's own gives NaN there.
    """
    return _entropy(logits).to(logits.dtype)


def sum_pi_squared_from_logits(logits: Tensor) -> Tensor:
    """Σp² of each row of `logits` [*lead, V], [*lead] in their dtype, a constant for autograd."""
    made = token_stats(logits, _any_label(logits), "log_sum_sq")
    return made.log_sum_sq.exp().to(logits.dtype)


def _logprobs_as_verl(logits: Tensor, labels: Tensor, inplace_backward: bool = True) -> Tensor:
    """`logprobs_from_logits`, over the logits where verl's own would do so."""
    overwrites = bool(getattr(VERL.find(_FUNCTIONS), "FLAH_ATTN_CROSS_ENTROPY_LOSS_AVAILABLE", False))
    return logprobs_from_logits(logits, labels, inplace_backward, overwrites=overwrites)


def _entropy_in_float32(logits: Tensor, chunk_size: int = 2048) -> Tensor:
    """`entropy_from_logits_with_chunking`: no rows are cut into chunks, as nothing of their size is made."""
    return _entropy(logits)


def _entropy(logits: Tensor) -> Tensor:
    return token_stats(logits, _any_label(logits), "entropy").entropy


def _any_label(logits: Tensor) -> Tensor:
    return torch.zeros(logits.shape[:-1], dtype=torch.int64, device=logits.device)


def _fused_forward(patch: Patch) -> Callable[..., Any]:
    def forward(self: Any, hidden_states: Any, vocab_weights: Any, input_ids: Any, temperature: Any = 1.0) -> Any:
        if not _ours(patch, hidden_states):
            return patch.original(self, hidden_states, vocab_weights, input_ids, temperature)
        return fused_linear_for_ppo(hidden_states, vocab_weights, input_ids, temperature, self.chunk_size)

    return forward


def _on_devices(function: Callable[..., Tensor]) -> Make:
    """`function` in the place of verl's, which keeps the tensors of other devices."""

    def make(patch: Patch) -> Callable[..., Tensor]:
        def run(logits: Tensor, *args: Any, **kwargs: Any) -> Any:
            own = function if _ours(patch, logits) else patch.original
            return own(logits, *args, **kwargs)

        return run

    return make


def _without_gradient(function: Callable[..., Tensor]) -> Make:
    """`_on_devices`, and verl's own where a gradient is wanted, which `function` has none of."""

    def make(patch: Patch) -> Callable[..., Tensor]:
        def run(logits: Tensor) -> Any:
            differentiates = torch.is_grad_enabled() and logits.requires_grad
            own = function if _ours(patch, logits) and not differentiates else patch.original
            return own(logits)

        return run

    return make


def _ours(patch: Patch, tensor: Tensor) -> bool:
    return patch.active and tensor.device.type in ("cpu", "cuda")
