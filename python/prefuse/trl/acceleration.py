"""`prefuse.trl.accelerate`: TRL's trainers with their LM heads run by prefuse."""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
import weakref
from collections.abc import Callable
from typing import Any

from torch import nn

from prefuse._patches import Acceleration, Patch, original, patch
from prefuse.compat.trl import ChunkedLogProbFunction
from prefuse.linear.sparse import Sparse, as_sparse
from prefuse.models.causal_lm import check_fallback
from prefuse.trl import compatibility, fused, gathered
from prefuse.trl.dropout import DropoutRates

__all__ = ["Acceleration", "accelerate"]


def accelerate(
    trainer: Any = None,
    *,
    disable_dropout: bool = False,
    fallback: str = "logits",
    share_prompts: bool = False,
    sparse: float | str | Sparse | None = None,
) -> Acceleration:
    """Have the LM heads of TRL's trainers run by prefuse.

    DPO, KTO, GRPO, RLOO, SFT and async GRPO, which have a fused head of TRL's, get prefuse's in its place. The
    experimental CPO (with SimPO), ORPO, TPO and online DPO build all logits, and no longer do. Losses, gradients and
    logged metrics are TRL's own, but for rounding.

    Args:
        trainer: whose models are to run on prefuse, already built. None: TRL as a whole, trainers that are built later
            and those that are there.
        disable_dropout: of one trainer only: also set to 0 the dropout rates of its models that TRL's option of that
            name leaves alone, numbers that the forward pass reads from modules and configurations (OPT, BART,
            ``attention_dropout``, …); `places` says which. `remove` puts them back, and checkpoints that are saved
            before have 0 in their configuration.
        fallback: for models whose head cannot be fused, as in `prefuse.head`: "logits" has them make their logits, with
            a warning; "error" refuses when they are called.
        share_prompts: run what rows of a batch begin with alike through the models once, as in `prefuse.head`: the two
            responses of a pair, the completions of a group that come in one micro-batch. Mean logits, which CPO, ORPO
            and TPO log of padding, too, take it for the first token of the batch then.
        sparse: as in `prefuse.linear_token_stats`: the gradients of log-probabilities from short lists, without bias;
            a number, as 2**-12, has its roundings drawn anew at every step. A gradient through the entropy, and models
            whose head is not fused, stay dense. None: dense.

    Returns:
        An `Acceleration`, to be used as context manager or until `remove`.

    Raises:
        ImportError: TRL is not installed.
        RuntimeError: the installed TRL has other internals than prefuse knows; it says which, and nothing was changed.
        ValueError: `trainer` is of none of these kinds, `disable_dropout` without one, or another `fallback`.

    Example::

        prefuse.trl.accelerate()
        trainer = DPOTrainer(model, args=DPOConfig("out"), train_dataset=pairs, processing_class=tokenizer)
        trainer.train()
    """
    check_fallback(fallback)
    running = fused.Running(fallback, share_prompts, as_sparse(sparse))
    if trainer is None:
        if disable_dropout:
            raise ValueError("disable_dropout: expected a trainer, whose models' rates are set to 0, got none")
        return _accelerate_all(running)
    made = _accelerate_one(trainer, running)
    if disable_dropout:
        _disable_dropout(made, trainer)
    return made


def _accelerate_all(running: fused.Running) -> Acceleration:
    compatibility.check_fused()
    trainers = [trainer for trainer in compatibility.LOGIT_TRAINERS if compatibility.module(trainer.module) is not None]
    for trainer in trainers:
        compatibility.check_logit_trainer(trainer)
    made = Acceleration()
    patched: weakref.WeakSet[nn.Module] = weakref.WeakSet()
    made.add("trl.add_fused_lm_head", functools.partial(_unpatch, patched))
    for name in (compatibility.UTILITIES, *compatibility.FUSED_TRAINERS):
        if (module := compatibility.module(name)) is not None:
            made.add(None, patch(module, "add_fused_lm_head", functools.partial(_adding, patched, running)).remove)
    for name, attribute in _KERNELS:
        made.add(f"trl.{attribute.lstrip('_')}", patch(compatibility.module(name), attribute, _kernel).remove)
    for trainer in trainers:
        _gather(made, trainer, getattr(compatibility.module(trainer.module), trainer.name), running)
    return made


