"""Where prefuse takes hold of TRL, trainer by trainer, and whether a TRL has these places as they are known.

A trainer with a fused head of TRL's is taken by structure: signatures and fields. One that calls its model for logits
is taken by source: which tokens are scored is known of its methods' sources alone, and their digests are here, of every
version that was read. What has neither is left as it is, and named.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from prefuse._patches import original
from prefuse.compat.trl import ChunkedLogProbFunction

TRIED = ("0.24.0", "1.16.0")
"""The oldest and the newest version of TRL that was tried; docs/trl.md has all."""

UTILITIES = "trl.trainer.utils"
KERNELS = ("trl.kernels", "trl.kernels.chunked_logprob")


class Way(NamedTuple):
    """How a trainer makes its log-probabilities in some versions.

    Attributes:
        methods: those that call a model and read its logits, and so are replaced.
        sources: digests by method of all that decide which tokens are scored, one for each source that is known.
    """

    methods: tuple[str, ...]
    sources: dict[str, frozenset[str]]


class Trainer(NamedTuple):
    """A trainer of TRL's.

    Attributes:
        name: of the class.
        homes: the modules where it is or was, the newest first.
        ways: those without a fused head of TRL's.
    """

    name: str
    homes: tuple[str, ...]
    ways: tuple[Way, ...] = ()


def _way(*methods: str, **sources: str) -> Way:
    """`sources`: by method, digests with blanks between."""
    return Way(methods, {name: frozenset(digests.split()) for name, digests in sources.items()})


TRAINERS = (
    Trainer(
        "DPOTrainer",
        ("trl.trainer.dpo_trainer",),
        (
            _way(  # 1.14
                "_compute_loss",
                "compute_ref_log_probs",
                _compute_loss="6be3a70c5a4b126e",
                compute_ref_log_probs="d643beaac47db303",
                _compute_ref_log_probs="65bfe8c1518cc91d",
            ),
            _way(  # 0.29 to 1.13
                "_compute_loss",
                "compute_ref_log_probs",
                _compute_loss=(
                    "299a8fa4943459ef 36174ff2b52233aa 6a433f54b1ffecb9 22966f34f75f3261 60580c2af1653790 "
                    "151685605b018465 605d10adbf1dac85 5ee5385c3af48a7d 24593b630a1b08cd"
                ),
                compute_ref_log_probs=(
                    "a251e32eb2bcb4f8 8128dbaa5186b938 6c73c56ee9ed43e7 8eac3c7b74a938f5 37eec8ae841baa33 "
                    "cfec9f76537446de"
                ),
            ),
            _way(  # 0.24 to 0.28
                "concatenated_forward",
                concatenated_forward="dd92bf98f698d2d4 402b183e02642398",
                compute_ref_log_probs="a5b3248532a160b8",
                get_batch_loss_metrics="a498e3b539f2f64e 652f1208d6203d92",
            ),
        ),
    ),
    Trainer(
        "KTOTrainer",
        ("trl.trainer.kto_trainer", "trl.experimental.kto.kto_trainer"),
        (
            _way(  # 1.14
                "_compute_loss",
                "compute_ref_log_probs",
                _compute_loss="bd613c600c9b8e63",
                _compute_kl_logps="95f62c933500abb7",
                compute_ref_log_probs="d643beaac47db303",
                _compute_ref_log_probs="b090ccd779eee9ae",
            ),
            _way(  # 1.6 to 1.13
                "_compute_loss",
                "compute_ref_log_probs",
                _compute_loss=("aa5070fd9fdb12ad 30c7efbc402bca46 dfd7be5bded66507 951ff0b89b3ae27a 764b7fed1c7a219a"),
                _compute_kl_logps="3354677140ba28e7 a1d0a67e692de7d4 2e11ddfc5a9498c5 dbf4e63a0f5941e5",
                compute_ref_log_probs="947fc82eb8343340 924de8feffc88e06 d6ac5b69ff1caa82 13536462679a6e15",
            ),
            _way(  # 0.24 to 1.5
                "forward",
                "compute_reference_log_probs",
                forward=("1304d7825738f3d9 a1d2dc14c863b6c1 00ec2b31a3d4b201 872a0e7782ee9f53 f240cad5d82b1836"),
                get_batch_logps="41651a543dd772e8 11a428ac59d670c2 c603591b5b7b5468",
                _compute_kl_logps="31402a4f800817e3 7e1486fd3412fa1b 0c9a4719532a31ae",
                compute_reference_log_probs="30c4158e82942dfc 9f8805e1a1442593 566c119374665124",
            ),
        ),
    ),
    Trainer(
        "GRPOTrainer",
        ("trl.trainer.grpo_trainer",),
        (
            _way(  # 1.14
                "_full_logits_logps",
                _full_logits_logps="cf48ae6698938b8c",
            ),
            _way(  # 0.24 to 1.13
                "_get_per_token_logps_and_entropies",
                _get_per_token_logps_and_entropies=(
                    "331ae01b88d8e2cf 1f88afa27d61b617 4af3691399f30834 f6a06497779df70e 4eaf29e63e9edce1 "
                    "2a1b927a527f7658 eb0ec4b68248974e d54b441bc6b9fc87 32e8909f872fdc08"
                ),
            ),
        ),
    ),
    Trainer(
        "RLOOTrainer",
        ("trl.trainer.rloo_trainer",),
        (
            _way(  # 0.24 to 1.14
                "_get_per_token_logps_and_entropies",
                _get_per_token_logps_and_entropies=(
                    "f88387ec9965d030 fd6788d73941fb5d 7b57618d114b070f f6a06497779df70e 4eaf29e63e9edce1 "
                    "2a1b927a527f7658 eb0ec4b68248974e d54b441bc6b9fc87 ee6efa8ac4e2db9c 28dbb87fde212e48"
                ),
            ),
        ),
    ),
    Trainer("SFTTrainer", ("trl.trainer.sft_trainer",)),
    Trainer("AsyncGRPOTrainer", ("trl.experimental.async_grpo.async_grpo_trainer",)),
    Trainer(
        "CPOTrainer",
        ("trl.experimental.cpo.cpo_trainer", "trl.trainer.cpo_trainer"),
        (
            _way(
                "concatenated_forward",
                concatenated_forward="c61e2bd63c7caa9e 319203dc8fc310a1 6aa57055c5420f56",
                get_batch_logps="b7189cbbd3ca1f04 64a2961f30480f51",
            ),
        ),
    ),
    Trainer(
        "ORPOTrainer",
        ("trl.experimental.orpo.orpo_trainer", "trl.trainer.orpo_trainer"),
        (
            _way(
                "concatenated_forward",
                concatenated_forward="232b07ef2acee006 22f69afff0b4c1dd d6fd4896c9de3c18",
                get_batch_logps="c4344d4313e1ec96 62185eeb7f2c9936",
            ),
        ),
    ),
    Trainer(
        "TPOTrainer",
        ("trl.experimental.tpo.tpo_trainer",),
        (
            _way(
                "_compute_loss",
                _compute_loss="95a27e767b144fc9 bd438aab90a7cdf6 bb30eb28b38e9fbf 19b73d5b384ea6af",
            ),
        ),
    ),
    Trainer(
        "OnlineDPOTrainer",
        ("trl.experimental.online_dpo.online_dpo_trainer", "trl.trainer.online_dpo_trainer"),
        (_way("_forward", _forward="556b6dce447a4aae a7f79084e44f1213"),),
    ),
)

FUNCTIONS = {
    "entropy_from_logits": (("logits",), ("chunk_size",)),
    "selective_log_softmax": (("logits", "index"), ("temperature", "row_mask")),
    "selective_log_softmax_and_entropy": (
        ("logits", "index"),
        ("entropy_requires_grad", "temperature", "row_mask"),
    ),
}
"""The functions that trainers give logits to: their arguments, and those that there may be in some versions."""

_ADD_FUSED = ("model", "temperature", "cast_lm_head_to_fp32", "outputs")
_OUTPUT_FIELDS = (
    "loss",
    "log_probs",
    "entropy",
    "log_sum_sq_probs",
    "mean_logits",
    "is_top1",
    "label_mask",
    "aux_loss",
)


class Place(NamedTuple):
    """A trainer of the installed TRL.

    Attributes:
        trainer: which.
        home: its module.
        cls: its class.
        way: how it makes log-probabilities; None: by a fused head of TRL's.
        reason: why prefuse leaves it; empty where it takes it.
    """

    trainer: Trainer
    home: Any
    cls: Any
    way: Way | None
    reason: str

    @property
    def functions(self) -> list[str]:
        """Those of `FUNCTIONS` that its module has."""
        return [name for name in FUNCTIONS if hasattr(self.home, name)]


def installed() -> str:
    """The version of TRL.

    Raises:
        ImportError: there is none.
    """
    try:
        import trl
    except ImportError as error:
        raise ImportError("prefuse.trl: TRL is not installed; pip install trl") from error
    return str(trl.__version__)


def module(name: str) -> Any:
    """A module of TRL's; None where something that it needs is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the experimental modules say that they are
        try:
            return importlib.import_module(name)
        except ImportError:
            return None


