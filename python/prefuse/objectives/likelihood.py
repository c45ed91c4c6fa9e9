"""Pair objectives that hold up a likelihood: of the chosen response, or of a further text.

The margin of DPO also grows while both responses lose probability; each of these has a term against that.
Notation: ``h(y) = log π(y|x) - log π_ref(y|x)`` summed over the response, ``Δ = h(w) - h(l)`` for chosen w and
rejected l, ``avg(y)`` the mean log-probability per token. ``nll`` picks the normalisation as in `reference_free`.
"""

from __future__ import annotations

from ..language import Expression, PairView, Paper, log_sigmoid, pair_objective, relu, softplus, square
from ._terms import NON_NEGATIVE, POSITIVE, PROBABILITY, choice, log_odds, log_ratio_margin, logistic
from ._terms import negative_log_likelihood as likelihood_term

_RATIONALE_DPO = Paper(
    "2407.14477", "Data-Centric Human Preference with Rationales for Direct Preference Alignment", "Just et al. 2024"
)


@pair_objective(
    paper=Paper(
        "2402.13228",
        "Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive",
        "Pal et al. 2024, Smaug",
    ),
    equation="eq. 3",
    identities=("dpop(penalty=0) = dpo",),
    bounds={"beta": POSITIVE, "penalty": NON_NEGATIVE},
)
def dpop(pair: PairView, *, beta: float = 0.1, penalty: float = 50.0) -> Expression:
    """DPO-Positive, DPOP.

    ``-log σ(β [Δ - λ max(0, -h(w))])``: a chosen response that the reference found likelier pays λ times its loss.

    beta: 0.05-0.5. penalty: λ, 5-500. At h(w) = 0 the penalty passes no gradient.
    Libraries: not in TRL or Liger; an older PaddleNLP adds the penalty outside the logarithm.
    """
    return -log_sigmoid(beta * (log_ratio_margin(pair) - penalty * relu(-pair.chosen.logratio)))


@pair_objective(
    paper=Paper("2404.19733", "Iterative Reasoning Preference Optimization", "Pang et al. 2024, iterative reasoning"),
    equation="eq. 1",
    identities=(
        "rpo(alpha=0) = dpo",
        'rpo = dpo + sft(nll="response_mean")',
    ),
    bounds={"beta": POSITIVE, "alpha": NON_NEGATIVE, "label_smoothing": PROBABILITY},
    variants={
        "trl-0.24": {"nll": "token_mean"},
        "liger": {"nll": "token_mean", "label_smoothing": None},
        "ms-swift": {"nll": "token_mean"},
        "openrlhf": {"nll": "response_mean"},
        "llamafactory": {"nll": "response_mean"},
    },
)
def rpo(
    pair: PairView,
    *,
    beta: float = 0.1,
    alpha: float = 1.0,
    label_smoothing: float | None = None,
    nll: str = "response_mean",
) -> Expression:
    """DPO with a likelihood term, RPO.

    ``-log σ(βΔ) + α NLL(w)``, the first term smoothed by ε as in `dpo`.

    beta: 0.05-0.5. alpha: weight of the likelihood, 0.1-2. label_smoothing: ε as in `dpo`. nll: normalisation of the
    likelihood.
    Libraries: TRL's former ``rpo_alpha``, ms-swift and Liger's DPO average over the tokens of the batch,
    ``nll="token_mean"``; OpenRLHF and LLaMA-Factory per response. ``nll="sum"`` is SFT-DPO (arXiv:2406.07327).
    """
    return logistic(beta * log_ratio_margin(pair), label_smoothing) + alpha * likelihood_term(pair.chosen, nll)


@pair_objective(
    paper=Paper(
        "2409.20370", "The Perfect Blend: Redefining RLHF with Mixture of Judges", "Xu et al. 2024, the perfect blend"
    ),
    equation="eq. 14",
    identities=("codpo(weight=3) = rpo(alpha=3)",),
    bounds={"beta": POSITIVE, "weight": NON_NEGATIVE},
)
def codpo(pair: PairView, *, beta: float = 0.1, weight: float = 5.0) -> Expression:
    """Constrained online DPO of CGPO.

    ``-log σ(βΔ) - λ avg(w)``; w is the best response that passes every constraint judge, l the worst that fails one.

    beta: 0.05-0.5. weight: λ, 1-10; the formula is `rpo` with ``alpha=λ``.
    """
    return -log_sigmoid(beta * log_ratio_margin(pair)) - weight * pair.chosen.avg_logp


@pair_objective(
    paper=Paper(
        "2412.14516",
        "Cal-DPO: Calibrated Direct Preference Optimization for Language Model Alignment",
        "Xiao et al. 2024",
    ),
    equation="eq. 10",
    identities=("cal_dpo = dpo(beta=1) + sppo_hard(beta=0.1)",),
    bounds={"beta": POSITIVE, "weight": NON_NEGATIVE},
    variants={"original": {"weight": 0.5}},
)
def cal_dpo(pair: PairView, *, beta: float = 0.1, weight: float = 1.0) -> Expression:
    """Calibrated DPO, Cal-DPO.

    ``-log σ(Δ) + (h(w) - 1/(2β))² + (h(l) + 1/(2β))²``: the log-ratios are tied to a scale; the first term has no β.

    beta: 1e-3-0.5. weight: of the squares, which the authors' code halves.
    Libraries: not in TRL or Liger.
    """
    squares = square(pair.chosen.logratio - 0.5 / beta) + square(pair.rejected.logratio + 0.5 / beta)
    return -log_sigmoid(log_ratio_margin(pair)) + weight * squares


