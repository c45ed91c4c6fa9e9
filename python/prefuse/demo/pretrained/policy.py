"""A pretrained model with LoRA, its adapters off as the reference, and the passes of both through the fused head."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import prefuse.models.head as fused
from prefuse._backends.rows import REFERENCE_STATISTICS
from prefuse.language import Objective
from prefuse.losses.columns import reading

from ..batches import IGNORED, Batch, laid_out
from ..scored import Scored, known_columns, roles_of

RANK = 16
_MISMATCHED = ("kl_logps", "ref_kl_logps")
_PAIR = ("chosen", "rejected")


class Passes(NamedTuple):
    """The model's passes over batches.

    Attributes:
        model: with adapters; without them it is the reference.
        head: the fused head of it.
        pad: the token that fills batches up.
        sparse: gradients of the head through short lists: probabilities below are rounded at random.
    """

    model: Any
    head: fused.Head
    pad: int
    sparse: float | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def score(self, objective: Objective, batch: Batch, *, compare: bool = False) -> Scored:
        """The objective of a batch; the reference runs where that or `compare` asks for it."""
        inputs = self.inputs(batch)
        beside = self._beside(objective, batch, inputs)
        before = self.head.tokens.computed
        score = self.head.preference_loss(
            objective,
            labels=batch.labels,
            inputs=inputs,
            statistics=("logp",),
            sparse=self.sparse,
            **beside,
            **known_columns(objective, batch),
        )
        computed = self.head.tokens.computed - before if self.head.share_prompts else batch.tokens.numel()
        there = beside.get("reference")
        if there is not None and there.shape == batch.labels.shape:
            there = there.sum(-1)
        elif compare:
            there = self.reference(lambda: self.head.sequence_logps(batch.labels, inputs=inputs))
        return Scored(score, score.statistics["logp"].sum(-1).detach(), there if compare else None, computed)

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """The model's arguments; padding is on the right, where causal attention never looks, and masked."""
        lengths = (batch.labels != IGNORED).int().cumsum(1).argmax(1)[:, None]  # the place of the last scored token
        mask = torch.arange(batch.tokens.shape[1]) <= lengths
        return {"input_ids": batch.tokens, "attention_mask": mask.long()}

    def reference(self, run: Callable[[], Tensor]) -> Tensor:
        """What `run` gives of the model without adapters."""
        without: AbstractContextManager[None] = self.model.disable_adapter()
        with torch.no_grad(), without:
            return run()

    def _beside(self, objective: Objective, batch: Batch, inputs: dict[str, Tensor]) -> dict[str, Any]:
        """What of the reference, and of answers to other prompts, the objective reads."""
        beside: dict[str, Any] = {}
        names = {need.name for need in reading(objective, ()).needs if need.name in REFERENCE_STATISTICS}
        if names - {"ref_logp"}:  # divergences, which are made of the reference's hidden states
            beside["reference"] = self.reference(lambda: self.hidden(batch, inputs))
        elif names:
            beside["reference"] = self.reference(lambda: self.head.token_logps(batch.labels, inputs=inputs))
        if set(_MISMATCHED) <= set(objective.columns):
            other = mismatched(batch, self.pad)
            given = self.inputs(other)

            def logps() -> Tensor:
                return self.head.sequence_logps(other.labels, inputs=given)

            with torch.no_grad():
                beside |= {"kl_logps": logps(), "ref_kl_logps": self.reference(logps)}
        return beside

    def hidden(self, batch: Batch, inputs: dict[str, Tensor]) -> Tensor:
        """The last hidden states [R, T, H]."""
        hidden: Tensor = self.head.run(lambda hidden, tensors: hidden, labels=batch.labels, inputs=inputs)
        return hidden


def with_lora(
    model: Any, tokenizer: Any, seed: int, *, share_prompts: bool = False, sparse: float | None = None
) -> Passes:
    """Adapters on every linear layer but the head, whose weights stay frozen."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    return Passes(adapted, fused.head(adapted, share_prompts=share_prompts), tokenizer.pad_token_id, sparse)


def check_fed(objective: Objective) -> None:
    """Refuses an objective that reads a third response, of which pairs have none.

    Raises:
        TypeError: it reads one; the message names it.
    """
    if more := [role for role in roles_of(objective) if role not in _PAIR]:
        raise TypeError(f"{objective.name} reads a response {more[0]!r}; expected an objective of chosen and rejected")


def mismatched(batch: Batch, pad: int) -> Batch:
    """Every prompt of a batch with the response of the next pair: what KTO estimates the divergence from."""
    rows = []
    for row in range(len(batch.tokens)):
        role, pair = divmod(row, batch.pairs)
        other = role * batch.pairs + (pair + 1) % batch.pairs
        start = int((batch.labels[row] != IGNORED).int().argmax())
        response = batch.labels[other][batch.labels[other] != IGNORED]
        rows.append((batch.tokens[row, :start].tolist(), response.tolist()))
    return laid_out(rows, batch.pairs, pad)
