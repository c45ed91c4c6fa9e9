"""LLaMA-Factory on prefuse: DPO, ORPO, SimPO and KTO without the whole logits.

`accelerate` replaces the methods of `CustomDPOTrainer` and `CustomKTOTrainer` that call the model, and the function
that makes log-probabilities of its logits. The trainers' own code runs on: it gets something that stands for logits
[B, T, V] and knows of each row the log-probability of its label and the mean. Losses and metrics are theirs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from prefuse._patches import Acceleration, Patch, original, patch
from prefuse.integrations._places import Framework
from prefuse.models.causal_lm import check_fallback
from prefuse.trl.fused import Running
from prefuse.trl.gathered import Gathered, GatheringModel, Heads

__all__ = ["FRAMEWORK", "accelerate", "fit"]

FRAMEWORK = Framework("llamafactory", "llamafactory", ("0.9.5",))

DPO = "llamafactory.train.dpo.trainer"
KTO = "llamafactory.train.kto.trainer"
IGNORED = -100
"""The label of tokens that are not scored, for LLaMA-Factory as for prefuse."""


def accelerate(*, fallback: str = "logits", share_prompts: bool = False) -> Acceleration:
    """Have LLaMA-Factory's DPO, ORPO, SimPO and KTO make their log-probabilities with prefuse.

    Losses, gradients and logged numbers are LLaMA-Factory's own, but for rounding, with one exception. LLaMA-Factory
    0.9.5 over TRL 0.20 or later trains and logs the sigmoid loss whatever ``pref_loss`` says of those with a reference.
    Here "hinge" and "ipo" are what was asked for, and "kto_pair", which this TRL has not, is its ValueError.

    Call it before `llamafactory.train.tuner.run_exp`, in the process that trains, and in each of several.

    Args:
        fallback: for models whose head cannot be fused, as in `prefuse.head`: "logits" has them make their logits, with
            a warning; "error" refuses when they are called.
        share_prompts: run what rows of a batch begin with alike through the models once, as in `prefuse.head`. The
            logged mean logits, in which LLaMA-Factory counts padding, take it for the first token of the batch then.

    Returns:
        An `Acceleration`, to be used as context manager or until `remove`.

    Raises:
        ImportError: LLaMA-Factory is not installed.
        RuntimeError: the installed one differs where prefuse takes hold of it, or cannot be imported beside the
            installed TRL and transformers; nothing was changed.
        ValueError: another `fallback`.

    Example::

        import prefuse.integrations.llamafactory

        prefuse.integrations.llamafactory.accelerate()
        from llamafactory.train.tuner import run_exp

        run_exp()  # the command line's arguments, or run_exp({"stage": "dpo", …})
    """
    check_fallback(fallback)
    dpo, kto, names_loss = _places()
    made = Acceleration()
    heads = Heads(Running(fallback, share_prompts))
    made.add(None, heads.remove)
    for module in (dpo, kto):
        made.add(None, patch(module, "get_batch_logps", _get_batch_logps).remove)
    made.add(
        "CustomDPOTrainer.concatenated_forward (DPO, ORPO, SimPO)",
        patch(dpo.CustomDPOTrainer, "concatenated_forward", lambda here: _concatenated_forward(here, heads)).remove,
    )
    made.add(
        "CustomKTOTrainer.forward (KTO)",
        patch(kto.CustomKTOTrainer, "forward", lambda here: _kto_forward(here, heads)).remove,
    )
    if names_loss:
        made.add("CustomDPOTrainer.dpo_loss (pref_loss)", patch(dpo.CustomDPOTrainer, "dpo_loss", _dpo_loss).remove)
    made.left["SFT, reward modelling, PPO"] = "no log-probabilities of preferences"
    return made


def fit() -> str:
    """Why the installed LLaMA-Factory does not fit; empty where it does."""
    try:
        _places()
    except (ImportError, RuntimeError) as error:
        return str(error)
    return ""


def _places() -> tuple[Any, Any, bool]:
    """The modules of its DPO and KTO trainers, and whether TRL's loss is told its name by the caller."""
    FRAMEWORK.version()
    dpo, kto = FRAMEWORK.find(DPO), FRAMEWORK.find(KTO)
    for module in (dpo, kto):
        FRAMEWORK.check(module, "get_batch_logps", ("logits", "labels", "label_pad_token_id", "ld_alpha"))
    for module, name in ((dpo, "CustomDPOTrainer"), (kto, "CustomKTOTrainer")):
        if not hasattr(module, name):
            raise FRAMEWORK.moved(f"{module.__name__}.{name}")
    FRAMEWORK.check(dpo.CustomDPOTrainer, "concatenated_forward", ("self", "model", "batch", "is_ref_model"))
    FRAMEWORK.check(kto.CustomKTOTrainer, "forward", ("self", "model", "batch", "prefix"))
    dpo_loss = original(dpo.CustomDPOTrainer, "dpo_loss")
    if dpo_loss is None:
        raise FRAMEWORK.moved(f"{DPO}.CustomDPOTrainer.dpo_loss")
    return dpo, kto, "loss_type" in inspect.signature(dpo_loss).parameters


