"""ms-swift on prefuse: DPO, KTO, CPO (with SimPO), ORPO and GRPO without the whole logits.

`accelerate` replaces the methods of ms-swift's trainers that call the model. For all but GRPO the trainers' own code
runs on: it gets something that stands for logits and knows of each row the log-probability of its label and the mean.
Losses and metrics are theirs. `selective_log_softmax` is replaced too, for the paths that still make logits.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from prefuse._arguments.layout import shift_left
from prefuse._patches import Acceleration, Patch, patch
from prefuse.compat.trl import selective_log_softmax, token_outputs
from prefuse.integrations._places import Framework
from prefuse.models.causal_lm import HeadTensors, check_fallback
from prefuse.trl.fused import Running
from prefuse.trl.gathered import Gathered, GatheringModel, Heads

__all__ = ["FRAMEWORK", "accelerate", "fit"]

FRAMEWORK = Framework("ms-swift", "swift", ("4.6.0",))

TRAINERS = "swift.rlhf_trainers"
IGNORED = -100
"""The label of tokens that are not scored, for ms-swift as for prefuse."""

LEFT = {
    "multimodal models": "ms-swift turns images into embeddings in a hook that drops what it does not know; they make "
    "their logits, and prefuse their log-probabilities",
    "sequence parallelism": "the logits of a response lie on several processes, each makes its own, and prefuse their "
    "log-probabilities",
    "use_liger_kernel of GRPO": "Liger's loss runs as it did",
    "GKD, PPO, reward modelling": "no log-probabilities of this kind",
}


def accelerate(*, fallback: str = "logits", share_prompts: bool = False) -> Acceleration:
    """Have ms-swift's DPO, KTO, CPO, ORPO and GRPO make their log-probabilities with prefuse.

    Losses, gradients and logged numbers are ms-swift's own, but for rounding: of 16-bit models it rounds
    log-probabilities to their dtype, and prefuse keeps float32.

    Call it before `swift.pipelines.rlhf_main`, in the process that trains, and in each of several.

    Args:
        fallback: for models whose head cannot be fused, as in `prefuse.head`: "logits" has them make their logits, with
            a warning; "error" refuses when they are called.
        share_prompts: run what rows of a batch begin with alike through the models once, as in `prefuse.head`. Mean
            logits, which CPO and ORPO log of padding, too, take it for the first token of the batch then.

    Returns:
        An `Acceleration`, to be used as context manager or until `remove`.

    Raises:
        ImportError: ms-swift is not installed.
        RuntimeError: the installed one differs where prefuse takes hold of it, or cannot be imported; nothing was
            changed.
        ValueError: another `fallback`.

    Example::

        import prefuse.integrations.swift

        prefuse.integrations.swift.accelerate()
        from swift.pipelines import rlhf_main

        rlhf_main()  # the command line's arguments behind "swift rlhf", or a list of them
    """
    check_fallback(fallback)
    places = _places()
    made = Acceleration()
    heads = Heads(Running(fallback, share_prompts))
    made.add(None, heads.remove)
    for module in places.functions:
        made.add(None, patch(module, "selective_log_softmax", _selective_log_softmax).remove)
    for place, owner, name, make in (
        (None, places.mixin, "get_per_token_logps", _get_per_token_logps),
        ("DPOTrainer", places.dpo, "concatenated_forward", _dpo),
        ("KTOTrainer", places.kto, "forward", _kto),
        ("CPOTrainer, ORPOTrainer", places.mixin, "concatenated_forward", _cpo),
        ("GRPOTrainer", places.grpo, "_get_logps_via_local_forward", _grpo),
    ):
        made.add(place, patch(owner, name, functools.partial(make, heads)).remove)
    made.left.update(LEFT)
    return made


def fit() -> str:
    """Why the installed ms-swift does not fit; empty where it does."""
    try:
        _places()
    except (ImportError, RuntimeError) as error:
        return str(error)
    return ""


class _Places:
    """Where prefuse takes hold of it.

    Attributes:
        mixin, dpo, kto, grpo: classes.
        functions: modules with a function `selective_log_softmax`.
    """

    def __init__(self) -> None:
        modules = {
            name: FRAMEWORK.find(f"{TRAINERS}.{name}")
            for name in ("rlhf_mixin", "dpo_trainer", "kto_trainer", "cpo_trainer", "orpo_trainer", "grpo_trainer")
        }
        self.mixin = _class(modules["rlhf_mixin"], "RLHFTrainerMixin")
        self.dpo = _class(modules["dpo_trainer"], "DPOTrainer")
        self.kto = _class(modules["kto_trainer"], "KTOTrainer")
        self.grpo = _class(modules["grpo_trainer"], "GRPOTrainer")
        self.functions = [modules["rlhf_mixin"], modules["grpo_trainer"]]
        for name, base in (("cpo_trainer", "HFCPOTrainer"), ("orpo_trainer", "HFORPOTrainer")):
            trl = importlib.import_module(_class(modules[name], base).__module__)
            FRAMEWORK.check(_class(modules[name], base), "concatenated_forward", ("self", "model", "batch"))
            self.functions.append(trl)


def _places() -> _Places:
    FRAMEWORK.version()
    places = _Places()
    for module in places.functions:
        FRAMEWORK.check(module, "selective_log_softmax", ("logits", "index"))
    for owner, name, parameters in (
        (places.mixin, "get_per_token_logps", ("logits", "labels", "label_pad_token_id", "reduction")),
        (places.mixin, "concatenated_forward", ("model", "batch")),
        (places.dpo, "concatenated_forward", ("model", "batch", "is_ref_model")),
        (places.kto, "forward", ("model", "batch")),
        (
            places.grpo,
            "_get_logps_via_local_forward",
            ("model", "model_inputs", "logits_to_keep", "input_ids", "compute_entropy"),
        ),
    ):
        FRAMEWORK.check(owner, name, ("self", *parameters))
    return places


def _class(module: Any, name: str) -> Any:
    if not hasattr(module, name):
        raise FRAMEWORK.moved(f"{module.__name__}.{name}")
    return getattr(module, name)


class KeepingModel(GatheringModel):
    """A model to call for `Gathered` logits of some positions: `logits_to_keep` of transformers'."""

    def __call__(self, input_ids: Tensor, logits_to_keep: Any = None, **inputs: Any) -> Any:
        """The model's output: see `GatheringModel`."""
        found = super().__call__(input_ids, **inputs)
        if isinstance(logits_to_keep, Tensor):
            found.logits = found.logits[:, logits_to_keep]
        elif logits_to_keep:
            found.logits = found.logits[:, -logits_to_keep:]
        return found


