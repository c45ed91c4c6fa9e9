"""Modules in the place of LLaMA-Factory and ms-swift, where these are not installed.

They have the names and parameters that prefuse looks for, and in our own words what those functions compute: which
positions are scored, what is averaged, what the loss is called with. The real ones run in `real_llamafactory` and
`real_swift`.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def install(monkeypatch: Any, distribution: str, version: str, modules: dict[str, types.ModuleType]) -> None:
    """Makes modules importable, and a version of a distribution known."""
    known: Callable[[str], str] = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: version if name == distribution else known(name))
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def module(name: str, **attributes: Any) -> types.ModuleType:
    """A module whose classes and functions say that they are from there."""
    made = types.ModuleType(name)
    for key, value in attributes.items():
        if isinstance(value, type | types.FunctionType):
            value.__module__ = name
        setattr(made, key, value)
    return made


def packages(*names: str) -> dict[str, types.ModuleType]:
    """Modules that others are below."""
    found = {}
    for name in names:
        found[name] = types.ModuleType(name)
        found[name].__path__ = []  # type: ignore[attr-defined]
    return found


def label_logps(logits: Tensor, labels: Tensor) -> Tensor:
    """log p of each label by its row, 0 where it is −100."""
    scored = labels != -100
    logps: Tensor = logits.float().log_softmax(-1).gather(-1, labels.where(scored, 0).unsqueeze(-1)).squeeze(-1)
    return logps.where(scored, 0.0)


def llamafactory() -> dict[str, types.ModuleType]:
    """Version 0.9.5 over TRL 0.24: the loss has a name by default, and is called without one."""

    def get_batch_logps(
        logits: Tensor, labels: Tensor, label_pad_token_id: int = -100, ld_alpha: float | None = None
    ) -> tuple[Tensor, Tensor]:
        logps, scored = label_logps(logits[:, :-1], labels[:, 1:]), labels[:, 1:] != label_pad_token_id
        lengths = scored.sum(1)
        if ld_alpha is not None:
            half = len(labels) // 2
            for row, values in enumerate(logps):
                shared = int(min(lengths[row % half], lengths[row % half + half]))
                at = scored[row].nonzero()[shared:, 0]
                weights = torch.ones_like(values).index_fill(0, at, ld_alpha)
                logps = torch.cat([logps[:row], (values * weights)[None], logps[row + 1 :]])
        return logps.sum(1), lengths

    class Trl:
        def dpo_loss(
            self,
            chosen_logps: Tensor,
            rejected_logps: Tensor,
            ref_chosen_logps: Tensor,
            ref_rejected_logps: Tensor,
            loss_type: str = "sigmoid",
            model_output: Any = None,
        ) -> str:
            return loss_type

    class CustomDPOTrainer(Trl):
        loss_type = "sigmoid"
        ld_alpha: float | None = None

        def concatenated_forward(self, model: Any, batch: Any, is_ref_model: bool = False) -> dict[str, Any]:
            inputs = dict(batch)
            labels = inputs.pop("labels")
            logits = model(**inputs, return_dict=True, use_cache=False).logits.to(torch.float32)
            alpha = None if is_ref_model else self.ld_alpha
            logps, lengths = made.get_batch_logps(logits=logits, labels=labels, ld_alpha=alpha)
            chosen, rejected = logits.split(len(labels) // 2, dim=0)
            return {"logps": logps, "lengths": lengths, "logits": torch.stack([chosen.mean(), rejected.mean()])}

        def loss(self, *logps: Tensor) -> str:
            return self.dpo_loss(*logps)

    class CustomKTOTrainer:
        def forward(self, model: Any, batch: Any, prefix: str = "") -> tuple[Any, Tensor, Tensor]:
            inputs = {name: batch[prefix + name] for name in ("input_ids", "attention_mask")}
            logits = model(**inputs, return_dict=True, use_cache=False).logits.to(torch.float32)
            logps, lengths = kto.get_batch_logps(logits=logits, labels=batch[f"{prefix}labels"])
            return logits, logps, logps / lengths

    dpo_name, kto_name = "llamafactory.train.dpo.trainer", "llamafactory.train.kto.trainer"
    made: Any = module(dpo_name, get_batch_logps=get_batch_logps, CustomDPOTrainer=CustomDPOTrainer)
    kto: Any = module(kto_name, get_batch_logps=get_batch_logps, CustomKTOTrainer=CustomKTOTrainer)
    parents = ("llamafactory", "llamafactory.train", "llamafactory.train.dpo", "llamafactory.train.kto")
    return {**packages(*parents), dpo_name: made, kto_name: kto}


def swift() -> dict[str, types.ModuleType]:
    """Version 4.6.0 over TRL 0.29."""

    def selective_log_softmax(logits: Tensor, index: Tensor) -> Tensor:
        return logits.log_softmax(-1).gather(-1, index.unsqueeze(-1)).squeeze(-1)

    class RLHFTrainerMixin:
        is_encoder_decoder = False
        temperature = 0.7

        def __init__(self, multimodal: bool = False, sequence_parallel_size: int = 1) -> None:
            self.model = types.SimpleNamespace(model_meta=types.SimpleNamespace(is_multimodal=multimodal))
            self.template = types.SimpleNamespace(sequence_parallel_size=sequence_parallel_size)

        def get_per_token_logps(
            self, logits: Tensor, labels: Tensor, label_pad_token_id: int = -100, reduction: str = "mean"
        ) -> tuple[Tensor, Tensor, Tensor]:
            scored = labels != label_pad_token_id
            logps = mixin.selective_log_softmax(logits, labels.where(scored, 0))
            means = logits.mean(-1) if reduction == "mean" else logits.sum(-1)
            logps[~scored] = 0
            means[~scored] = 0
            return logps, means, scored

        def concatenated_forward(self, model: Any, batch: Any) -> tuple[Any, ...]:
            labels = batch["labels"]
            logits = model(**{n: v for n, v in batch.items() if n != "labels"}, use_cache=False).logits
            half = len(labels) // 2
            nll = F.cross_entropy(
                logits[:half, :-1].contiguous().view(-1, logits.shape[-1]), labels[:half, 1:].reshape(-1)
            )
            targets = labels[:, 1:]
            logps = trl_cpo.selective_log_softmax(logits[:, :-1], targets.where(targets != -100, 0))
            return (logps * (targets != -100)).sum(-1), nll, logits[:half].detach().mean()

    class DPOTrainer(RLHFTrainerMixin):
        def concatenated_forward(self, model: Any, batch: Any, is_ref_model: bool = False) -> tuple[Tensor, ...]:
            inputs = dict(batch)
            labels = inputs.pop("labels")
            keep = inputs.get("logits_to_keep")
            logits = model(**inputs, use_cache=False).logits
            if isinstance(keep, Tensor):
                labels = F.pad(labels[:, labels[0] != -100], (1, 0), value=-100)
            elif keep:
                labels = labels[:, -keep:]
            return self.get_per_token_logps(logits, labels.roll(-1, 1))

    class KTOTrainer(RLHFTrainerMixin):
        def forward(self, model: Any, batch: Any) -> list[tuple[Tensor, ...]]:
            found = []
            for prefix in ("KL_completion_", "completion_"):
                inputs = {n: batch[prefix + n] for n in ("input_ids", "attention_mask")}
                labels = batch[f"{prefix}labels"].roll(-1, 1)
                assert model.training  # the model's own attributes are there
                found.append(self.get_per_token_logps(model(**inputs).logits, labels, reduction="sum"))
            return found

    class HFTrainer:
        def concatenated_forward(self, model: Any, batch: Any) -> None: ...

    class GRPOTrainer(RLHFTrainerMixin):
        def _get_logps_via_local_forward(
            self, model: Any, model_inputs: Any, logits_to_keep: int, input_ids: Tensor, compute_entropy: bool = False
        ) -> tuple[Tensor, Tensor | None]:
            logits = model(**model_inputs, logits_to_keep=logits_to_keep + 1, use_cache=False).logits
            logits = logits[:, -(logits_to_keep + 1) : -1] / self.temperature
            entropy = torch.distributions.Categorical(logits=logits).entropy() if compute_entropy else None
            return grpo.selective_log_softmax(logits, input_ids[:, -logits_to_keep:]), entropy

    trl_cpo: Any = module("trl_stand_in.cpo", selective_log_softmax=selective_log_softmax, HFTrainer=HFTrainer)
    folder = "swift.rlhf_trainers"
    mixin: Any = module(
        f"{folder}.rlhf_mixin", RLHFTrainerMixin=RLHFTrainerMixin, selective_log_softmax=selective_log_softmax
    )
    grpo: Any = module(f"{folder}.grpo_trainer", GRPOTrainer=GRPOTrainer, selective_log_softmax=selective_log_softmax)
    others = [
        module(f"{folder}.dpo_trainer", DPOTrainer=DPOTrainer),
        module(f"{folder}.kto_trainer", KTOTrainer=KTOTrainer),
        types.ModuleType(f"{folder}.cpo_trainer"),
        types.ModuleType(f"{folder}.orpo_trainer"),
    ]
    others[2].HFCPOTrainer = others[3].HFORPOTrainer = HFTrainer  # type: ignore[attr-defined]
    found = {each.__name__: each for each in (mixin, grpo, trl_cpo, *others)}
    return {**packages("swift", folder, "trl_stand_in"), **found}
