"""OpenRLHF's log-probabilities, entropies and DPO loss, by prefuse: ``prefuse.integrations.openrlhf.accelerate()``.

`Actor.forward`, from which the PPO-like, DPO and SFT trainers have their log-probabilities, scores tokens inside of the
model's forward by the fused head: no logits are made, and no float32 copy of them. `log_probs_from_logits` and
`compute_entropy` make one sweep over logits, `DPOLoss` is prefuse's dpo or ipo.

OpenRLHF's PPO-like trainers run in Ray's workers. Ray calls
``runtime_env={"worker_process_setup_hook": "prefuse.integrations.openrlhf.accelerate"}`` in each of them; its other
trainers (``openrlhf.cli.train_dpo``) run where they are called. docs/integrations.md has both.
"""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from prefuse._patches import Acceleration, Patch, original
from prefuse.functional import token_logps, token_stats
from prefuse.integrations._functions import Make, replace
from prefuse.integrations._places import Framework
from prefuse.models.head import Head, HeadTensors, head
from prefuse.objectives import dpo, ipo

__all__ = ["OPENRLHF", "accelerate", "compute_entropy", "dpo_loss", "log_probs_from_logits"]

OPENRLHF = Framework("openrlhf", "openrlhf", ("0.11.2",))

_FORWARDS = frozenset({"e455e46bd10d4592"})
"""Sources of `Actor.forward` that ours stands for."""

_ACTOR = "openrlhf.models.actor"
_UTILS = "openrlhf.models.utils"
_LOSS = "openrlhf.models.loss"


def accelerate() -> Acceleration:
    """Runs OpenRLHF's log-probabilities, entropies and DPO loss of this process on prefuse.

    All results are float32, as those of `Actor.forward` are; of 16-bit logits `log_probs_from_logits` gives float32,
    too, where OpenRLHF's own rounds to 16 bits, and it leaves the caller's logits as they are at any temperature.
    The output that `Actor.forward` returns beside log-probabilities has no ``logits``; where logits alone are asked
    for, OpenRLHF's own forward runs.

    Returns:
        An `Acceleration`, whose `remove` puts OpenRLHF's functions and the models' forwards back.

    Raises:
        ImportError: OpenRLHF is not installed.
        RuntimeError: the installed OpenRLHF has other functions, or cannot be imported; nothing was changed.
    """
    OPENRLHF.version()
    actor, utils, loss = (OPENRLHF.find(path) for path in (_ACTOR, _UTILS, _LOSS))
    for module, name in ((actor, "Actor"), (loss, "DPOLoss")):
        if not hasattr(module, name):
            raise OPENRLHF.moved(f"{module.__name__}.{name}")
    for name in ("unpad_and_slice_tensor", "gather_and_pad_tensor"):
        if not hasattr(actor, name):
            raise OPENRLHF.moved(f"{_ACTOR}.{name}")
    OPENRLHF.check_source(actor.Actor, "forward", _FORWARDS)
    OPENRLHF.check(loss.DPOLoss, "forward", ("self", *_DPO))
    OPENRLHF.check(utils, "log_probs_from_logits", ("logits", "labels", "temperature"))
    OPENRLHF.check(utils, "compute_entropy", ("logits",))

    acceleration = Acceleration()
    acceleration.add(None, functools.partial(_give_back, actor.Actor))
    replace(acceleration, actor.Actor, "forward", functools.partial(_forward, actor), f"{_ACTOR}.Actor.forward")
    replace(acceleration, loss.DPOLoss, "forward", _dpo_forward, f"{_LOSS}.DPOLoss")
    functions: dict[str, Callable[..., Tensor]] = {
        "log_probs_from_logits": log_probs_from_logits,
        "compute_entropy": compute_entropy,
    }
    for name, function in functions.items():
        replace(acceleration, utils, name, _while_active(function), f"{_UTILS}.{name}")
    return acceleration


