"""Liger's loss of single responses: KTO."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from prefuse.compat._shared import check_chunk_size
from prefuse.compat.liger import _objectives
from prefuse.compat.liger._form import Loss, Result, apply_of
from prefuse.compat.liger._head import check_padded, liger_names, logit_sums, reference_of
from prefuse.language import Objective
from prefuse.losses.preference import preference_loss


@dataclass(eq=False, repr=False)
class LigerFusedLinearKTOLoss(Loss):
    """Liger's KTO from hidden states (Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7), without class weights.

    ``1 - σ(β (h - kl))`` for a desirable response, ``1 - σ(β (kl - h))`` for an undesirable one, h the log-ratio.
    `prefuse.objectives.kto` has the weights, and the paper's ``max(0, kl)``.

    Args:
        ignore_index: the label of tokens that are not scored.
        beta: β.
        compiled: changes nothing.
        use_ref_model: whether log-ratios are to a reference; without, its log-probabilities count as 0.
        average_log_prob: whether a response's log-probability is the mean over its tokens, instead of the sum.
        chunk_size: changes no result.
    """

    ignore_index: int = -100
    beta: float = 0.1
    compiled: bool = True
    use_ref_model: bool = False
    average_log_prob: bool = False
    chunk_size: int = 1

    def forward(
        self,
        _input: Tensor,
        lin_weight: Tensor,
        target: Tensor,
        bias: Tensor | None = None,
        preference_labels: Tensor | None = None,
        ref_input: Tensor | None = None,
        ref_weight: Tensor | None = None,
        ref_bias: Tensor | None = None,
        kl: Tensor | None = None,
    ) -> Result:
        """Score B responses.

        Args:
            _input: [B, T, H], hidden states.
            lin_weight: [V, H], the LM head's.
            target: [B, T] integers, the token that each position predicts (already shifted).
            bias: [V].
            preference_labels: [B] bool, True for a desirable response.
            ref_input: [B, T, H'], the reference model's hidden states.
            ref_weight: [V, H'].
            ref_bias: [V].
            kl: one number, or [B] with one for each response: what log-ratios are compared with, in nats; taken as it
                is, without a gradient. None: 0.

        Returns:
            The loss, a scalar: the mean over responses; and ``(chosen_logps_sum, rejected_logps_sum, chosen_logits_sum,
            rejected_logits_sum, chosen_rewards_sum, rejected_rewards_sum)``, without gradient: sums over the desirable
            and the undesirable responses. Those of logits are over all positions and classes, ignored positions too.

        Raises:
            TypeError, ValueError: a tensor that is missing or does not fit the others, or a label that is neither a
                class nor `ignore_index`.
        """
        reference = {"ref_input": ref_input, "ref_weight": ref_weight, "ref_bias": ref_bias}
        return _score(self, _input, lin_weight, target, preference_labels, bias, **reference, kl=kl)


def _score(
    options: Any,
    _input: Tensor,
    weight: Tensor,
    target: Tensor,
    preference_labels: Any,
    bias: Tensor | None,
    ref_input: Tensor | None,
    ref_weight: Tensor | None,
    ref_bias: Tensor | None,
    kl: Tensor | None,
) -> Result:
    """The loss of B responses and what Liger returns with it; `options` has Liger's options as attributes."""
    check_chunk_size(options.chunk_size)
    check_padded(_input, target)
    _check_labels(preference_labels, target.shape[0])
    referenced, ignored = bool(options.use_ref_model), options.ignore_index
    columns: dict[str, Any] = {} if kl is None else {"kl": _per_response(kl, target)}
    with liger_names(label="preference_labels"):
        score = preference_loss(
            _bound(bool(options.average_log_prob), referenced, kl is not None),
            hidden=_input,
            weight=weight,
            bias=bias,
            labels=target,
            ignore_index=ignored,
            beta=options.beta,
            label=preference_labels,
            **reference_of(referenced, ref_input, ref_weight, ref_bias, _input, target, ignored),
            **columns,
        )
    rewards = score.rewards
    values = (rewards["logps"], logit_sums(_input, weight, bias), rewards[""])
    return score.loss, tuple(
        value.where(side, 0.0).sum() for value in values for side in (preference_labels, ~preference_labels)
    )


@lru_cache
def _bound(average: bool, referenced: bool, shifted: bool) -> Objective:
    """The objective with its formula settled: one object for each formula, which keeps its programs."""
    bound: Objective = _objectives.kto(average=average, referenced=referenced, shifted=shifted)
    return bound


def _check_labels(preference_labels: Any, responses: int) -> None:
    if not isinstance(preference_labels, Tensor) or preference_labels.dtype != torch.bool:
        came = getattr(preference_labels, "dtype", type(preference_labels).__name__)
        raise TypeError(f"preference_labels: expected a bool tensor, got {came}")
    if preference_labels.shape != (responses,):
        raise ValueError(f"preference_labels: expected shape ({responses},), got {tuple(preference_labels.shape)}")


def _per_response(kl: Tensor | float, target: Tensor) -> Tensor:
    """`kl` for every response, without its gradient."""
    kl = torch.as_tensor(kl, dtype=torch.float32 if not isinstance(kl, Tensor) else None, device=target.device).detach()
    if kl.numel() != 1 and kl.shape != target.shape[:1]:
        raise ValueError(f"kl: expected one number or shape ({target.shape[0]},), got {tuple(kl.shape)}")
    return kl.reshape(-1).expand(target.shape[0])


class LigerFusedLinearKTOFunction:
    """Liger's fused linear layer with the KTO loss: `apply` in the place of its autograd function's."""

    apply = staticmethod(
        apply_of(
            LigerFusedLinearKTOLoss,
            _score,
            "_input weight target preference_labels bias? ref_input? ref_weight? ref_bias? kl? ignore_index beta "
            "compiled use_ref_model average_log_prob chunk_size",
            use_ref_model=True,
        )
    )