def _gathering(heads: Heads, model: Any, labels_of: Callable[[Tensor], Tensor]) -> KeepingModel:
    # ms-swift predicts the first label of a row by its last position; it is always ignored, as it is here.
    return KeepingModel(heads.of(model), labels_of, ("mean_logits",))


def _left(trainer: Any, model: Any) -> bool:
    """Whether its logits are made as they were: see `LEFT`."""
    return (
        isinstance(model, GatheringModel)
        or trainer.is_encoder_decoder
        or trainer.template.sequence_parallel_size > 1
        or trainer.model.model_meta.is_multimodal
    )


def _dpo(heads: Heads, here: Patch) -> Callable[..., Any]:
    def concatenated_forward(self: Any, model: Any, batch: Mapping[str, Any], is_ref_model: bool = False) -> Any:
        if here.active and not _left(self, model):
            model = _gathering(heads, model, lambda _: batch["labels"])
        return here.original(self, model, batch, is_ref_model)

    return concatenated_forward


def _cpo(heads: Heads, here: Patch) -> Callable[..., Any]:
    """Of CPO and ORPO, which score the same labels: ms-swift gives ORPO no tokens of the prompt."""

    def concatenated_forward(self: Any, model: Any, batch: Mapping[str, Any]) -> Any:
        if here.active and not _left(self, model):
            model = _gathering(heads, model, lambda _: batch["labels"])
        return here.original(self, model, batch)

    return concatenated_forward


