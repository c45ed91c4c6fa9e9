"""The line that a training begins with: that prefuse runs the model's head, by which plan, and what is spared.

It comes once for each model, with its first batch that has gradients. The logger "prefuse.trl.training_line" set to a
level above INFO leaves it out.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn

from prefuse._display.notes import logger_of, note
from prefuse.linear.plans import Plan
from prefuse.models.sharing import Counts

_log = logger_of(__name__)
_said: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def say(causal_lm: nn.Module, what: str, plan: Plan | None, tokens: int, shared: Counts | None) -> None:
    """Says it, if it has not been said of this model.

    Args:
        causal_lm: the model inside of its wrappers.
        what: what is trained.
        plan: of the head's pass; None: the model makes its logits itself.
        tokens: of the batch, prompts and padding included.
        shared: tokens of the batch and those that were computed; None where prompts are not shared.
    """
    if causal_lm in _said:
        return
    _said.add(causal_lm)
    note(_log, f"prefuse: {what}, {'; '.join(_parts(plan, tokens, shared))}")


def teller(causal_lm: nn.Module, hidden: Tensor, shared: Counts | None) -> Callable[[Plan | None], None] | None:
    """Who to tell the plan of a pass over [B, T, H] hidden states; nobody without gradients, or where it was said."""
    if torch.compiler.is_compiling() or causal_lm in _said or not hidden.requires_grad:
        return None
    return lambda plan: say(causal_lm, "TRL's trainer", plan, hidden.shape[:-1].numel(), shared)


def _parts(plan: Plan | None, tokens: int, shared: Counts | None) -> list[str]:
    if plan is None:
        parts = ["the model makes its own logits, whose statistics and gradient are fused"]
    else:
        job = plan.job
        parts = [
            f"LM head without whole logits: plan {plan.name} ({plan.gemms} GEMMs), {job.rows} of {tokens} tokens "
            f"scored over {job.classes} classes"
        ]
        if plan.listed is not None:
            parts.append(f"sparse gradients: {plan.listed / max(1, job.rows):.0f} entries a row for {job.classes}")
    if shared is not None:
        parts.append(f"prompts shared: {shared.computed} of {shared.given} tokens computed")
    return parts