@pair_objective(
    paper=_RATIONALE_DPO,
    equation="eq. 4",
    identities=("rationale_dpo(gamma=0) = dpo",),
    bounds={"beta": POSITIVE, "gamma": NON_NEGATIVE},
    variants={"original": {"link": "log_sigmoid", "gamma": 0.1}},
)
def rationale_dpo(pair: PairView, *, beta: float = 0.1, gamma: float = 2.0, link: str = "linear") -> Expression:
    """DPO with rationales, RDPO.

    ``-log σ(βΔ) - γ log π(r)``: the role ``rationale`` is a text saying why w is better, conditioned on a prompt of its
    own that holds the question and both answers; its log-probability is summed.

    beta: 0.05-0.5. gamma: γ, 1-10. link: ``"linear"``, or ``"log_sigmoid"`` as in the authors' code, whose second term
    is ``-log σ(γ log π(r))``: nearly the same slope while the rationale is unlikely, half of it at certainty.
    """
    scaled = gamma * pair.response("rationale").logp
    term = choice("rationale_dpo: link", link, {"linear": scaled, "log_sigmoid": log_sigmoid(scaled)})
    return -log_sigmoid(beta * log_ratio_margin(pair)) - term


@pair_objective(
    paper=_RATIONALE_DPO,
    equation="section 4.2 at ICLR",
    identities=("rationale_orpo(gamma=0) = orpo",),
    bounds={"beta": NON_NEGATIVE, "gamma": NON_NEGATIVE},
)
def rationale_orpo(
    pair: PairView, *, beta: float = 0.1, gamma: float = 10.0, nll: str = "token_mean"
) -> tuple[Expression, dict[str, Expression]]:
    """ORPO with rationales, RORPO.

    `orpo` ``- γ avg(r)``, with the role ``rationale`` of `rationale_dpo`; the paper says it in words.

    beta: weight of the odds term, 0.05-1. gamma: γ, 1-10. nll: normalisation of the chosen response's likelihood.
    """
    chosen, rejected = pair.chosen.avg_logp, pair.rejected.avg_logp
    loss = likelihood_term(pair.chosen, nll) - beta * log_sigmoid(log_odds(chosen) - log_odds(rejected))
    loss = loss - gamma * pair.response("rationale").avg_logp
    return loss, {"chosen": beta * chosen, "rejected": beta * rejected}


@pair_objective(
    paper=Paper(
        "2410.11677",
        "Understanding Likelihood Over-optimisation in Direct Alignment Algorithms",
        "Shi et al. 2024, over-optimisation",
    ),
    equation="section 3.1",
    identities=("average_hinge(weight=0) = slic(alpha=0) where lengths=1",),
    bounds={"delta": NON_NEGATIVE, "weight": NON_NEGATIVE, "alpha": NON_NEGATIVE},
)
def average_hinge(
    pair: PairView, *, delta: float = 1.0, weight: float = 0.1, alpha: float | None = None, nll: str = "token_mean"
) -> tuple[Expression, dict[str, Expression]]:
    """A hinge on averages with a regulariser.

    ``max(0, δ - [avg(w) - avg(l)]) + λ log(1 + e^{1 - h(w)}) + α NLL(w)``: the second term holds the chosen response's
    summed log-ratio up; the first reads no reference.

    delta: the margin δ in nats per token, 0.1-2. weight: λ, 0-1. alpha: weight of the likelihood; None leaves it out.
    nll: its normalisation.
    """
    chosen, rejected = pair.chosen.avg_logp, pair.rejected.avg_logp
    loss = relu(delta - (chosen - rejected)) + weight * softplus(1.0 - pair.chosen.logratio)
    if alpha is not None:
        loss = loss + alpha * likelihood_term(pair.chosen, nll)
    return loss, {"chosen": chosen, "rejected": rejected}


@pair_objective(
    paper=Paper(
        "2409.17791",
        "Self-supervised Preference Optimization: Enhance Your Language Model with Preference Degree Awareness",
        "Li et al. 2024, self-supervised",
    ),
    identities=("spo_degree(weight=0) = dpo",),
    bounds={"beta": POSITIVE, "weight": NON_NEGATIVE},
)
def spo_degree(pair: PairView, *, beta: float = 0.1, weight: float = 0.1) -> Expression:
    """DPO aware of preference degrees, SPO, as reconstructed.

    ``-log σ(βΔ) + γ c``: the column ``degree_loss`` holds c, the cross-entropy of a small classifier that tells from
    the policy's hidden states how many key phrases were deleted from copies of the responses; it takes a gradient.

    beta: 0.05-0.5. weight: γ, 0.05-0.5.
    """
    return -log_sigmoid(beta * log_ratio_margin(pair)) + weight * pair["degree_loss"]
