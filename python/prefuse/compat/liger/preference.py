"""Liger's losses of pairs: DPO, CPO, SimPO and ORPO."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from prefuse.compat._shared import check_chunk_size
from prefuse.compat.liger import _objectives
from prefuse.compat.liger._head import check_padded, liger_names, logit_means, reference_of
from prefuse.language import Objective
from prefuse.losses.preference import preference_loss

Result = tuple[Tensor, tuple[Tensor, ...]]


class LigerFusedLinearDPOFunction:
    """Liger's fused linear layer with a DPO loss: `apply` in the place of its autograd function's."""

    @staticmethod
    def apply(
        _input: Tensor,
        weight: Tensor,
        target: Tensor,
        bias: Tensor | None = None,
        ref_input: Tensor | None = None,
        ref_weight: Tensor | None = None,
        ref_bias: Tensor | None = None,
        ignore_index: int = -100,
        beta: float = 0.1,
        compute_nll_loss: bool = False,
        compiled: bool = True,
        use_ref_model: bool = True,
        average_log_prob: bool = False,
        chunk_size: int = 1,
        loss_type: str = "sigmoid",
        label_smoothing: float = 0.0,
        discopop_tau: float = 0.05,
        alpha: float = 1.0,
    ) -> Result:
        """The loss of B pairs and what Liger returns beside it; see `LigerFusedLinearDPOLoss`."""
        check_dpo(loss_type, label_smoothing)
        check_chunk_size(chunk_size)
        objective = _bound(
            _objectives.dpo,
            loss_type=loss_type,
            average=bool(average_log_prob),
            referenced=bool(use_ref_model),
            alpha=1.0 if compute_nll_loss else None,
        )
        return _score(
            objective,
            {"beta": beta, "label_smoothing": label_smoothing, "tau": discopop_tau},
            (_input, weight, target, bias),
            ignore_index,
            alpha if compute_nll_loss else None,
            reference=reference_of(use_ref_model, ref_input, ref_weight, ref_bias, _input, target, ignore_index),
        )


class LigerFusedLinearDPOLoss(nn.Module):
    """Liger's DPO losses from hidden states (Rafailov et al. 2023, arXiv:2305.18290, and the losses after it).

    ``loss_type``, by the catalogue's formulas in `prefuse.objectives`: "sigmoid", "hinge", "exo_pair", "nca_pair",
    "robust", "bco_pair" (without a running δ), "sppo_hard", "apo_zero", "apo_down" or "discopop". As in Liger, only
    "exo_pair" and "robust" read ``label_smoothing``; with another loss it is a warning.

    Args:
        ignore_index: the label of tokens that are not scored.
        beta: β.
        alpha: weight of the chosen responses' negative log-likelihood.
        compute_nll_loss: whether there is that term: the mean over all chosen tokens of the batch.
        compiled: changes nothing.
        use_ref_model: whether log-ratios are to a reference; without, its log-probabilities count as 0.
        average_log_prob: whether a response's log-probability is the mean over its tokens, instead of the sum.
        chunk_size: changes no result.
        loss_type: see above.
        label_smoothing: ε.
        discopop_tau: τ of "discopop".

    Raises:
        ValueError: an unknown `loss_type`, or a `label_smoothing` it has no loss for.
    """

    def __init__(
        self,
        ignore_index: int = -100,
        beta: float = 0.1,
        alpha: float = 1.0,
        compute_nll_loss: bool = False,
        compiled: bool = True,
        use_ref_model: bool = True,
        average_log_prob: bool = False,
        chunk_size: int = 1,
        loss_type: str = "sigmoid",
        label_smoothing: float = 0.0,
        discopop_tau: float = 0.05,
    ) -> None:
        super().__init__()
        check_dpo(loss_type, label_smoothing)
        check_chunk_size(chunk_size)
        self.ignore_index = ignore_index
        self.beta = beta
        self.alpha = alpha
        self.compute_nll_loss = compute_nll_loss
        self.compiled = compiled
        self.use_ref_model = use_ref_model
        self.average_log_prob = average_log_prob
        self.chunk_size = chunk_size
        self.loss_type = loss_type
        self.label_smoothing = label_smoothing
        self.discopop_tau = discopop_tau

    def forward(
        self,
        lin_weight: Tensor,
        _input: Tensor,
        target: Tensor,
        bias: Tensor | None = None,
        ref_input: Tensor | None = None,
        ref_weight: Tensor | None = None,
        ref_bias: Tensor | None = None,
    ) -> Result:
        """Score B pairs.

        Args:
            lin_weight: [V, H], the LM head's.
            _input: [2B, T, H], hidden states: the chosen responses, then the rejected ones in the same order.
            target: [2B, T] integers, the token that each position predicts (already shifted).
            bias: [V].
            ref_input: [2B, T, H'], the reference model's hidden states.
            ref_weight: [V, H'].
            ref_bias: [V].

        Returns:
            The loss, a scalar: the mean over pairs; and ``(chosen_logps [B], rejected_logps [B], chosen_logits_mean,
            rejected_logits_mean, nll_loss, chosen_rewards [B], rejected_rewards [B])``, without gradient. The means of
            logits are over all positions and classes, ignored positions too; rewards are β times the log-ratio.

        Raises:
            TypeError, ValueError: a tensor that is missing or does not fit the others, an odd number of responses, or
                a label that is neither a class nor `ignore_index`.
        """
        return LigerFusedLinearDPOFunction.apply(
            _input,
            lin_weight,
            target,
            bias,
            ref_input,
            ref_weight,
            ref_bias,
            self.ignore_index,
            self.beta,
            self.compute_nll_loss,
            self.compiled,
            self.use_ref_model,
            self.average_log_prob,
            self.chunk_size,
            self.loss_type,
            self.label_smoothing,
            self.discopop_tau,
            self.alpha,
        )


class LigerFusedLinearCPOFunction:
    """Liger's fused linear layer with the CPO loss: `apply` in the place of its autograd function's."""

    @staticmethod
    def apply(
        _input: Tensor,
        weight: Tensor,
        target: Tensor,
        bias: Tensor | None = None,
        ignore_index: int = -100,
        beta: float = 0.1,
        alpha: float = 1.0,
        label_smoothing: float = 0.0,
        compute_nll_loss: bool = True,
        compiled: bool = True,
        average_log_prob: bool = False,
        chunk_size: int = 1,
    ) -> Result:
        """The loss of B pairs and what Liger returns beside it; see `LigerFusedLinearCPOLoss`."""
        check_chunk_size(chunk_size)
        objective = _bound(
            _objectives.cpo,
            average=bool(average_log_prob),
            label_smoothing=1.0 if label_smoothing else None,
            alpha=1.0 if compute_nll_loss else None,
        )
        return _score(
            objective,
            {"beta": beta} | ({"label_smoothing": label_smoothing} if label_smoothing else {}),
            (_input, weight, target, bias),
            ignore_index,
            alpha if compute_nll_loss else None,
        )


class LigerFusedLinearCPOLoss(nn.Module):
    """Liger's CPO from hidden states (Xu et al. 2024, arXiv:2401.08417, eq. 3 and its likelihood term).

    ``-(1-ε) log σ(z) - ε log σ(-z)`` with ``z = β [log π(w) - log π(l)]``, plus α times the likelihood term.

    Args:
        ignore_index: the label of tokens that are not scored.
        beta: β.
        alpha: weight of the chosen responses' negative log-likelihood.
        label_smoothing: ε.
        compute_nll_loss: whether there is that term: the mean over all chosen tokens of the batch.
        compiled: changes nothing.
        average_log_prob: whether a response's log-probability is the mean over its tokens, instead of the sum.
        chunk_size: changes no result.
    """

    def __init__(
        self,
        ignore_index: int = -100,
        beta: float = 0.1,
        alpha: float = 1.0,
        label_smoothing: float = 0.0,
        compute_nll_loss: bool = True,
        compiled: bool = True,
        average_log_prob: bool = False,
        chunk_size: int = 1,
    ) -> None:
        super().__init__()
        check_chunk_size(chunk_size)
        self.ignore_index = ignore_index
        self.beta = beta
        self.alpha = alpha
        self.label_smoothing = label_smoothing
        self.compute_nll_loss = compute_nll_loss
        self.compiled = compiled
        self.average_log_prob = average_log_prob
        self.chunk_size = chunk_size

    def forward(self, lin_weight: Tensor, _input: Tensor, target: Tensor, bias: Tensor | None = None) -> Result:
        """Score B pairs: arguments, results and errors are those of `LigerFusedLinearDPOLoss.forward`.

        The rewards are β times the log-probability.
        """
        return LigerFusedLinearCPOFunction.apply(
            _input,
            lin_weight,
            target,
            bias,
            self.ignore_index,
            self.beta,
            self.alpha,
            self.label_smoothing,
            self.compute_nll_loss,
            self.compiled,
            self.average_log_prob,
            self.chunk_size,
        )


class LigerFusedLinearSimPOFunction:
    """Liger's fused linear layer with the SimPO loss: `apply` in the place of its autograd function's."""

    @staticmethod
    def apply(
        _input: Tensor,
        weight: Tensor,
        target: Tensor,
        bias: Tensor | None = None,
        ignore_index: int = -100,
        beta: float = 0.1,
        alpha: float = 1.0,
        label_smoothing: float = 0.0,
        compute_nll_loss: bool = False,
        compiled: bool = True,
        gamma: float = 0.5,
        chunk_size: int = 1,
    ) -> Result:
        """The loss of B pairs and what Liger returns beside it; see `LigerFusedLinearSimPOLoss`."""
        check_chunk_size(chunk_size)
        objective = _bound(
            _objectives.simpo,
            label_smoothing=1.0 if label_smoothing else None,
            alpha=1.0 if compute_nll_loss else None,
        )
        return _score(
            objective,
            {"beta": beta, "gamma": gamma} | ({"label_smoothing": label_smoothing} if label_smoothing else {}),
            (_input, weight, target, bias),
            ignore_index,
            alpha if compute_nll_loss else None,
        )


class LigerFusedLinearSimPOLoss(nn.Module):
    """Liger's SimPO from hidden states (Meng et al. 2024, arXiv:2405.14734, eq. 6), by default with a likelihood term.

    ``-(1-ε) log σ(z) - ε log σ(-z)`` with ``z = β [avg(w) - avg(l)] - γ``, plus α times the likelihood term, which the
    paper does not have: ``compute_nll_loss=False`` is SimPO.

    Args:
        ignore_index: the label of tokens that are not scored.
        beta: β.
        alpha: weight of the chosen responses' negative log-likelihood.
        label_smoothing: ε.
        compute_nll_loss: whether there is that term: the mean over all chosen tokens of the batch.
        compiled: changes nothing.
        gamma: γ itself, not its ratio to β.
        chunk_size: changes no result.
    """

    def __init__(
        self,
        ignore_index: int = -100,
        beta: float = 0.1,
        alpha: float = 1.0,
        label_smoothing: float = 0.0,
        compute_nll_loss: bool = True,
        compiled: bool = True,
        gamma: float = 0.5,
        chunk_size: int = 1,
    ) -> None:
        super().__init__()
        check_chunk_size(chunk_size)
        self.ignore_index = ignore_index
        self.beta = beta
        self.alpha = alpha
        self.label_smoothing = label_smoothing
        self.compute_nll_loss = compute_nll_loss
        self.compiled = compiled
        self.gamma = gamma
        self.chunk_size = chunk_size

    def forward(self, lin_weight: Tensor, _input: Tensor, target: Tensor, bias: Tensor | None = None) -> Result:
        """Score B pairs: arguments, results and errors are those of `LigerFusedLinearDPOLoss.forward`.

        Log-probabilities are means over the tokens, and the rewards β times them.
        """
        return LigerFusedLinearSimPOFunction.apply(
            _input,
            lin_weight,
            target,
            bias,
            self.ignore_index,
            self.beta,
            self.alpha,
            self.label_smoothing,
            self.compute_nll_loss,
            self.compiled,
            self.gamma,
            self.chunk_size,
        )


class LigerFusedLinearORPOFunction:
    """Liger's fused linear layer with the ORPO loss: `apply` in the place of its autograd function's."""

    @staticmethod
    def apply(
        _input: Tensor,
        weight: Tensor,
        target: Tensor,
        bias: Tensor | None = None,
        ignore_index: int = -100,
        beta: float = 0.1,
        compute_nll_loss: bool = True,
        nll_target: Tensor | None = None,
        compiled: bool = True,
        chunk_size: int = 1,
    ) -> Result:
        """The loss of B pairs and what Liger returns beside it; see `LigerFusedLinearORPOLoss`."""
        check_chunk_size(chunk_size)
        own_likelihood = compute_nll_loss and nll_target is not None
        objective = _bound(_objectives.orpo, alpha=1.0 if compute_nll_loss else None, own_likelihood=own_likelihood)
        return _score(
            objective,
            {"beta": beta},
            (_input, weight, target, bias),
            ignore_index,
            1.0 if compute_nll_loss else None,
            nll_target=nll_target if own_likelihood else None,
        )


class LigerFusedLinearORPOLoss(nn.Module):
    """Liger's ORPO from hidden states (Hong et al. 2024, arXiv:2403.07691, eqs. 6 and 7).

    ``NLL(w) - β log σ(o(w) - o(l))`` with ``o(y) = avg(y) - log(1 - e^{avg(y)})`` the log-odds of the response.

    Args:
        ignore_index: the label of tokens that are not scored.
        beta: β, λ of the paper.
        compute_nll_loss: whether there is the likelihood term: the mean over all chosen tokens of the batch.
        compiled: changes nothing.
        chunk_size: changes no result.
    """

    def __init__(
        self,
        ignore_index: int = -100,
        beta: float = 0.1,
        compute_nll_loss: bool = True,
        compiled: bool = True,
        chunk_size: int = 1,
    ) -> None:
        super().__init__()
        check_chunk_size(chunk_size)
        self.ignore_index = ignore_index
        self.beta = beta
        self.compute_nll_loss = compute_nll_loss
        self.compiled = compiled
        self.chunk_size = chunk_size

    def forward(
        self,
        lin_weight: Tensor,
        _input: Tensor,
        target: Tensor,
        bias: Tensor | None = None,
        nll_target: Tensor | None = None,
    ) -> Result:
        """Score B pairs: arguments, results and errors are those of `LigerFusedLinearDPOLoss.forward`.

        Args:
            lin_weight: [V, H].
            _input: [2B, T, H].
            target: [2B, T].
            bias: [V].
            nll_target: [2B, T], labels of the likelihood term, whose first B rows are read; those of the prompt as
                well, say. None: `target`.

        Returns:
            The loss, and the seven values of `LigerFusedLinearDPOLoss.forward` with ``log_odds_ratio`` (the mean of
            ``log σ(o(w) - o(l))``) and ``log_odds_chosen`` (the mean of ``o(w) - o(l)``) after them.
        """
        return LigerFusedLinearORPOFunction.apply(
            _input,
            lin_weight,
            target,
            bias,
            self.ignore_index,
            self.beta,
            self.compute_nll_loss,
            nll_target,
            self.compiled,
            self.chunk_size,
        )


def check_dpo(loss_type: str, label_smoothing: float) -> None:
    """Refuses a loss type and a smoothing that Liger has no loss for; warns of a smoothing that it would not read."""
    if loss_type not in _objectives.LOSS_TYPES:
        raise ValueError(
            f"Unsupported loss_type: expected one of {', '.join(_objectives.LOSS_TYPES)}, got {loss_type!r}"
        )
    if loss_type == "exo_pair" and label_smoothing <= 0:
        raise ValueError(f"label_smoothing must be > 0 for loss_type='exo_pair', got {label_smoothing}")
    if loss_type == "robust" and not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must lie in [0.0, 0.5) for loss_type='robust', got {label_smoothing}")
    if label_smoothing and loss_type not in _objectives.SMOOTHED:
        warnings.warn(
            f"label_smoothing: {label_smoothing} has no effect with loss_type={loss_type!r}, as in Liger; "
            "prefuse.objectives.dpo has the smoothed loss",
            stacklevel=3,
        )


@lru_cache
def _bound(objective: Objective, **shaping: Any) -> Objective:
    """The objective with the settings that shape its formula: one object for each formula, which keeps its programs."""
    bound: Objective = objective(**shaping)
    return bound


def _score(
    objective: Objective,
    numbers: dict[str, Any],
    head: tuple[Tensor, Tensor, Tensor, Tensor | None],
    ignore_index: int,
    alpha: float | None,
    reference: dict[str, Any] | None = None,
    nll_target: Tensor | None = None,
) -> Result:
    """The loss, and what is beside it in Liger's order.

    Args:
        objective: one of `_objectives`, its formula settled.
        numbers: its hyper-parameters.
        head: hidden states, weight, labels, bias.
        ignore_index: the label of tokens that are not scored.
        alpha: weight of the likelihood term; None: there is none.
        reference: arguments of `preference_loss`.
        nll_target: labels of the likelihood term where it has its own.
    """
    _input, weight, target, bias = head
    check_padded(_input, target)
    if target.shape[0] % 2:
        raise ValueError(f"target: expected as many rejected responses as chosen ones, got {target.shape[0]} in all")
    pairs = target.shape[0] // 2
    columns: dict[str, Any] = {}
    hidden, labels = _input, target
    if alpha is not None:
        likelihood = target if nll_target is None else nll_target
        tokens = (likelihood[:pairs] != ignore_index).sum().clamp(min=1)
        columns = {"alpha": alpha, "pairs_per_token": pairs / tokens.double()}
    if nll_target is not None:
        counts, extra = _likelihood_labels(target, nll_target, ignore_index)
        hidden, labels = torch.cat([_input, _input[:pairs]]), torch.cat([target, extra])
        columns["chosen_token_counts"] = counts
    with liger_names():
        score = preference_loss(
            objective,
            hidden=hidden,
            weight=weight,
            bias=bias,
            labels=labels,
            ignore_index=ignore_index,
            **(reference or {}),
            **numbers,
            **columns,
        )
    return score.loss, _auxiliary(score.rewards, logit_means(_input, weight, bias))


def _likelihood_labels(target: Tensor, nll_target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Which chosen tokens count for the likelihood as they stand, and labels of those that it has beyond them."""
    if not isinstance(nll_target, Tensor):
        raise TypeError(f"nll_target: expected a tensor, got {type(nll_target).__name__}")
    if nll_target.shape != target.shape:
        raise ValueError(f"nll_target: expected shape {tuple(target.shape)}, got {tuple(nll_target.shape)}")
    own, chosen = (labels[: target.shape[0] // 2] for labels in (nll_target, target))
    counts = (own == chosen) & (own != ignore_index)
    return counts.to(torch.float32), own.masked_fill(counts, ignore_index)


def _auxiliary(named: dict[str, Tensor], logit_means: Tensor) -> tuple[Tensor, ...]:
    """What Liger returns beside the loss; `logit_means` are those of each response."""
    pairs = logit_means.shape[0] // 2
    nll = named["nll"].mean() if "nll" in named else logit_means.new_zeros(())
    odds = [named[name].mean() for name in ("log_odds_ratio", "log_odds_chosen") if name in named]
    logps = (named["chosen_logps"], named["rejected_logps"])
    means = (logit_means[:pairs].mean(), logit_means[pairs:].mean())
    return (*logps, *means, nll, named["chosen"], named["rejected"], *odds)