def _accelerate_one(trainer: Any, running: fused.Running) -> Acceleration:
    version = compatibility.installed()
    kinds = [(kind.__module__, f"{kind.__module__}.{kind.__name__}") for kind in type(trainer).__mro__]
    made = Acceleration()
    for each in compatibility.LOGIT_TRAINERS:
        if each.path in [path for _, path in kinds]:
            compatibility.check_logit_trainer(each)
            _gather(made, each, trainer, running)
            return made
    compatibility.check_fused()
    try:
        for name in ("model", "ref_model"):
            causal_lm = _patched(getattr(trainer, name, None), running)
            if causal_lm is not None:
                made.add(f"{type(trainer).__name__}.{name}", functools.partial(fused.unpatch, causal_lm))
    except ValueError:
        made.remove()
        raise
    if made.places:
        return made
    if any(module in compatibility.FUSED_TRAINERS for module, _ in kinds):
        raise compatibility.no_settings(type(trainer).__name__)
    raise ValueError(
        f"trainer: expected a DPO, KTO, GRPO, RLOO, SFT, CPO, ORPO, TPO or online DPO trainer of trl {version}'s, "
        f"got {type(trainer).__name__}, which has no LM head that prefuse can run"
    )


def _disable_dropout(made: Acceleration, trainer: Any) -> None:
    models = [getattr(trainer, name, None) for name in ("model", "ref_model")]
    rates = DropoutRates(*(model for model in models if isinstance(model, nn.Module)))
    if len(rates):
        zero = contextlib.ExitStack()
        zero.enter_context(rates.zero())
        made.add(f"dropout rates of 0 ({', '.join(rates.names())})", zero.close)


def _patched(model: Any, running: fused.Running) -> nn.Module | None:
    """The causal LM that was patched; None where there is none, or none with a fused head."""
    try:
        return fused.patch(model, running)
    except TypeError:
        return None


_KERNELS = (
    (compatibility.UTILITIES, "_ChunkedLogProbFunction"),
    *((name, "ChunkedLogProbFunction") for name in compatibility.KERNELS),
)


def _unpatch(patched: weakref.WeakSet[nn.Module]) -> None:
    for causal_lm in patched:
        fused.unpatch(causal_lm)


def _kernel(_: Patch) -> Any:
    return ChunkedLogProbFunction


def _adding(patched: weakref.WeakSet[nn.Module], running: fused.Running, here: Patch) -> Callable[..., None]:
    """TRL's `add_fused_lm_head`, and prefuse's head over it."""

    @functools.wraps(here.original)
    def add_fused_lm_head(model: nn.Module, *arguments: Any, **options: Any) -> None:
        here.original(model, *arguments, **options)
        if here.active:
            causal_lm = fused.patch(model, running)
            if causal_lm is None:
                raise compatibility.no_settings(type(model).__name__)
            patched.add(causal_lm)

    return add_fused_lm_head


def _gather(made: Acceleration, kind: compatibility.LogitTrainer, owner: Any, running: fused.Running) -> None:
    """Patches the method that builds logits, of a class or of one trainer, and the functions that it gives them to."""
    module = compatibility.module(kind.module)
    for name in kind.functions:
        made.add(None, patch(module, name, gathered.FUNCTIONS[name]).remove)
    heads = gathered.Heads(running)
    made.add(None, heads.remove)
    method = gathered.METHODS[kind.name](original(getattr(module, kind.name), kind.method), heads)
    place = method if inspect.isclass(owner) else types.MethodType(method, owner)
    made.add(kind.name, patch(owner, kind.method, lambda _: place).remove)
