"""Liger's losses of policy gradients: GRPO and its relatives."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefuse.compat._shared import NO_LABEL_IGNORED, check_chunk_size
from prefuse.compat.liger import _policy
from prefuse.compat.liger._form import Loss, Result, apply_of
from prefuse.compat.liger._head import check_padded, is_wider, liger_names
from prefuse.compat.liger._policy import Settings, Tokens
from prefuse.linear.functions import linear_token_stats

_SETTINGS = tuple(field.name for field in dataclasses.fields(Settings))


@dataclass(eq=False, repr=False)
class LigerFusedLinearGRPOLoss(Loss):
    """Liger's GRPO losses from hidden states (Shao et al. 2024, arXiv:2402.03300, and the losses after it).

    ``loss_type``, with r the importance ratio and A the advantage: "grpo", "bnpo", "dr_grpo", "dapo" and "luspo" have
    the clipped surrogate ``-min(r A, clip(r, 1 - ε_low, 1 + ε_high) A)`` and differ in what the tokens' losses are
    divided by; "cispo" ``-min(r, ε_high) A log π`` and "vespo" ``-φ(w) A log π``, their weights constants; "sapo"
    ``-A (4/τ) σ(τ (r - 1))``. β times ``e^d - d - 1``, d = log π_ref − log π, is added to each token's.

    Args:
        beta: weight of the KL estimate; at 0 there is none and no reference is read.
        compiled: changes nothing.
        use_ref_model: whether there is a reference; without, the KL estimate is 0.
        chunk_size: changes no result.
        epsilon_low: ε_low.
        epsilon_high: ε_high; of "cispo" the bound itself.
        loss_type: see above.
        max_completion_length: what "dr_grpo" takes for each response's length.
        importance_sampling_level: "token", or "sequence" for one ratio per response, the mean over its tokens (GSPO);
            not with "cispo", "sapo" and "vespo".
        sapo_temperature_pos: τ where A > 0.
        sapo_temperature_neg: τ elsewhere.
        temperature: of the logits, the reference's too.
        delta: an upper bound of r in the surrogate's free part (two-sided clipping); None: none.
        use_bias_correction_kl: multiply the KL estimate by r.
        vespo_k_pos: k of φ(w) = w^k e^{λ(1−w)} where A >= 0, w the whole response's ratio.
        vespo_lambda_pos: λ there.
        vespo_k_neg: k elsewhere.
        vespo_lambda_neg: λ elsewhere.

    Raises:
        ValueError: a temperature of SAPO, `delta` or `chunk_size` that is not above 0. As in Liger, an unknown
            `loss_type` or `importance_sampling_level`, or two options that exclude each other, are errors of the call.
    """

    beta: float = 0.04
    compiled: bool = True
    use_ref_model: bool = True
    chunk_size: int = 1
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    loss_type: str = "dapo"
    max_completion_length: int | None = None
    importance_sampling_level: str = "token"
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.05
    temperature: float = 1.0
    delta: float | None = None
    use_bias_correction_kl: bool = False
    vespo_k_pos: float = 2.0
    vespo_lambda_pos: float = 3.0
    vespo_k_neg: float = 3.0
    vespo_lambda_neg: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive("sapo_temperature_pos", self.sapo_temperature_pos)
        _check_positive("sapo_temperature_neg", self.sapo_temperature_neg)
        if self.delta is not None:
            _check_positive("delta", self.delta)

    def forward(
        self,
        _input: Tensor,
        lin_weight: Tensor,
        selected_token_ids: Tensor,
        attention_mask: Tensor,
        advantages: Tensor,
        bias: Tensor | None = None,
        ref_per_token_logps: Tensor | None = None,
        old_per_token_logps: Tensor | None = None,
        ref_input: Tensor | None = None,
        ref_weight: Tensor | None = None,
        ref_bias: Tensor | None = None,
        vllm_is_ratio: Tensor | None = None,
        num_items_in_batch: Tensor | float | None = None,
    ) -> Result:
        """Score B sampled responses.

        Args:
            _input: [B, T, H], hidden states.
            lin_weight: [V, H], the LM head's; another dtype than that of `_input` is converted to it, and so are those
                of `bias`, `ref_weight` and `ref_bias`.
            selected_token_ids: [B, T] integers, the token that each position predicts.
            attention_mask: [B, T], 0 at padding.
            advantages: [B].
            bias: [V].
            ref_per_token_logps: [B, T], the reference model's log-probabilities, in nats.
            old_per_token_logps: [B, T], those of the policy that sampled; None: the present ones.
            ref_input: [B, T, H'], the reference model's hidden states, if not its log-probabilities.
            ref_weight: [V, H'].
            ref_bias: [V].
            vllm_is_ratio: [B], [B, 1] or [B, T], a ratio that each token's loss (not its KL) is multiplied by.
            num_items_in_batch: scored tokens of the whole step over all processes, for "dapo", "cispo" and "vespo".

        Returns:
            The loss, a scalar; and ``(kl, clip_ratio)``, without gradient: means over the scored tokens of the KL
            estimate and of whether a token was clipped. Where β is 0, ``(clip_ratio,)``.

        Raises:
            TypeError, ValueError: a tensor that is missing or does not fit the others, or a token that is no class
                where the mask is not 0.
        """
        return _score(
            self,
            _input,
            lin_weight,
            selected_token_ids,
            attention_mask,
            advantages,
            bias,
            ref_per_token_logps,
            old_per_token_logps,
            ref_input,
            ref_weight,
            ref_bias,
            vllm_is_ratio,
            num_items_in_batch,
        )


def _score(
    options: Any,
    _input: Tensor,
    weight: Tensor,
    selected_token_ids: Tensor,
    attention_mask: Tensor,
    advantages: Tensor,
    bias: Tensor | None,
    ref_per_token_logps: Tensor | None,
    old_per_token_logps: Tensor | None,
    ref_input: Tensor | None,
    ref_weight: Tensor | None,
    ref_bias: Tensor | None,
    vllm_is_ratio: Tensor | None,
    num_items_in_batch: Tensor | float | None,
) -> Result:
    """The loss of B responses and what Liger returns with it; `options` has Liger's options as attributes."""
    settings = Settings(**{name: getattr(options, name) for name in _SETTINGS})
    _check_read(settings)
    check_chunk_size(options.chunk_size)
    check_padded(_input, selected_token_ids, "selected_token_ids")
    _check_columns(
        selected_token_ids.shape,
        attention_mask,
        advantages,
        ref_per_token_logps,
        old_per_token_logps,
        vllm_is_ratio,
    )
    if options.loss_type == "dr_grpo" and not options.max_completion_length:
        raise ValueError(
            "max_completion_length must be provided for loss_type 'dr_grpo': expected at least 1, "
            f"got {options.max_completion_length}"
        )
    compared = options.use_ref_model and _needs_reference(settings, ref_per_token_logps, ref_input, ref_weight)
    logps, made = _log_probabilities(
        (_input, weight, bias),
        selected_token_ids,
        None if settings.reads_padding else attention_mask != 0,
        float(options.temperature) if isinstance(options.temperature, bool) else options.temperature,
        (ref_input, ref_weight, ref_bias) if compared else None,
    )
    reference = ref_per_token_logps if options.use_ref_model and not compared else made
    return _policy.policy_loss(
        settings,
        Tokens(
            logps,
            _constant(old_per_token_logps, logps, attention_mask, settings),
            _constant(reference, logps, attention_mask, settings),
            attention_mask.to(logps.dtype),
            advantages.unsqueeze(1).to(logps.dtype),
            None if vllm_is_ratio is None else vllm_is_ratio.reshape(len(vllm_is_ratio), -1).to(logps.dtype),
            num_items_in_batch,
        ),
    )


def _check_read(settings: Settings) -> None:
    """Refuses what the loss of this call cannot read; Liger says so in the call, too, and not at construction."""
    for name, words, known in (
        ("loss_type", "loss type", _policy.LOSS_TYPES),
        ("importance_sampling_level", "importance sampling level", _policy.LEVELS),
    ):
        value = getattr(settings, name)
        if value not in known:
            raise ValueError(f"{name}: Unknown {words}: {value}; expected one of {', '.join(known)}")
    if settings.importance_sampling_level == "sequence" and settings.loss_type in ("cispo", "sapo", "vespo"):
        raise ValueError(
            f"importance_sampling_level: Sequence-level importance sampling is not supported with "
            f"loss_type={settings.loss_type!r}; expected 'token', got 'sequence'"
        )
    if settings.loss_type == "sapo":
        _check_positive("sapo_temperature_pos", settings.sapo_temperature_pos)
        _check_positive("sapo_temperature_neg", settings.sapo_temperature_neg)


def _check_positive(name: str, value: float) -> None:
    """Refuses 0 and less, in Liger's words."""
    if value <= 0:
        raise ValueError(f"{name} must be positive, got {value}")


def _check_columns(
    shape: torch.Size,
    attention_mask: Any,
    advantages: Any,
    ref_per_token_logps: Any,
    old_per_token_logps: Any,
    vllm_is_ratio: Any,
) -> None:
    """Refuses columns of other shapes than the tokens'."""
    per_token, per_response = tuple(shape), (shape[0],)
    columns = (
        ("attention_mask", attention_mask, (per_token,)),
        ("advantages", advantages, (per_response,)),
        ("ref_per_token_logps", ref_per_token_logps, (None, per_token)),
        ("old_per_token_logps", old_per_token_logps, (None, per_token)),
        ("vllm_is_ratio", vllm_is_ratio, (None, per_response, (shape[0], 1), per_token)),
    )
    for name, value, allowed in columns:
        came = tuple(value.shape) if isinstance(value, Tensor) else value
        if came not in allowed:
            expected = " or ".join(str(shape) for shape in allowed if shape is not None)
            raise ValueError(f"{name}: expected shape {expected}, got {came}")


def _needs_reference(settings: Settings, logps: Tensor | None, ref_input: Tensor | None, weight: Tensor | None) -> bool:
    """Whether the reference's log-probabilities are to be made of its hidden states."""
    if logps is None and ref_input is None:
        raise ValueError("If use_ref_model is True, ref_per_token_logps or ref_input must be provided; got neither")
    if logps is not None:
        if ref_input is not None:
            warnings.warn("ref_input: not read, both were given. Using ref_per_token_logps", stacklevel=3)
        return False
    if weight is None:
        raise ValueError("ref_weight: missing, and ref_input needs it")
    return settings.beta != 0


def _log_probabilities(
    head: tuple[Tensor, Tensor, Tensor | None],
    tokens: Tensor,
    mask: Tensor | None,
    temperature: float,
    reference: tuple[Tensor | None, Tensor | None, Tensor | None] | None,
) -> tuple[Tensor, Tensor | None]:
    """The policy's log-probabilities, and those of the reference if its hidden states are given: [B, T]."""
    _input, weight, bias = head
    hidden, own_weight, own_bias = (None, None, None) if reference is None else reference
    if hidden is not None and own_weight is not None and is_wider(hidden, _input):
        # Beside the policy's its logits would be rounded.
        with torch.no_grad():
            apart, _ = _log_probabilities((hidden, own_weight, own_bias), tokens, mask, temperature, None)
        return _log_probabilities(head, tokens, mask, temperature, None)[0], apart
    with liger_names(labels="selected_token_ids", mask="attention_mask"):
        made = linear_token_stats(
            _input,
            _as(weight, _input),
            tokens,
            ("logp",) if reference is None else ("logp", "ref_logp"),
            bias=_as(bias, _input),
            reference_hidden=hidden,
            reference_weight=_as(own_weight, hidden),
            reference_bias=_as(own_bias, hidden),
            mask=mask,
            ignore_index=NO_LABEL_IGNORED,
            temperature=temperature,
        )
    return made.logp, made.get("ref_logp")


def _as(tensor: Any, like: Any) -> Any:
    return tensor.to(like.dtype) if isinstance(tensor, Tensor) and isinstance(like, Tensor) else tensor


def _constant(given: Tensor | None, logps: Tensor, mask: Tensor, settings: Settings) -> Tensor:
    """Log-probabilities without a gradient, by default the present ones.

    Masked tokens have log-probability 0 in `logps`, so they have it here: whatever stands at padding, a ratio to it
    stays finite, and 0 times it is 0.
    """
    if given is None:
        return logps.detach()
    given = given.detach().to(logps.dtype)
    return given if settings.reads_padding else given.where(mask != 0, 0.0)


class LigerFusedLinearGRPOFunction:
    """Liger's fused linear layer with a GRPO loss: `apply` in the place of its autograd function's."""

    apply = staticmethod(
        apply_of(
            LigerFusedLinearGRPOLoss,
            _score,
            "_input weight selected_token_ids attention_mask advantages bias? ref_per_token_logps? "
            "old_per_token_logps? ref_input? ref_weight? ref_bias? beta epsilon_low epsilon_high loss_type "
            "max_completion_length importance_sampling_level sapo_temperature_pos sapo_temperature_neg temperature "
            "compiled use_ref_model chunk_size vllm_is_ratio? delta use_bias_correction_kl vespo_k_pos "
            "vespo_lambda_pos vespo_k_neg vespo_lambda_neg num_items_in_batch?",
        )
    )