def places() -> list[Place]:
    """The trainers that the installed TRL has and that can be imported.

    Raises:
        ImportError: TRL is not installed.
    """
    installed()
    return [found for trainer in TRAINERS if (found := place(trainer)) is not None]


def place(trainer: Trainer) -> Place | None:
    """Where a trainer is; None where it is not, or cannot be imported."""
    for path in trainer.homes:
        home = module(path)
        cls = getattr(home, trainer.name, None)
        if cls is not None and cls.__module__ == path and not _is_alias(cls):
            break
    else:
        return None
    if hasattr(home, "add_fused_lm_head"):
        return Place(trainer, home, cls, None, why_not_fused())
    if not trainer.ways:
        return Place(trainer, home, cls, None, f"{path} has no add_fused_lm_head, as since TRL 1.15")
    reason = ""
    for way in trainer.ways:
        if all(hasattr(cls, method) for method in way.sources):
            found = _why_unknown(trainer, path, cls, way) or _why_other_functions(home)
            if not found:
                return Place(trainer, home, cls, way, "")
            reason = reason or found
    if not reason:
        missing = next(method for method in trainer.ways[0].sources if not hasattr(cls, method))
        reason = f"{path}.{trainer.name} has no {missing}"
    return Place(trainer, home, cls, None, reason)


