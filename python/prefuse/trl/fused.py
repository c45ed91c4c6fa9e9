"""TRL's fused head, run by prefuse: a layer over the forward that TRL's `add_fused_lm_head` gives a model."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prefuse._arguments.layout import shift_left
from prefuse.compat.trl import token_outputs
from prefuse.linear.plans import Plan
from prefuse.linear.sparse import Sparse
from prefuse.models import patching
from prefuse.models.causal_lm import HeadTensors, find_causal_lm, run_inside
from prefuse.models.sharing import counts
from prefuse.trl import training_line

_KEY = "_prefuse_trl"


class Settings(NamedTuple):
    """What a model's fused head was asked for: the arguments of `add_fused_lm_head`."""

    temperature: float
    cast_lm_head_to_fp32: bool
    outputs: tuple[str, ...]


class Running(NamedTuple):
    """How a model is to be run, as in `prefuse.head` and `prefuse.linear_token_stats`."""

    fallback: str = "logits"
    share_prompts: bool = False
    sparse: Sparse | str | None = None


AS_ALWAYS = Running()


class _Patched(NamedTuple):
    """What our forward of a model wants to know."""

    settings: Settings
    running: Running


def settings_of(causal_lm: nn.Module) -> Settings | None:
    """Those that TRL's forward of this model has closed over; None where it has none of TRL's."""
    for function in patching.functions(causal_lm):
        code = getattr(function, "__code__", None)
        if code is not None and set(Settings._fields) <= set(code.co_freevars):
            found = dict(zip(code.co_freevars, patching.closure(function), strict=True))
            return Settings(*(found[name] for name in Settings._fields))
    return None


def patch(model: nn.Module, running: Running = AS_ALWAYS) -> nn.Module | None:
    """Have prefuse run the fused head that TRL gave to `model`; returns its causal LM, or None without such a head.

    `running`: what the last patch of a model says counts.
    """
    causal_lm: nn.Module = find_causal_lm(model)
    settings = settings_of(causal_lm)
    if settings is None:
        return None
    known = _Patched(settings, running)
    patching.patch_forward(causal_lm, _KEY, _fused_forward, known)
    getattr(causal_lm, _KEY).settings = known
    return causal_lm


def unpatch(causal_lm: nn.Module) -> None:
    """Undo one `patch`."""
    patching.unpatch(causal_lm, _KEY)


def is_patched(causal_lm: nn.Module) -> bool:
    """Whether prefuse runs the fused head of this model."""
    return patching.is_patched(causal_lm, _KEY)


def _fused_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    patched = getattr(self, _KEY)
    if not kwargs.get("fused_lm_head") or patched.count == 0:
        return patching.call_original(self, _KEY, *args, **kwargs)
    settings, running = patched.settings
    own = {name: kwargs.pop(name, None) for name in ("fused_lm_head", "shift_labels", "num_items_in_batch")}

    before = replace(counts(self))

    def inside(hidden: Tensor, tensors: HeadTensors) -> Any:
        tell = training_line.teller(self, hidden, counts(self).since(before) if running.share_prompts else None)
        return _output(hidden, tensors, settings, running.sparse, tell, own["shift_labels"], own["num_items_in_batch"])

    original = functools.partial(patching.call_original, self, _KEY)
    return patched.around(run_inside)(self, inside, args, kwargs, original, running.fallback, running.share_prompts)


def _output(
    hidden: Tensor,
    tensors: HeadTensors,
    settings: Settings,
    sparse: Sparse | str | None,
    tell: Callable[[Plan | None], None] | None,
    shift_labels: Tensor | None,
    items: Any,
) -> Any:
    """TRL's output of the labels, which are moved here unless they have been (context parallelism)."""
    from trl.trainer.utils import FusedCausalLMOutput

    if shift_labels is None:
        # Hidden states stay whole: to slice them would cost a second gradient of their size.
        targets, keep = shift_left(tensors.given_labels(), None, -100, None)[0], slice(None, -1)
    else:
        targets, keep = shift_labels.to(hidden.device), slice(None)
    with _without_autocast(hidden) if settings.cast_lm_head_to_fp32 else contextlib.nullcontext():
        if settings.cast_lm_head_to_fp32:
            hidden, tensors = hidden.float(), tensors.in_float32()
        options = {"temperature": settings.temperature, "sparse": sparse}
        found = token_outputs(hidden, targets, settings.outputs, tensors, tell=tell, **options)
    log_probs = found[0][:, keep]
    others = [None if values is None else values[:, keep] for values in found[1:]]
    mask = targets[:, keep] != -100
    loss = -log_probs.sum() / (mask.sum().clamp(min=1) if items is None else items)
    if tensors.router_loss is not None:
        loss = loss + tensors.router_loss
    return FusedCausalLMOutput(loss, log_probs, *others, mask, tensors.aux_loss)


def _without_autocast(hidden: Tensor) -> torch.autocast:
    return torch.autocast(hidden.device.type, enabled=False)