def _kto(heads: Heads, here: Patch) -> Callable[..., Any]:
    def forward(self: Any, model: Any, batch: Mapping[str, Any]) -> Any:
        def labels_of(tokens: Tensor) -> Tensor:
            # The model is called twice, on these very tensors.
            kind = "KL_completion" if tokens is batch.get("KL_completion_input_ids") else "completion"
            labels: Tensor = batch[f"{kind}_labels"]
            return labels

        if here.active and not _left(self, model):
            model = _gathering(heads, model, labels_of)
        return here.original(self, model, batch)

    return forward


def _grpo(heads: Heads, here: Patch) -> Callable[..., Any]:
    def _get_logps_via_local_forward(
        self: Any,
        model: Any,
        model_inputs: Mapping[str, Any],
        logits_to_keep: int,
        input_ids: Tensor,
        compute_entropy: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if not here.active or _left(self, model):
            found: tuple[Tensor, Tensor | None] = here.original(
                self, model, model_inputs, logits_to_keep, input_ids, compute_entropy
            )
            return found
        inputs = {name: value for name, value in model_inputs.items() if name not in ("labels", "logits_to_keep")}
        return response_stats(heads, model, inputs, input_ids, logits_to_keep, self.temperature, compute_entropy)

    return _get_logps_via_local_forward


def response_stats(
    heads: Heads,
    model: Any,
    inputs: Mapping[str, Any],
    input_ids: Tensor,
    count: int,
    temperature: float,
    entropy: bool,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities, and entropies where these are asked for, of the last `count` tokens of each row: [B, count].

    Args:
        heads: of the models.
        model: a causal LM, wrapped or not.
        inputs: of the model.
        input_ids: [B, T].
        count: of tokens that are scored.
        temperature: above 0.
        entropy: whether it is asked for.
    """
    at = torch.arange(input_ids.shape[1], device=input_ids.device)
    labels = input_ids.where(at >= input_ids.shape[1] - count, IGNORED)

    def inside(hidden: Tensor, tensors: HeadTensors) -> dict[str, Tensor]:
        targets = shift_left(tensors.given_labels(), None, IGNORED, None)[0]
        outputs = ("entropy",) if entropy else ()
        logps, entropies, *_ = token_outputs(hidden, targets, outputs, tensors, temperature=temperature)
        return {"logps": logps} if entropies is None else {"logps": logps, "entropies": entropies}

    found = heads.of(model).run(inside, labels=labels, inputs=inputs)
    kept = {name: values[:, -(count + 1) : -1] for name, values in found.items()}
    return kept["logps"], kept.get("entropies")


def _get_per_token_logps(_: Heads, here: Patch) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    def get_per_token_logps(
        self: Any, logits: Any, labels: Tensor, label_pad_token_id: int = IGNORED, reduction: str = "mean"
    ) -> tuple[Tensor, Tensor, Tensor]:
        if not isinstance(logits, Gathered):
            found: tuple[Tensor, Tensor, Tensor] = here.original(self, logits, labels, label_pad_token_id, reduction)
            return found
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction: expected 'mean' or 'sum', got {reduction!r}")
        if label_pad_token_id != IGNORED or logits.shape[:-1] != labels.shape:
            raise ValueError(
                f"labels: expected {tuple(logits.shape[:-1])}, ignored where {IGNORED}, got {tuple(labels.shape)}, "
                f"ignored where {label_pad_token_id}"
            )
        scored = labels != IGNORED
        means = logits.mean(-1).where(scored, 0.0)
        return logits.log_probs(), means * logits.shape[-1] if reduction == "sum" else means, scored

    return get_per_token_logps


def _selective_log_softmax(_: Patch) -> Callable[..., Tensor]:
    def of_logits(logits: Any, index: Tensor) -> Tensor:
        return logits.log_probs() if isinstance(logits, Gathered) else selective_log_softmax(logits, index)

    return of_logits
