"""Pair objectives that need no reference model.

Notation: ``log π(y|x)`` summed over the response, ``avg(y)`` its mean per token, w chosen, l rejected. ``nll`` picks
how a likelihood term is normalised: ``"token_mean"`` over all chosen tokens of the batch (TRL, Liger),
``"response_mean"`` over each response, or ``"sum"``.
"""

from __future__ import annotations

from ..language import Expression, PairView, log1mexp, log_sigmoid, minimum, pair_objective
from ._terms import NON_NEGATIVE, POSITIVE, PROBABILITY, logistic, negative_log_likelihood

AVERAGE_CAP = -1e-7
"""`orpo` reads an average log-probability above this as this, so that the odds of a certain response stay finite."""


@pair_objective(bounds={"beta": POSITIVE, "label_smoothing": PROBABILITY})
def simpo(
    pair: PairView,
    *,
    beta: float = 2.0,
    gamma: float | None = None,
    gamma_beta_ratio: float | None = None,
    label_smoothing: float | None = None,
) -> Expression:
    """SimPO, average log-probability as reward with a margin (Meng et al. 2024, arXiv:2405.14734, eq. 6).

    ``-log σ(β [avg(w) - avg(l)] - γ)``, smoothed by ε as in `dpo`.

    beta: 2-10. gamma: the margin γ in the units of the logit; gamma_beta_ratio: the same as γ/β, 0-1. Give one of
    them; with neither the ratio is 0.5. label_smoothing: ε as in `dpo`.
    Libraries: TRL, Liger and LLaMA-Factory name the absolute γ ``(simpo_)gamma``; the authors' code and
    turbo-alignment take the ratio. TRL's and Liger's defaults also add a likelihood term: here, ``+ sft()``.
    """
    if gamma is not None and gamma_beta_ratio is not None:
        raise ValueError("simpo: give gamma or gamma_beta_ratio (= gamma / beta), not both")
    if gamma is None:
        gamma = beta * (0.5 if gamma_beta_ratio is None else gamma_beta_ratio)
    return logistic(beta * (pair.chosen.avg_logp - pair.rejected.avg_logp) - gamma, label_smoothing)


@pair_objective(bounds={"beta": NON_NEGATIVE})
def orpo(pair: PairView, *, beta: float = 0.1, nll: str = "token_mean") -> Expression:
    """Odds ratio preference optimization (Hong et al. 2024, arXiv:2403.07691, eqs. 6 and 7).

    ``NLL(w) - β log σ(o(w) - o(l))``, ``o(y) = avg(y) - log(1 - e^{avg(y)})`` the log-odds of the response.

    beta: λ of the paper, 0.05-1. nll: normalisation of the likelihood term.
    Averages above -1e-7 count as -1e-7 in the odds, with gradient 0: a response that certain has infinite odds.
    Libraries: TRL's likelihood term includes the prompt's tokens, Liger's may; LLaMA-Factory uses
    ``nll="response_mean"``.
    """
    odds_ratio = log_odds(pair.chosen.avg_logp) - log_odds(pair.rejected.avg_logp)
    return negative_log_likelihood(pair.chosen, nll) - beta * log_sigmoid(odds_ratio)


def log_odds(average: Expression) -> Expression:
    """The log-odds of a response of this average log-probability, capped at `AVERAGE_CAP`."""
    average = minimum(average, AVERAGE_CAP)
    return average - log1mexp(average)


@pair_objective(bounds={"beta": POSITIVE, "alpha": NON_NEGATIVE, "label_smoothing": PROBABILITY})
def cpo(
    pair: PairView,
    *,
    beta: float = 0.1,
    alpha: float = 1.0,
    label_smoothing: float | None = None,
    nll: str = "token_mean",
) -> tuple[Expression, dict[str, Expression]]:
    """Contrastive preference optimization (Xu et al. 2024, arXiv:2401.08417, eq. 3 and its likelihood term).

    ``-log σ(β [log π(w) - log π(l)]) + α NLL(w)``, the first term smoothed by ε as in `dpo`.

    beta: 0.05-0.5. alpha: weight of the likelihood term, 0-1. label_smoothing: ε as in `dpo`. nll: its
    normalisation; ``"token_mean"`` is one number for the batch, added to every pair.
    Libraries: TRL (``cpo_alpha``) and Liger agree; the paper's term is a sum per response.
    """
    chosen, rejected = beta * pair.chosen.logp, beta * pair.rejected.logp
    loss = logistic(chosen - rejected, label_smoothing) + alpha * negative_log_likelihood(pair.chosen, nll)
    return loss, {"chosen": chosen, "rejected": rejected}


@pair_objective
def sft(pair: PairView, *, nll: str = "token_mean") -> Expression:
    """Supervised fine-tuning on the chosen responses, as a term to add to a pair objective.

    ``NLL(w)``, e.g. ``dpo() + sft()`` is DPO with a likelihood term (RPO) and
    ``0.8 * dpo() + 0.2 * bco_pair() + sft()`` is MPO (Wang et al. 2024).

    nll: the normalisation; ``"token_mean"`` is one number for the batch, the same for every pair.
    Libraries: TRL's ``sft`` and Liger's NLL are token means; OpenRLHF and LLaMA-Factory average per response.
    """
    return negative_log_likelihood(pair.chosen, nll)