def _concatenated_forward(here: Patch, heads: Heads) -> Callable[..., Any]:
    def concatenated_forward(self: Any, model: Any, batch: Mapping[str, Any], is_ref_model: bool = False) -> Any:
        if here.active and not isinstance(model, GatheringModel):
            model = _gathering(heads, model, batch["labels"])
        return here.original(self, model, batch, is_ref_model)

    return concatenated_forward


def _kto_forward(here: Patch, heads: Heads) -> Callable[..., Any]:
    def forward(self: Any, model: Any, batch: Mapping[str, Any], prefix: str = "") -> Any:
        if here.active and not isinstance(model, GatheringModel):
            model = _gathering(heads, model, batch[f"{prefix}labels"])
        return here.original(self, model, batch, prefix)

    return forward


def _gathering(heads: Heads, model: Any, labels: Tensor) -> GatheringModel:
    return heads.gathering(model, lambda _: labels, ("mean_logits",))


def _dpo_loss(here: Patch) -> Callable[..., Any]:
    """TRL's loss of four log-probabilities, told which one was asked for."""

    def dpo_loss(self: Any, *arguments: Any, **options: Any) -> Any:
        if len(arguments) == 4:
            options.setdefault("loss_type", self.loss_type)
        return here.original(self, *arguments, **options)

    return dpo_loss


def _get_batch_logps(here: Patch) -> Callable[..., tuple[Tensor, Tensor]]:
    def get_batch_logps(
        logits: Any, labels: Tensor, label_pad_token_id: int = IGNORED, ld_alpha: float | None = None
    ) -> tuple[Tensor, Tensor]:
        if not isinstance(logits, Gathered):
            found: tuple[Tensor, Tensor] = here.original(logits, labels, label_pad_token_id, ld_alpha)
            return found
        if label_pad_token_id != IGNORED:
            raise ValueError(f"label_pad_token_id: expected {IGNORED}, got {label_pad_token_id}")
        return sequence_logps(logits.log_probs()[:, :-1], labels[:, 1:] != IGNORED, ld_alpha)

    return get_batch_logps


def sequence_logps(logps: Tensor, scored: Tensor, ld_alpha: float | None = None) -> tuple[Tensor, Tensor]:
    """LLaMA-Factory's log-probabilities of responses.

    Args:
        logps: [2B, T] of tokens, the chosen responses before the rejected ones; 0 where none is scored.
        scored: [2B, T], which tokens are.
        ld_alpha: LD-DPO's weight of the tokens by which one of a pair is longer than the other; None: 1.

    Returns:
        Their sums in nats, and how many tokens are scored: [2B] each.
    """
    lengths = scored.sum(-1)
    if ld_alpha is None:
        return logps.sum(-1), lengths
    shared = torch.minimum(*lengths.chunk(2)).repeat(2)
    end = scored.int().argmax(-1) + shared
    beyond = torch.arange(logps.shape[-1], device=logps.device) >= end.unsqueeze(-1)
    return torch.where(beyond, ld_alpha * logps, logps).sum(-1), lengths
