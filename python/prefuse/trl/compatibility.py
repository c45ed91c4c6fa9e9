"""Where prefuse takes hold of TRL, and whether a TRL still has these places as they were.

`FITS` says which version they were written and are tested with. Another version is taken where every place is the
same; where one is not, nothing is changed and one error says which.
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

FITS = "1.16"
"""The version of TRL whose places these are."""

FUSED_TRAINERS = (
    "trl.trainer.dpo_trainer",
    "trl.trainer.grpo_trainer",
    "trl.trainer.kto_trainer",
    "trl.trainer.rloo_trainer",
    "trl.trainer.sft_trainer",
    "trl.experimental.async_grpo.async_grpo_trainer",
)
"""The modules that import `add_fused_lm_head` by name."""

UTILITIES = "trl.trainer.utils"
KERNELS = ("trl.kernels", "trl.kernels.chunked_logprob")


class LogitTrainer(NamedTuple):
    """A trainer that builds all logits.

    Attributes:
        module: where it is.
        name: of the class.
        method: in which the model is called and its logits are read.
        sources: digests of the methods that decide which tokens are scored, which is known of these alone.
        functions: of the module's, those that are given logits.
    """

    module: str
    name: str
    method: str
    sources: dict[str, str]
    functions: tuple[str, ...]

    @property
    def path(self) -> str:
        """The class by its full name."""
        return f"{self.module}.{self.name}"


LOGIT_TRAINERS = (
    LogitTrainer(
        "trl.experimental.cpo.cpo_trainer",
        "CPOTrainer",
        "concatenated_forward",
        {"concatenated_forward": "c61e2bd63c7caa9e", "get_batch_logps": "b7189cbbd3ca1f04"},
        ("selective_log_softmax",),
    ),
    LogitTrainer(
        "trl.experimental.orpo.orpo_trainer",
        "ORPOTrainer",
        "concatenated_forward",
        {"concatenated_forward": "232b07ef2acee006", "get_batch_logps": "c4344d4313e1ec96"},
        ("selective_log_softmax",),
    ),
    LogitTrainer(
        "trl.experimental.tpo.tpo_trainer",
        "TPOTrainer",
        "_compute_loss",
        {"_compute_loss": "95a27e767b144fc9"},
        ("selective_log_softmax_and_entropy",),
    ),
    LogitTrainer(
        "trl.experimental.online_dpo.online_dpo_trainer",
        "OnlineDPOTrainer",
        "_forward",
        {"_forward": "556b6dce447a4aae"},
        (),
    ),
)

_SIGNATURES = {
    "add_fused_lm_head": ("model", "temperature", "cast_lm_head_to_fp32", "outputs"),
    "selective_log_softmax": ("logits", "index", "temperature", "row_mask"),
    "selective_log_softmax_and_entropy": ("logits", "index", "entropy_requires_grad", "temperature", "row_mask"),
}
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


def installed() -> str:
    """The version of TRL.

    Raises:
        ImportError: there is none.
    """
    try:
        import trl
    except ImportError as error:
        raise ImportError(f"prefuse.trl: TRL is not installed; pip install 'trl>={FITS}'") from error
    return str(trl.__version__)


def module(name: str) -> Any:
    """A module of TRL's; None where something that it needs is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the experimental modules say that they are
        try:
            return importlib.import_module(name)
        except ImportError:
            return None


def check_fused() -> None:
    """Looks at the places of the fused head.

    Raises:
        ImportError: TRL is not installed.
        RuntimeError: one of them has changed.
    """
    version, utilities = installed(), module(UTILITIES)
    _check(version, f"{UTILITIES}.add_fused_lm_head", utilities, "add_fused_lm_head")
    missing = [path for path in FUSED_TRAINERS[:5] if not hasattr(module(path), "add_fused_lm_head")]
    fields = getattr(getattr(utilities, "FusedCausalLMOutput", None), "__dataclass_fields__", {})
    if missing:
        raise _moved(version, f"add_fused_lm_head in {missing[0]}")
    if tuple(fields) != _OUTPUT_FIELDS:
        raise _moved(version, f"{UTILITIES}.FusedCausalLMOutput with the fields that it had")
    for path, name in ((UTILITIES, "_ChunkedLogProbFunction"), *((path, "ChunkedLogProbFunction") for path in KERNELS)):
        function = original(module(path), name)
        found = _parameters(getattr(function, "forward", None))[1:]
        if found != _parameters(ChunkedLogProbFunction.apply):
            raise _moved(version, f"{path}.{name} with the arguments that it had")


def check_logit_trainer(trainer: LogitTrainer) -> None:
    """Looks at the places of one of `LOGIT_TRAINERS`, whose module is there.

    Raises:
        ImportError: TRL is not installed.
        RuntimeError: one of them has changed.
    """
    version, home = installed(), module(trainer.module)
    found = getattr(home, trainer.name, None)
    for method, digest in trainer.sources.items():
        if _digest(original(found, method)) != digest:
            raise _moved(version, f"{trainer.path}.{method} with the source that it had")
    for function in trainer.functions:
        _check(version, f"{trainer.module}.{function}", home, function)


def fit() -> str:
    """One line for `doctor`: whether everything fits, or what does not."""
    try:
        check_fused()
        for trainer in LOGIT_TRAINERS:
            if module(trainer.module) is not None:
                check_logit_trainer(trainer)
    except (ImportError, RuntimeError) as error:
        return str(error)
    return ""


def no_settings(causal_lm: str) -> RuntimeError:
    """The error for a fused head of TRL's that does not tell its settings."""
    return _moved(installed(), f"the settings of the fused head of {causal_lm}")


def _check(version: str, what: str, owner: Any, name: str) -> None:
    if _parameters(original(owner, name)) != list(_SIGNATURES[name]):
        raise _moved(version, f"{what}({', '.join(_SIGNATURES[name])})")


def _moved(version: str, what: str) -> RuntimeError:
    return RuntimeError(
        f"prefuse.trl fits trl {FITS}, and trl {version} differs from it where prefuse takes hold of it: not found is "
        f"{what}. Nothing was changed. Install trl {FITS} or a newer prefuse; prefuse.trl.accelerate(trainer) looks at "
        "what that trainer needs alone"
    )


def _parameters(function: Callable[..., Any] | None) -> list[str]:
    return [] if function is None else list(inspect.signature(function).parameters)


def _digest(function: Callable[..., Any]) -> str:
    try:
        return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]
    except (OSError, TypeError):
        return ""