def log_probs_from_logits(logits: Tensor, labels: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """Log-probabilities of `labels` [*lead] under ``logits / temperature`` [*lead, V] in nats.

    Args:
        logits: any float dtype; they are not changed.
        labels: any integer dtype; those of −100 give 0.
        temperature: a number above 0, or a tensor of such that expands to [*lead].

    Returns:
        [*lead], float32 (float64 for float64 logits).

    Raises:
        TypeError, ValueError: as `prefuse.token_logps`.
    """
    return token_logps(logits, labels, temperature=temperature)


def compute_entropy(logits: Tensor) -> Tensor:
    """The entropy of each row of `logits` [*lead, V] in nats, [*lead] in their dtype, differentiable."""
    labels = torch.zeros(logits.shape[:-1], dtype=torch.int64, device=logits.device)
    return token_stats(logits, labels, "entropy").entropy.to(logits.dtype)


_DPO = ("policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps")


def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    ipo: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """What OpenRLHF's `DPOLoss` returns.

    Args:
        policy_chosen_logps: [B], sums over the responses, and so are the others.
        policy_rejected_logps: [B].
        reference_chosen_logps: [B].
        reference_rejected_logps: [B].
        beta: of the objective; rewards are `beta` times the log-ratio.
        label_smoothing: ε of conservative DPO; without meaning for `ipo`.
        ipo: prefuse's ipo (of sums), otherwise dpo.

    Returns:
        (loss, the mean over pairs; chosen rewards [B]; rejected rewards [B]), rewards without a gradient.
    """
    columns = {
        "chosen_logps": policy_chosen_logps,
        "rejected_logps": policy_rejected_logps,
        "ref_chosen_logps": reference_chosen_logps,
        "ref_rejected_logps": reference_rejected_logps,
    }
    smoothing = {} if ipo or not label_smoothing else {"label_smoothing": label_smoothing}
    score = (_IPO if ipo else dpo)(beta=beta, **smoothing)(**columns)
    chosen = beta * (policy_chosen_logps - reference_chosen_logps).detach()
    rejected = beta * (policy_rejected_logps - reference_rejected_logps).detach()
    return score.loss, chosen, rejected


_IPO = ipo


def _dpo_forward(patch: Patch) -> Callable[..., Any]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not patch.active:
            return patch.original(self, *args, **kwargs)
        return dpo_loss(*args, **kwargs, beta=self.beta, label_smoothing=self.label_smoothing, ipo=self.ipo)

    return forward


def _while_active(function: Callable[..., Tensor]) -> Make:
    def make(patch: Patch) -> Callable[..., Tensor]:
        def run(*args: Any, **kwargs: Any) -> Any:
            return (function if patch.active else patch.original)(*args, **kwargs)

        return run

    return make


def _forward(module: Any, patch: Patch) -> Callable[..., Any]:
    """`Actor.forward` without logits."""

    def forward(
        self: Any,
        sequences: Tensor,
        action_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_output: bool = False,
        allgather_logits: bool = False,
        return_logprobs: bool = False,
        ring_attn_group: Any = None,
        packed_seq_lens: list[int] | None = None,
        return_entropy: bool = False,
        **mm_inputs: Any,
    ) -> Any:
        wants_logits = action_mask is None and not return_logprobs
        refused = wants_logits or (return_entropy and not return_output)
        fused = _head(self.model) if patch.active and not refused else None
        if fused is None:
            return patch.original(
                self,
                sequences,
                action_mask,
                attention_mask,
                return_output,
                allgather_logits,
                return_logprobs,
                ring_attn_group,
                packed_seq_lens,
                return_entropy,
                **mm_inputs,
            )
        if fused.fresh:
            _MODELS.add(fused.causal_lm)
        columns = None if action_mask is None or return_entropy else action_mask
        inputs, labels, padded = _inputs(module, self, sequences, attention_mask, columns, ring_attn_group, mm_inputs)

        def inside(hidden: Tensor, tensors: HeadTensors) -> dict[str, Tensor]:
            names = ("logp", "entropy") if return_entropy else ("logp",)
            made = tensors.token_stats(hidden, tensors.given_labels(), names, temperature=self.temperature)
            aux_loss = {} if tensors.aux_loss is None else {"aux_loss": tensors.aux_loss}
            return {**{name: value.float() for name, value in made.items()}, **aux_loss}

        found = fused.run(inside, labels=labels, inputs=inputs)
        log_probs = padded(found["logp"])[:, :-1]
        if action_mask is not None:
            log_probs = log_probs[:, -action_mask.shape[1] :] * action_mask.float()
        if not return_output:
            return log_probs
        return log_probs, _output(found, padded(found["entropy"])[:, :-1] if return_entropy else None)

    return forward


def _inputs(
    module: Any,
    actor: Any,
    sequences: Tensor,
    attention_mask: Tensor | None,
    action_mask: Tensor | None,
    group: Any,
    mm_inputs: dict[str, Any],
) -> tuple[dict[str, Any], Tensor, Callable[[Tensor], Tensor]]:
    """The model's arguments; labels that say what follows each token; and what makes [B, T] of a number per label."""
    if getattr(actor, "packing_samples", False):
        ids, positions, labels, pad, indices = module.unpad_and_slice_tensor(sequences, attention_mask, group)

        def padded(found: Tensor) -> Tensor:
            whole: Tensor = module.gather_and_pad_tensor(found, group, pad, indices, *sequences.shape)
            return whole

        return {"input_ids": ids, "attention_mask": None, "position_ids": positions, **mm_inputs}, labels, padded
    labels = sequences.roll(-1, 1)
    labels[:, -1] = -100  # nothing follows, and its column is cut off
    if action_mask is not None:  # the tokens before are cut off
        first = max(0, labels.shape[1] - 1 - action_mask.shape[1])
        labels[:, :first] = -100
        labels[:, first:-1].masked_fill_(action_mask == 0, -100)
    inputs: dict[str, Any] = {"input_ids": sequences, "attention_mask": attention_mask, **mm_inputs}
    if getattr(actor, "is_vlm", False):
        inputs |= _token_types(actor, sequences, mm_inputs)
    else:
        if attention_mask is None:
            raise TypeError("attention_mask: missing")
        inputs["position_ids"] = (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 1)
    return inputs, labels, lambda found: found


def _token_types(actor: Any, sequences: Tensor, mm_inputs: Mapping[str, Any]) -> dict[str, Tensor | None]:
    """For vision-language models: which tokens are images' (1) and videos' (2); they count positions themselves."""
    if not mm_inputs:
        return {"position_ids": None}
    config = actor._vlm_config
    types = (sequences == config.image_token_id).int()
    video = getattr(config, "video_token_id", None)
    if video is not None:
        types[sequences == video] = 2
    name = "mm_token_type_ids" if "image_grid_thw" in mm_inputs else "token_type_ids"
    return {"position_ids": None, name: types}


def _output(found: Mapping[str, Tensor], entropy: Tensor | None) -> Any:
    """What `Actor.forward` returns beside log-probabilities: the model's output, of which these parts are read."""
    from transformers.modeling_outputs import MoeCausalLMOutputWithPast

    output = MoeCausalLMOutputWithPast(aux_loss=found.get("aux_loss"))
    if entropy is not None:
        output.entropy = entropy
    return output


_MODELS: weakref.WeakSet[Any] = weakref.WeakSet()
"""Those that have a fused head because of us."""


def _give_back(actor: Any) -> None:
    """The models' own forwards, once nobody wants ours in the actor's place."""
    if original(actor, "forward") is not actor.forward:
        return
    for model in list(_MODELS):
        head(model).remove()
    _MODELS.clear()


def _head(model: Any) -> Head | None:
    """The fused head of a transformers causal LM; a warning says so where there is none inside."""
    try:
        return head(model)
    except TypeError as error:
        warnings.warn(f"prefuse: OpenRLHF's own forward runs: {error}", stacklevel=3)
        return None
