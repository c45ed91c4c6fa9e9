"""Liger's losses of pairs: DPO, CPO, SimPO and ORPO.

`_FORMULAS` says what each one is; `_score` computes all of them.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefuse.compat._shared import check_chunk_size
from prefuse.compat.liger import _objectives
from prefuse.compat.liger._form import Loss, Result, apply_of
from prefuse.compat.liger._head import check_padded, liger_names, logit_means, reference_of
from prefuse.language import Objective
from prefuse.losses.preference import preference_loss


class _Formula(NamedTuple):
    """A loss: an objective, and which option of Liger's is which hyper-parameter of it.

    Attributes:
        objective: one of `_objectives`.
        settled: hyper-parameters that shape the formula.
        numbers: those that are numbers in it.
        left_out: those of `numbers` whose term is left out at 0.
    """

    objective: Objective
    settled: dict[str, str]
    numbers: dict[str, str]
    left_out: tuple[str, ...] = ()


_FORMULAS = {
    "dpo": _Formula(
        _objectives.dpo,
        settled={"loss_type": "loss_type", "average": "average_log_prob", "referenced": "use_ref_model"},
        numbers={"beta": "beta", "label_smoothing": "label_smoothing", "tau": "discopop_tau"},
    ),
    "cpo": _Formula(
        _objectives.cpo,
        settled={"average": "average_log_prob"},
        numbers={"beta": "beta", "label_smoothing": "label_smoothing"},
        left_out=("label_smoothing",),
    ),
    "simpo": _Formula(
        _objectives.simpo,
        settled={},
        numbers={"beta": "beta", "gamma": "gamma", "label_smoothing": "label_smoothing"},
        left_out=("label_smoothing",),
    ),
    "orpo": _Formula(_objectives.orpo, settled={}, numbers={"beta": "beta"}),
}


@dataclass(eq=False, repr=False)
class LigerFusedLinearDPOLoss(Loss):
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

    ignore_index: int = -100
    beta: float = 0.1
    alpha: float = 1.0
    compute_nll_loss: bool = False
    compiled: bool = True
    use_ref_model: bool = True
    average_log_prob: bool = False
    chunk_size: int = 1
    loss_type: str = "sigmoid"
    label_smoothing: float = 0.0
    discopop_tau: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_dpo(self.loss_type, self.label_smoothing)

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
        reference = {"ref_input": ref_input, "ref_weight": ref_weight, "ref_bias": ref_bias}
        return _dpo(self, _input, lin_weight, target, bias, **reference)


@dataclass(eq=False, repr=False)
class LigerFusedLinearCPOLoss(Loss):
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

    ignore_index: int = -100
    beta: float = 0.1
    alpha: float = 1.0
    label_smoothing: float = 0.0
    compute_nll_loss: bool = True
    compiled: bool = True
    average_log_prob: bool = False
    chunk_size: int = 1

    def forward(self, lin_weight: Tensor, _input: Tensor, target: Tensor, bias: Tensor | None = None) -> Result:
        """Score B pairs: arguments, results and errors are those of `LigerFusedLinearDPOLoss.forward`.

        The rewards are β times the log-probability.
        """
        return _cpo(self, _input, lin_weight, target, bias)


@dataclass(eq=False, repr=False)
class LigerFusedLinearSimPOLoss(Loss):
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

    ignore_index: int = -100
    beta: float = 0.1
    alpha: float = 1.0
    label_smoothing: float = 0.0
    compute_nll_loss: bool = True
    compiled: bool = True
    gamma: float = 0.5
    chunk_size: int = 1

    def forward(self, lin_weight: Tensor, _input: Tensor, target: Tensor, bias: Tensor | None = None) -> Result:
        """Score B pairs: arguments, results and errors are those of `LigerFusedLinearDPOLoss.forward`.

        Log-probabilities are means over the tokens, and the rewards β times them.
        """
        return _simpo(self, _input, lin_weight, target, bias)


@dataclass(eq=False, repr=False)
class LigerFusedLinearORPOLoss(Loss):
    """Liger's ORPO from hidden states (Hong et al. 2024, arXiv:2403.07691, eqs. 6 and 7).

    ``NLL(w) - β log σ(o(w) - o(l))`` with ``o(y) = avg(y) - log(1 - e^{avg(y)})`` the log-odds of the response.

    Args:
        ignore_index: the label of tokens that are not scored.
        beta: β, λ of the paper.
        compute_nll_loss: whether there is the likelihood term: the mean over all chosen tokens of the batch.
        compiled: changes nothing.
        chunk_size: changes no result.
    """

    ignore_index: int = -100
    beta: float = 0.1
    compute_nll_loss: bool = True
    compiled: bool = True
    chunk_size: int = 1

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
        return _orpo(self, _input, lin_weight, target, bias, nll_target)


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
            stacklevel=4,
        )


@lru_cache
def _bound(objective: Objective, **shaping: Any) -> Objective:
    """The objective with the settings that shape its formula: one object for each formula, which keeps its programs."""
    bound: Objective = objective(**shaping)
    return bound


def _dpo(
    options: Any,
    _input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    ref_input: Tensor | None,
    ref_weight: Tensor | None,
    ref_bias: Tensor | None,
) -> Result:
    check_dpo(options.loss_type, options.label_smoothing)
    check_chunk_size(options.chunk_size)
    reference = reference_of(
        options.use_ref_model, ref_input, ref_weight, ref_bias, _input, target, options.ignore_index
    )
    return _score("dpo", options, (_input, weight, target, bias), reference)


def _cpo(options: Any, _input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None) -> Result:
    return _score("cpo", options, (_input, weight, target, bias))


def _simpo(options: Any, _input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None) -> Result:
    return _score("simpo", options, (_input, weight, target, bias))


def _orpo(
    options: Any, _input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, nll_target: Tensor | None
) -> Result:
    return _score("orpo", options, (_input, weight, target, bias), nll_target=nll_target)


def _score(
    loss: str,
    options: Any,
    head: tuple[Tensor, Tensor, Tensor, Tensor | None],
    reference: dict[str, Any] | None = None,
    nll_target: Tensor | None = None,
) -> Result:
    """The loss, and what Liger returns with it, in Liger's order.

    Args:
        loss: one of `_FORMULAS`.
        options: an object with Liger's options as attributes.
        head: hidden states, weight, labels, bias.
        reference: arguments of `preference_loss`.
        nll_target: labels of the likelihood term where it has its own.
    """
    check_chunk_size(options.chunk_size)
    nll_target = nll_target if options.compute_nll_loss else None
    objective, numbers = _settle(_FORMULAS[loss], options, nll_target is not None)
    _input, weight, target, bias = head
    check_padded(_input, target)
    if target.shape[0] % 2:
        raise ValueError(f"target: expected as many rejected responses as chosen ones, got {target.shape[0]} in all")
    pairs = target.shape[0] // 2
    columns: dict[str, Any] = {}
    hidden, labels = _input, target
    if options.compute_nll_loss:
        likelihood = target if nll_target is None else nll_target
        tokens = (likelihood[:pairs] != options.ignore_index).sum().clamp(min=1)
        columns = {"alpha": getattr(options, "alpha", 1.0), "pairs_per_token": pairs / tokens.double()}
    if nll_target is not None:
        counts, extra = _likelihood_labels(target, nll_target, options.ignore_index)
        hidden, labels = torch.cat([_input, _input[:pairs]]), torch.cat([target, extra])
        columns["chosen_token_counts"] = counts
    with liger_names():
        score = preference_loss(
            objective,
            hidden=hidden,
            weight=weight,
            bias=bias,
            labels=labels,
            ignore_index=options.ignore_index,
            **(reference or {}),
            **numbers,
            **columns,
        )
    return score.loss, _auxiliary(score.rewards, logit_means(_input, weight, bias))


def _settle(formula: _Formula, options: Any, own_likelihood: bool) -> tuple[Objective, dict[str, Any]]:
    """The objective with its formula settled, and its numbers."""
    settled: dict[str, Any] = {"alpha": 1.0 if options.compute_nll_loss else None}
    if own_likelihood:
        settled["own_likelihood"] = True
    for name, option in formula.settled.items():
        value = getattr(options, option)
        settled[name] = value if isinstance(value, str) else bool(value)
    numbers = {name: getattr(options, option) for name, option in formula.numbers.items()}
    for name in formula.left_out:
        settled[name] = 1.0 if numbers[name] else None
        if not numbers[name]:
            del numbers[name]
    return _bound(formula.objective, **settled), numbers


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


class LigerFusedLinearDPOFunction:
    """Liger's fused linear layer with a DPO loss: `apply` in the place of its autograd function's."""

    apply = staticmethod(
        apply_of(
            LigerFusedLinearDPOLoss,
            _dpo,
            "_input weight target bias? ref_input? ref_weight? ref_bias? ignore_index beta compute_nll_loss compiled "
            "use_ref_model average_log_prob chunk_size loss_type label_smoothing discopop_tau alpha",
        )
    )


class LigerFusedLinearCPOFunction:
    """Liger's fused linear layer with the CPO loss: `apply` in the place of its autograd function's."""

    apply = staticmethod(
        apply_of(
            LigerFusedLinearCPOLoss,
            _cpo,
            "_input weight target bias? ignore_index beta alpha label_smoothing compute_nll_loss compiled "
            "average_log_prob chunk_size",
        )
    )


class LigerFusedLinearSimPOFunction:
    """Liger's fused linear layer with the SimPO loss: `apply` in the place of its autograd function's."""

    apply = staticmethod(
        apply_of(
            LigerFusedLinearSimPOLoss,
            _simpo,
            "_input weight target bias? ignore_index beta alpha label_smoothing compute_nll_loss compiled gamma "
            "chunk_size",
            compute_nll_loss=False,
        )
    )


class LigerFusedLinearORPOFunction:
    """Liger's fused linear layer with the ORPO loss: `apply` in the place of its autograd function's."""

    apply = staticmethod(
        apply_of(
            LigerFusedLinearORPOLoss,
            _orpo,
            "_input weight target bias? ignore_index beta compute_nll_loss nll_target? compiled chunk_size",
        )
    )
