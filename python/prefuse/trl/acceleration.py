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

from prefuse.compat.trl import ChunkedLogProbFunction
from prefuse.trl import fused, gathered, seams
from prefuse.trl.dropout import DropoutRates
from prefuse.trl.swaps import Swap, original, swap

__all__ = ["Acceleration", "accelerate"]


def accelerate(trainer: Any = None, *, disable_dropout: bool = False) -> Acceleration:
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

    Returns:
        An `Acceleration`, to be used as context manager or until `remove`.

    Raises:
        ImportError: TRL is not installed.
        RuntimeError: the installed TRL has other internals than prefuse knows; it says which, and nothing was changed.
        ValueError: `trainer` is of none of these kinds, or `disable_dropout` without one.

    Example::

        prefuse.trl.accelerate()
        trainer = DPOTrainer(model, args=DPOConfig(...), train_dataset=pairs, processing_class=tokenizer)
        trainer.train()
    """
    if trainer is None:
        if disable_dropout:
            raise ValueError("disable_dropout: expected a trainer, whose models' rates are set to 0, got none")
        return _accelerate_all()
    made = _accelerate_one(trainer)
    if disable_dropout:
        _disable_dropout(made, trainer)
    return made


class Acceleration:
    """What `accelerate` has put in place, and the way back.

    Attributes:
        places: what runs on prefuse, in words.
    """

    def __init__(self) -> None:
        self.places: list[str] = []
        self._undo: list[Callable[[], None]] = []

    def remove(self) -> None:
        """Puts everything back as it was; a second time does nothing."""
        while self._undo:
            self._undo.pop()()
        self.places = []

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"Acceleration({', '.join(self.places) or 'removed'})"

    def _add(self, place: str, undo: Callable[[], None]) -> None:
        if place not in self.places:
            self.places.append(place)
        self._undo.append(undo)


def _accelerate_all() -> Acceleration:
    seams.check_fused()
    trainers = [trainer for trainer in seams.LOGIT_TRAINERS if seams.module(trainer.module) is not None]
    for trainer in trainers:
        seams.check_logit_trainer(trainer)
    made = Acceleration()
    laid: weakref.WeakSet[nn.Module] = weakref.WeakSet()
    made._add("trl.add_fused_lm_head", functools.partial(_take_off, laid))
    for name in (seams.UTILITIES, *seams.FUSED_TRAINERS):
        if (module := seams.module(name)) is not None:
            made._undo.append(swap(module, "add_fused_lm_head", functools.partial(_adding, laid)).remove)
    for name, attribute in _KERNELS:
        made._add(f"trl.{attribute.lstrip('_')}", swap(seams.module(name), attribute, _kernel).remove)
    for trainer in trainers:
        _gather(made, trainer, getattr(seams.module(trainer.module), trainer.name))
    return made


def _accelerate_one(trainer: Any) -> Acceleration:
    version = seams.installed()
    kinds = [(kind.__module__, f"{kind.__module__}.{kind.__name__}") for kind in type(trainer).__mro__]
    made = Acceleration()
    for each in seams.LOGIT_TRAINERS:
        if each.path in [path for _, path in kinds]:
            seams.check_logit_trainer(each)
            _gather(made, each, trainer)
            return made
    seams.check_fused()
    try:
        for name in ("model", "ref_model"):
            causal_lm = _lay(getattr(trainer, name, None))
            if causal_lm is not None:
                made._add(f"{type(trainer).__name__}.{name}", functools.partial(fused.take_off, causal_lm))
    except ValueError:
        made.remove()
        raise
    if made.places:
        return made
    if any(module in seams.FUSED_TRAINERS for module, _ in kinds):
        raise seams.no_settings(type(trainer).__name__)
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
        made._add(f"dropout rates of 0 ({', '.join(rates.names())})", zero.close)


def _lay(model: Any) -> nn.Module | None:
    """The causal LM that was laid over; None where there is none, or none with a fused head."""
    try:
        return fused.lay(model)
    except TypeError:
        return None


_KERNELS = ((seams.UTILITIES, "_ChunkedLogProbFunction"), *((name, "ChunkedLogProbFunction") for name in seams.KERNELS))


def _take_off(laid: weakref.WeakSet[nn.Module]) -> None:
    for causal_lm in laid:
        fused.take_off(causal_lm)


def _kernel(_: Swap) -> Any:
    return ChunkedLogProbFunction


def _adding(laid: weakref.WeakSet[nn.Module], here: Swap) -> Callable[..., None]:
    """TRL's `add_fused_lm_head`, and prefuse's head over it."""

    @functools.wraps(here.original)
    def add_fused_lm_head(model: nn.Module, *arguments: Any, **options: Any) -> None:
        here.original(model, *arguments, **options)
        if here.active:
            causal_lm = fused.lay(model)
            if causal_lm is None:
                raise seams.no_settings(type(model).__name__)
            laid.add(causal_lm)

    return add_fused_lm_head


def _gather(made: Acceleration, kind: seams.LogitTrainer, owner: Any) -> None:
    """Swaps the method that builds logits, of a class or of one trainer, and the functions that it gives them to."""
    module = seams.module(kind.module)
    for name in kind.functions:
        made._undo.append(swap(module, name, gathered.FUNCTIONS[name]).remove)
    heads = gathered.Heads()
    made._undo.append(heads.remove)
    method = gathered.METHODS[kind.name](original(getattr(module, kind.name), kind.method), heads)
    place = method if inspect.isclass(owner) else types.MethodType(method, owner)
    made._add(kind.name, swap(owner, kind.method, lambda _: place).remove)
