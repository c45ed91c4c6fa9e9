"""DPO with another margin: offset, of several objectives, or weighing its parts apart.

Notation: ``h(y) = log π(y|x) - log π_ref(y|x)`` summed over the response, ``Δ = h(w) - h(l)`` for chosen w and
rejected l, ``n(y)`` the number of response tokens.
"""

from __future__ import annotations

from ..language import (
    Expression,
    PairView,
    Paper,
    exp,
    log_sigmoid,
    minimum,
    pair_objective,
    relu,
    sign,
    softplus,
    sqrt,
    square,
    stop_gradient,
    where,
)
from ._terms import (
    EXPONENT_CAP,
    NON_NEGATIVE,
    POSITIVE,
    choice,
    length_normalised_margin,
    log_ratio_margin,
    target_margin,
)


@pair_objective(
    paper=Paper("2402.10571", "Direct Preference Optimization with an Offset", "Amini et al. 2024"),
    equation="theorem 3 at ACL",
    identities=("odpo = dpo where margin=0",),
    bounds={"beta": POSITIVE},
)
def odpo(pair: PairView, *, beta: float = 0.1) -> Expression:
    """DPO with an offset, ODPO.

    ``-log σ(βΔ - δ)``: the column ``margin`` holds δ of each pair, by how much the chosen reward should exceed the
    other; in the paper ``α log(s(w) - s(l))`` with scores s, also called margin DPO.

    beta: 0.05-0.5.
    """
    return -log_sigmoid(beta * log_ratio_margin(pair) - pair["margin"])


@pair_objective(
    paper=Paper(
        "2310.03708",
        "Beyond One-Preference-Fits-All Alignment: Multi-Objective Direct Preference Optimization",
        "Zhou et al. 2023",
    ),
    equation="eq. 14 at ICLR",
    identities=(
        "modpo(weight=1) = odpo",
        "modpo(weight=0.5) = dpo(beta=0.2) where margin=0",
    ),
    bounds={"beta": POSITIVE, "weight": POSITIVE},
)
def modpo(pair: PairView, *, beta: float = 0.1, weight: float = 0.5, link: str = "sigmoid") -> Expression:
    """Multi-objective DPO, MODPO.

    ``-log σ(z)`` with ``z = (βΔ - m) / w``, w the weight of the objective that the pairs speak about: the column
    ``margin`` holds m, the other objectives' weighted reward of the chosen response less that of the rejected one.

    beta: 0.05-0.5. weight: w in (0, 1]; m has the weights that add up to 1 with it. link: ``"sigmoid"`` or ``"hinge"``,
    ``max(0, 1 - z)``.
    Libraries: the authors' code agrees; not in TRL or Liger.
    """
    margin = (beta * log_ratio_margin(pair) - pair["margin"]) / weight
    return choice("modpo: link", link, {"sigmoid": -log_sigmoid(margin), "hinge": relu(1.0 - margin)})


@pair_objective(
    paper=Paper(
        "2505.20065",
        "SafeDPO: A Simple Approach to Direct Preference Optimization with Enhanced Safety",
        "Kim et al. 2025",
    ),
    equation="eqs. 11 and 12",
    identities=(
        "safe_dpo = dpo where unsafe=0",
        'safe_dpo(both_unsafe="kept") = dpo where unsafe=1',
    ),
    bounds={"beta": POSITIVE, "delta": NON_NEGATIVE},
)
def safe_dpo(pair: PairView, *, beta: float = 0.1, delta: float = 0.0, both_unsafe: str = "dropped") -> Expression:
    """Safe DPO, SafeDPO.

    ``-log σ(β s Δ - δ [u(l) ≠ u(w)])`` with the columns ``unsafe`` (u, 1 or 0): where only the chosen response is
    unsafe the pair turns round, ``s = -1``, else s = 1; a pair of which both are unsafe has loss 0.

    beta: 0.05-0.5. delta: δ, by how much a safe response should exceed an unsafe one, 0-10; 10 in the paper's
    comparisons. both_unsafe: pairs of two unsafe responses are ``"dropped"``, as in the paper, or ``"kept"`` as they
    stand, as in an earlier version (eq. 15 at ICLR 2025).
    """
    chosen, rejected = pair.chosen["unsafe"] > 0.5, pair.rejected["unsafe"] > 0.5
    kept = choice("safe_dpo: both_unsafe", both_unsafe, {"dropped": False, "kept": True})
    turned = where(chosen & ~rejected, -1.0, 1.0)
    loss = -log_sigmoid(turned * beta * log_ratio_margin(pair) - where(chosen != rejected, delta, 0.0))
    return loss if kept else where(chosen & rejected, 0.0, loss)


