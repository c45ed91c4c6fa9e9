"""What means over tokens are divided by: the tokens of all micro-batches of an optimiser step, in all processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from prefuse.language import Objective
from prefuse.losses.preference import batch_totals
from prefuse.trl.batches import labels_of, responses_in
from prefuse.trl.requirements import MISMATCHED


def mean_totals(
    objective: Objective, batches: Sequence[Mapping[str, Any]], accelerator: Any, together: bool
) -> dict[str, float]:
    """The arguments of `preference_loss` with which the losses of `batches` average to that of all as one batch.

    Args:
        objective: with its hyper-parameters set.
        batches: the micro-batches of one step of this process.
        accelerator: whose processes average their gradients: a collective call.
        together: whether a micro-batch is scored together with those of the other processes (`data_group`).
    """
    totals = [_totals_of(objective, batch) for batch in batches]
    if not totals or not totals[0]:
        return {}
    own = torch.tensor([list(each.values()) for each in totals], dtype=torch.float64).sum(0)
    if accelerator.num_processes > 1:
        dtype = torch.float32 if accelerator.device.type == "mps" else torch.float64
        own = accelerator.reduce(own.to(accelerator.device, dtype), reduction="sum")
    calls = len(batches) * (1 if together else accelerator.num_processes)
    return dict(zip(totals[0], (own / calls).tolist(), strict=True))


def _totals_of(objective: Objective, batch: Mapping[str, Any]) -> dict[str, float]:
    labels, columns = labels_of(batch), dict(batch.get("columns", {}))
    if "mismatched" in batch:  # of the models, so no total depends on them
        columns |= dict.fromkeys(MISMATCHED, torch.zeros(responses_in(batch), device=labels.device))
    groups = batch.get("groups") if "groups" in objective.columns else None
    return batch_totals(
        objective, labels=labels, shift=True, groups=groups, cu_seqlens=batch.get("cu_seqlens"), **columns
    )
