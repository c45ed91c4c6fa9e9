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

from prefuse._display.notes import logger_of, note
from prefuse._patches import Acceleration, Patch, original, patch
from prefuse.compat.trl import ChunkedLogProbFunction
from prefuse.linear.sparse import Sparse, as_sparse
from prefuse.models.causal_lm import check_fallback
from prefuse.trl import asked, compatibility, fused, gathered
from prefuse.trl.dropout import DropoutRates

__all__ = ["Acceleration", "accelerate"]

_log = logger_of(__name__)


def accelerate(
    trainer: Any = None,
    *,
    disable_dropout: bool = False,
    fallback: str = "logits",
    share_prompts: bool = False,
    sparse: float | str | Sparse | None = None,
) -> Acceleration:
    """Have the LM heads of TRL's trainers run by prefuse.

    DPO, KTO, GRPO, RLOO, SFT and async GRPO, which since TRL 1.15 have a fused head of TRL's, get prefuse's in its
    place. CPO (with SimPO), ORPO, TPO and online DPO, and in older versions DPO, KTO, GRPO and RLOO, too, build all
    logits, and no longer do. Losses, gradients and logged metrics are TRL's own, but for rounding. Each trainer is
    looked at by itself: what the installed TRL has in another form than prefuse knows is left as it is, and named.
    One line of the logger ``prefuse.trl.acceleration`` (INFO) says what runs on prefuse; ``docs/trl.md`` has the
    versions.

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
        sparse: as in `prefuse.linear_token_stats`: the gradients of log-probabilities and entropies from short lists,
            without bias; a number, as 2**-12, has its roundings drawn anew at every step. Models whose head is not
            fused, and on a GPU or with "auto" a gradient through the entropy, stay dense. None: dense.

    Returns:
        An `Acceleration`, to be used as context manager or until `remove`; `places` are the trainers that run on
        prefuse, `left` those that do not, with the reason of each.

    Raises:
        ImportError: TRL is not installed.
        RuntimeError: `trainer`, or every trainer of the installed TRL, has other internals than prefuse knows; it says
            which, and nothing was changed.
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
    found = compatibility.places()
    taken = [place for place in found if not place.reason]
    if not taken:
        reasons = [f"{place.trainer.name}: {place.reason}" for place in found]
        raise compatibility.not_fitting("; ".join(reasons) or "none of its trainers can be imported")
    made = Acceleration()
    made.left.update({place.trainer.name: place.reason for place in found if place.reason})
    if any(place.way is None for place in taken):
        _fuse(made, running)
    for place in taken:
        if place.way is None:
            made.add(place.trainer.name, _nothing)
        else:
            _gather(made, place, place.cls, running)
    _announce(made)
    return made


def _accelerate_one(trainer: Any, running: fused.Running) -> Acceleration:
    found = compatibility.places()
    of_mro = [place for kind in type(trainer).__mro__ for place in found if place.cls is kind]
    made = Acceleration()
    if not of_mro:
        raise ValueError(
            "trainer: expected a DPO, KTO, GRPO, RLOO, SFT, CPO, ORPO, TPO or online DPO trainer of trl "
            f"{compatibility.installed()}'s, got {type(trainer).__name__}, which has no LM head that prefuse can run"
        )
    place = of_mro[0]
    if place.reason:
        raise compatibility.not_fitting(f"{place.trainer.name}: {place.reason}")
    if place.way is not None:
        _gather(made, place, trainer, running)
    else:
        _fuse_models(made, trainer, running)
    _announce(made)
    return made


def _fuse_models(made: Acceleration, trainer: Any, running: fused.Running) -> None:
    """Patches the models of one trainer that have a fused head of TRL's."""
    try:
        for name in ("model", "ref_model"):
            causal_lm = _patched(getattr(trainer, name, None), running)
            if causal_lm is not None:
                made.add(f"{type(trainer).__name__}.{name}", functools.partial(fused.unpatch, causal_lm))
    except ValueError:
        made.remove()
        raise
    if not made.places:
        raise compatibility.no_settings(type(trainer).__name__)


def _fuse(made: Acceleration, running: fused.Running) -> None:
    """Patches what gives models a fused head of TRL's, and the kernel of those that have one."""
    patched: weakref.WeakSet[nn.Module] = weakref.WeakSet()
    made.add(None, functools.partial(_unpatch, patched))
    homes = [home for trainer in compatibility.TRAINERS for home in trainer.homes]
    for name in (compatibility.UTILITIES, *homes):
        module = compatibility.module(name)
        if hasattr(module, "add_fused_lm_head"):
            made.add(None, patch(module, "add_fused_lm_head", functools.partial(_adding, patched, running)).remove)
    for name, attribute in _KERNELS:
        made.add(None, patch(compatibility.module(name), attribute, _kernel).remove)


def _announce(made: Acceleration) -> None:
    """Says what runs on prefuse now, and what does not."""
    left = ", ".join(f"{name} ({reason})" for name, reason in made.left.items())
    what = f"prefuse runs the LM heads of trl {compatibility.installed()}: {', '.join(made.places)}"
    note(_log, f"{what}; left as they are: {left}" if left else what)


def _nothing() -> None:
    """What is undone with others."""


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


def _gather(made: Acceleration, place: compatibility.Place, owner: Any, running: fused.Running) -> None:
    """Patches the methods that read logits, of a class or of one trainer, and the functions that are given them."""
    assert place.way is not None
    for name in place.functions:
        made.add(None, patch(place.home, name, gathered.FUNCTIONS[name]).remove)
    name = place.trainer.name
    models: Any = gathered.Heads(running) if name in gathered.METHODS else asked.Models(running)
    methods: Any = gathered.METHODS.get(name) or asked.METHODS[name]
    for method in place.way.methods:
        replaced = methods[method](original(place.cls, method), models)
        bound = replaced if inspect.isclass(owner) else types.MethodType(replaced, owner)
        taken = patch(owner, method, functools.partial(_always, bound))
        _models.setdefault(taken, models)
        made.add(name, functools.partial(_leave, taken))


_models: weakref.WeakKeyDictionary[Patch, Any] = weakref.WeakKeyDictionary()
"""What patches the models that a method calls: that of the first who took the method, until the last has left it."""


def _leave(taken: Patch) -> None:
    taken.remove()
    if not taken.active:
        _models.pop(taken).remove()


def _always(replaced: Any, _: Patch) -> Any:
    return replaced