@pair_objective(
    paper=Paper(
        "2403.02475", "Enhancing LLM Safety via Constrained Direct Preference Optimization", "Liu et al. 2024, safety"
    ),
    identities=("c_dpo(multiplier=0) = dpo where chosen_score=1, rejected_score=0",),
    bounds={"beta": POSITIVE, "multiplier": NON_NEGATIVE},
)
def c_dpo(pair: PairView, *, beta: float = 0.1, multiplier: float = 1.0) -> Expression:
    """Constrained DPO, C-DPO, as reconstructed.

    ``-log σ(β s Δ)``, s the sign of ``R(w) - R(l) - λ [C(w) - C(l)]``: DPO on pairs labelled anew by reward less λ
    times cost, the columns ``score`` (R) and ``cost`` (C). A tie has s = 0 and no gradient.

    beta: 0.05-0.5. multiplier: λ, which the caller raises while the expected cost is above its limit.
    """
    chosen, rejected = (response["score"] - multiplier * response["cost"] for response in (pair.chosen, pair.rejected))
    return -log_sigmoid(beta * sign(chosen - rejected) * log_ratio_margin(pair))


@pair_objective(
    paper=Paper("2410.10148", "AlphaDPO: Adaptive Reward Margin for Direct Preference Optimization", "Wu et al. 2024"),
    equation="eqs. 10 to 12 at ICLR",
    identities=(
        "alpha_dpo(alpha=0) = simpo(beta=2.5)",
        "alpha_dpo(scaled=True) = alpha_dpo(alpha=0.5)",
        "alpha_dpo(average=True, mean=0.5) = alpha_dpo(mean=2.5) where lengths=5",
    ),
    bounds={"beta": POSITIVE, "alpha": NON_NEGATIVE, "deviation": POSITIVE},
    variants={"original": {"average": True, "scaled": True}},
)
def alpha_dpo(
    pair: PairView,
    *,
    beta: float = 2.5,
    alpha: float = 0.2,
    gamma: float | None = None,
    gamma_beta_ratio: float | None = None,
    mean: float | None = None,
    deviation: float | None = None,
    average: bool = False,
    scaled: bool = False,
) -> Expression:
    """α-DPO, SimPO with a margin that adapts.

    ``-log σ(β [avg(w) - avg(l)] - γ - α z)``: z, which takes no gradient, is Δ less its mean over the training data,
    over its standard deviation there.

    beta: 2-10. alpha: weight of z, 0-0.5; at 0 it is `simpo`. gamma, gamma_beta_ratio: as in `simpo`. mean, deviation:
    those of Δ over the data, in nats, or running ones; without them the batch's. average: z is of length-normalised
    log-ratios. scaled: the weight of z is αβ.
    Libraries: the authors' code has ``average=True, scaled=True`` and running means over batches, which keep 0.9 of
    themselves at each step.
    """
    margin = target_margin(beta, gamma, gamma_beta_ratio)
    gap = length_normalised_margin(pair) if average else log_ratio_margin(pair)
    centred = gap - (gap.mean("batch") if mean is None else mean)
    spread = sqrt(square(centred).mean("batch") + 1e-12) if deviation is None else deviation
    score = (alpha * beta if scaled else alpha) * stop_gradient(centred / spread)
    return -log_sigmoid(beta * (pair.chosen.avg_logp - pair.rejected.avg_logp) - margin - score)


@pair_objective(
    paper=Paper(
        "2405.19534",
        "Preference Learning Algorithms Do Not Learn Preference Rankings",
        "Chen et al. 2024, ranking accuracy",
    ),
    equation="eq. 4",
    identities=(
        "dpo_gamma(gamma=1) = dpo",
        "dpo_gamma(gamma=0) = cpo(alpha=0)",
    ),
    bounds={"beta": POSITIVE, "gamma": NON_NEGATIVE},
)
def dpo_gamma(pair: PairView, *, beta: float = 0.1, gamma: float = 0.5) -> tuple[Expression, dict[str, Expression]]:
    """DPO with a scaled reference, DPO^γ.

    ``-log σ(β [log π(w) - log π(l)] - βγ [log π_ref(w) - log π_ref(l)])``.

    beta: 0.05-0.5. gamma: weight of the reference, 0-2: 1 is DPO, 0 has no reference. Soft preference learning with
    weights a and b of policy and reference (Slocum et al. 2025) is ``beta=a, gamma=b/a``.
    """
    rewards = {
        role: beta * (response.logp - gamma * response.ref_logp)
        for role, response in (("chosen", pair.chosen), ("rejected", pair.rejected))
    }
    return -log_sigmoid(rewards["chosen"] - rewards["rejected"]), rewards