def why_not_fused() -> str:
    """Why the fused head of the installed TRL is none that prefuse knows; empty where it is."""
    utilities = module(UTILITIES)
    if _parameters(original(utilities, "add_fused_lm_head")) != list(_ADD_FUSED):
        return f"{UTILITIES}.add_fused_lm_head has other arguments than {', '.join(_ADD_FUSED)}"
    fields = getattr(getattr(utilities, "FusedCausalLMOutput", None), "__dataclass_fields__", {})
    if tuple(fields) != _OUTPUT_FIELDS:
        return f"{UTILITIES}.FusedCausalLMOutput has other fields than {', '.join(_OUTPUT_FIELDS)}"
    for path, name in ((UTILITIES, "_ChunkedLogProbFunction"), *((path, "ChunkedLogProbFunction") for path in KERNELS)):
        function = original(module(path), name)
        found = _parameters(getattr(function, "forward", None))[1:]
        if found != (known := _parameters(ChunkedLogProbFunction.apply)):
            return f"{path}.{name} has other arguments than {', '.join(known)}"
    return ""


def not_fitting(reason: str) -> RuntimeError:
    """The error for what cannot be taken."""
    return RuntimeError(
        f"prefuse.trl was tried with trl {TRIED[0]} to {TRIED[1]}, and the installed trl {installed()} differs where "
        f"prefuse takes hold of it: {reason}. Nothing was changed"
    )


def no_settings(causal_lm: str) -> RuntimeError:
    """The error for a fused head of TRL's that does not tell its settings."""
    return not_fitting(f"the fused head of {causal_lm} has no settings that prefuse knows")


def fit() -> tuple[str, str]:
    """For `doctor`: what fits, in words, and what does not, and why; each empty where there is nothing."""
    try:
        found = places()
    except ImportError as error:
        return "", str(error)
    left = "; ".join(f"{each.trainer.name}: {each.reason}" for each in found if each.reason)
    taken = [each.trainer.name for each in found if not each.reason]
    return ("" if not taken else "all" if not left else ", ".join(taken)), left


def _is_alias(cls: Any) -> bool:
    """Whether a class is an empty one, under an old name, over that where the trainer has moved to."""
    return any(base.__name__ == cls.__name__ for base in cls.__mro__[1:])


def _why_unknown(trainer: Trainer, path: str, cls: Any, way: Way) -> str:
    for method, digests in way.sources.items():
        if _digest(original(cls, method)) not in digests:
            return f"{path}.{trainer.name}.{method} has another source than those that prefuse knows"
    return ""


def _why_other_functions(home: Any) -> str:
    for name, (needed, possible) in FUNCTIONS.items():
        if hasattr(home, name):
            found = _parameters(original(home, name))
            if tuple(found[: len(needed)]) != needed or not set(found[len(needed) :]) <= set(possible):
                return f"{home.__name__}.{name} has other arguments than {', '.join((*needed, *possible))}"
    return ""


def _parameters(function: Callable[..., Any] | None) -> list[str]:
    return [] if function is None else list(inspect.signature(function).parameters)


def _digest(function: Callable[..., Any] | None) -> str:
    try:
        return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]  # type: ignore[arg-type]
    except (OSError, TypeError):
        return ""
