"""The configuration of `PreferenceTrainer`: TRL's for DPO, with an objective in the place of its loss types."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

from trl import DPOConfig

from prefuse.language import Objective
from prefuse.linear.sparse import AUTO, as_sparse
from prefuse.losses.preference import _objective
from prefuse.models.causal_lm import check_fallback
from prefuse.scoring.variants import VARIANT

STATISTICS = ("entropy", "mean_logit", "top1", "topk_mass", "topk_entropy", "gradient")
"""What may be logged beside the objective's own metrics."""

_INSTEAD = {
    "loss_type": 'objective="dpo"',
    "loss_weights": "0.8 * dpo() + 0.2 * sft() as the objective",
    "ld_alpha": 'objective="ld_dpo"',
    "f_divergence_type": 'objective="f_dpo"',
    "f_alpha_divergence_coef": 'objective="f_dpo"',
    "use_weighting": 'objective="wpo"',
    "discopop_tau": 'objective="discopop" with objective_kwargs',
    "pad_token": "processing_class.pad_token",
}
"""Options of TRL's that mean nothing here, and what to give instead."""


@dataclass
class PreferenceConfig(DPOConfig):  # type: ignore[misc]
    """Configuration of a `PreferenceTrainer`: that of `trl.DPOTrainer`, except for what says which loss it is.

    Args:
        objective: an `Objective`, one of your own or a composition among them, or the name of one in the catalogue.
        objective_kwargs: hyper-parameters of the objective by name, on the command line as JSON.
        beta: of the objective, for short; None leaves it as it is.
        label_smoothing: likewise.
        log_statistics: what to log of the policy's tokens and of the loss: ``"entropy"``, ``"mean_logit"`` (as
            ``logits/…``), ``"top1"`` (as ``mean_token_accuracy``), ``"topk_mass"`` (of the 10 likeliest tokens),
            ``"topk_entropy"`` and ``"gradient"`` (as ``gradient_weight/…``). All come from the sweep over the logits
            that the loss takes anyway; top-k costs the most.
        padding_free: pack the responses of a batch end to end. Attention must know how to keep them apart by their
            positions, as transformers' implementations do.
        on_nonfinite_loss: what a loss that is NaN or infinite does: ``"error"`` stops the training with a
            `FloatingPointError` that names step and cause; ``"log"`` goes on, and the log says nan or inf.
        fallback: for a model whose head cannot be fused, as in `prefuse.head`: ``"logits"`` has it make its logits,
            with a warning; ``"error"`` refuses.
        share_prompts: run what rows of a batch begin with alike, as the responses of one prompt do, through policy and
            reference once, as in `prefuse.head`. The log says as ``prompts/spared`` which share of the policy's tokens
            was not computed.
        token_mean: what means over the tokens of a batch (``sft``, ``orpo``, ``nll="token_mean"``,
            ``average="tokens"``) are taken over: ``"step"``, all micro-batches of an optimiser step in all processes,
            so that 8 rows as 8 x 1 and as 2 x 4 are the same update; or each ``"micro_batch"``, as TRL's DPO trainer.
        workspace_bytes: of the fused head, see `prefuse.preference_loss`.
        head_sparse: its `sparse`, as 2**-12 or "auto": gradients of the head from short lists, without bias, rounded
            anew at every step. With a number, objectives whose gradient goes through other statistics than
            log-probabilities are refused at the first step. None: dense.

    Raises:
        TypeError: an objective that is none, or a hyper-parameter that it does not have.
        ValueError: an option of TRL's that an objective takes the place of, or an unknown statistic.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*DPOConfig._VALID_DICT_FIELDS, "objective_kwargs"]

    objective: Objective | str | None = field(
        default="dpo", metadata={"help": "Name of an objective of the catalogue, or an Objective."}
    )
    objective_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Hyper-parameters of the objective, as JSON on the command line."}
    )
    beta: float | None = field(default=None, metadata={"help": "The objective's beta, where it has one."})
    label_smoothing: float | None = field(
        default=None, metadata={"help": "The objective's label_smoothing, where it has one."}
    )
    log_statistics: list[str] = field(
        default_factory=lambda: ["entropy", "mean_logit", "top1", "gradient"],
        metadata={"help": f"What to log in addition to the objective's metrics, out of {', '.join(STATISTICS)}."},
    )
    padding_free: bool = field(
        default=False, metadata={"help": "Pack the responses of a batch end to end instead of padding them."}
    )
    on_nonfinite_loss: str = field(
        default="error",
        metadata={"help": 'What a loss that is not finite does: "error" stops the training, "log" goes on.'},
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "False: a loss that is not finite is never logged as another number."}
    )
    fallback: str = field(
        default="logits",
        metadata={"help": 'What a model whose head cannot be fused does: "logits" makes them, "error" refuses.'},
    )
    share_prompts: bool = field(
        default=False, metadata={"help": "Run what rows of a batch begin with alike through the models once."}
    )
    token_mean: str = field(
        default="step",
        metadata={"help": 'What means over tokens are taken over: "step", all accumulated batches, or "micro_batch".'},
    )
    workspace_bytes: int | None = field(
        default=None, metadata={"help": "Memory for the logits that are there at a time, in bytes; None: see prefuse."}
    )
    head_sparse: float | str | None = field(
        default=None,
        metadata={"help": 'Sparse gradients of the head: probabilities below are rounded at random; or "auto".'},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # A configuration that was saved names the objective only; it is resolved again where it can be.
        self._resolved = _with(_objective(self.objective or "dpo"), self._hyper_parameters())
        for name, instead in _INSTEAD.items():
            if getattr(self, name) != _default(name):
                raise ValueError(f"{name}: an option of TRL's loss types; give {instead} instead")
        unknown = [name for name in self.log_statistics if name not in STATISTICS]
        if unknown:
            raise ValueError(f"log_statistics: expected names out of {', '.join(STATISTICS)}, got {unknown[0]!r}")
        if self.on_nonfinite_loss not in ("error", "log"):
            raise ValueError(f'on_nonfinite_loss: expected "error" or "log", got {self.on_nonfinite_loss!r}')
        check_fallback(self.fallback)
        self.head_sparse = _checked_sparse(self.head_sparse)
        if self.token_mean not in ("step", "micro_batch"):
            raise ValueError(f'token_mean: expected "step" or "micro_batch", got {self.token_mean!r}')
        if self.logging_nan_inf_filter:
            raise ValueError(
                "logging_nan_inf_filter: expected False, got True, which logs a loss that is not finite as 0.0"
            )
        if self.padding_free and self.pad_to_multiple_of is not None:
            raise ValueError("pad_to_multiple_of: expected None with padding_free, which pads nothing")

    def resolved_objective(self) -> Objective:
        """The objective with all hyper-parameters set."""
        return self._resolved

    def to_dict(self) -> dict[str, Any]:
        """As `transformers.TrainingArguments` gives it, the objective as text."""
        return {**super().to_dict(), "objective": str(self.objective)}

    def __getstate__(self) -> dict[str, Any]:
        """Without the objective's programs: what is saved beside a checkpoint says what it was."""
        return {name: value for name, value in vars(self).items() if name != "_resolved"} | {
            "objective": str(self.objective)
        }

    def _hyper_parameters(self) -> dict[str, Any]:
        given = dict(self.objective_kwargs or {})  # type: ignore[arg-type]
        for name in ("beta", "label_smoothing"):
            value = getattr(self, name)
            if value is not None:
                if name in given:
                    raise ValueError(f"{name}: given twice, in objective_kwargs as well")
                given[name] = value
        return given


def _checked_sparse(given: float | str | None) -> float | str | None:
    """`head_sparse` as the head takes it; a number may come as text, from a command line."""
    if isinstance(given, str) and given != AUTO:
        try:
            given = float(given)
        except ValueError:
            raise ValueError(f'head_sparse: expected a number, "auto" or None, got {given!r}') from None
    try:
        as_sparse(given)
    except (TypeError, ValueError) as error:
        raise type(error)(f"head_{error}") from None
    return given


def _with(objective: Objective, given: dict[str, Any]) -> Objective:
    unknown = [name for name in given if name not in (*objective.parameters, VARIANT)]
    if unknown:
        raise TypeError(
            f"{unknown[0]}: {objective.name} has no such hyper-parameter; "
            f"it has {', '.join(objective.parameters) or 'none'}"
        )
    settled: Objective = objective(**given) if given else objective
    return settled


def _default(name: str) -> Any:
    found = next(found for found in dataclasses.fields(DPOConfig) if found.name == name)
    make = found.default_factory
    return found.default if make is dataclasses.MISSING else make()