@pair_objective(
    paper=Paper(
        "2406.07327",
        "3D-Properties: Identifying Challenges in DPO and Charting a Path Forward",
        "Yan et al. 2024, 3D-properties",
    ),
    equation="appendix B.2.1 at ICLR",
    identities=("flex_dpo(beta_chosen=0.2, beta_rejected=0.2) = dpo(beta=0.2)",),
    bounds={"beta_chosen": POSITIVE, "beta_rejected": NON_NEGATIVE},
)
def flex_dpo(
    pair: PairView, *, beta_chosen: float = 0.1, beta_rejected: float = 0.08
) -> tuple[Expression, dict[str, Expression]]:
    """Flex-DPO, a strength for each side.

    ``-log σ(β₊ h(w) - β₋ h(l))``: a weaker pull on the rejected side keeps the chosen response from falling with it.

    beta_chosen: β₊, 0.05-0.5. beta_rejected: β₋, a tenth of β₊ up to β₊. DPO-Shift (arXiv:2502.07599) with factor λ is
    ``beta_rejected=λ·beta_chosen``.
    """
    chosen, rejected = beta_chosen * pair.chosen.logratio, beta_rejected * pair.rejected.logratio
    return -log_sigmoid(chosen - rejected), {"chosen": chosen, "rejected": rejected}


@pair_objective(
    paper=Paper(
        "2406.02900",
        "Scaling Laws for Reward Model Overoptimization in Direct Alignment Algorithms",
        "Rafailov et al. 2024",
    ),
    identities=(
        "daa = dpo",
        'daa(beta=0.2, link="ipo") = 0.04 * ipo(beta=0.1, average=False)',
    ),
    bounds={"beta": POSITIVE},
)
def daa(pair: PairView, *, beta: float = 0.1, alpha: float = 0.0, link: str = "dpo") -> Expression:
    """Direct alignment algorithms as one family, DAA (GPO, arXiv:2402.05749).

    ``g(x)`` with ``x = βΔ + α [n(w) - n(l)]`` and a convex g that falls at 0: ``"dpo"`` -log σ(x), ``"ipo"`` (x - 1)²,
    ``"slic"`` max(0, 1 - x), ``"exponential"`` e^{-x}, ``"squared_hinge"`` max(0, 1 - x)².

    beta: 0.01-0.5. alpha: length regularisation as in `r_dpo`, which this is with ``link="dpo"``. link: g.
    IPO here is β² times `ipo` at half of β with sums. The exponent is capped at 80.
    """
    x = beta * log_ratio_margin(pair) + alpha * (pair.chosen.length - pair.rejected.length)
    links = {
        "dpo": lambda: softplus(-x),
        "ipo": lambda: square(x - 1.0),
        "slic": lambda: relu(1.0 - x),
        "exponential": lambda: exp(minimum(-x, EXPONENT_CAP)),
        "squared_hinge": lambda: square(relu(1.0 - x)),
    }
    return choice("daa: link", link, links)()


@pair_objective(
    paper=Paper(
        "2407.13399",
        "Correcting the Mythos of KL-Regularization: Direct Alignment without "
        "Overoptimization via Chi-Squared Preference Optimization",
        "Huang et al. 2024",
    ),
    equation="algorithm 1",
    bounds={"beta": POSITIVE, "limit": POSITIVE},
)
def chi_po(pair: PairView, *, beta: float = 0.1, limit: float = 10.0) -> Expression:
    """χ²-preference optimization, χPO, as reconstructed.

    ``-log σ(clip(β [φ(h(w)) - φ(h(l))]))`` with ``φ(h) = e^h + h``: the χ² part of φ holds back where the policy has
    left the reference far behind. The clip is at ±2R.

    beta: 0.01-0.5. limit: 2R, twice the largest reward; beyond it the gradient is 0. The exponent is capped at 80.
    """
    chosen, rejected = pair.chosen.logratio, pair.rejected.logratio
    score = exp(minimum(chosen, EXPONENT_CAP)) - exp(minimum(rejected, EXPONENT_CAP)) + chosen - rejected
    return -log_sigmoid((beta * score).clamp(-limit, limit))
