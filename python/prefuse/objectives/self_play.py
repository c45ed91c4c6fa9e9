"""Pair objectives of self-play and of learning online: from win rates, scores, earlier policies and optimism.

Each is the loss inside a loop that samples from the policy, has the samples judged and replaces the reference or the
policy that it starts from. Where that is all, the objective is another's: SPIN (arXiv:2401.01335), DNO-Prct, OAIF and
Curry-DPO are `dpo` with the previous policy as the reference; TR-DPO (arXiv:2404.09656) is any objective here whose
reference is refreshed, θ_ref ← αθ + (1-α)θ_ref or θ_ref ← θ now and then. The loops are in `prefuse.outer`, and
`sppo` is in `anchored`.

Notation: ``h(y) = log π(y|x) - log π_ref(y|x)`` summed over the response, ``Δ = h(w) - h(l)``. Where pairs are scored
rather than ranked, w and l are just the first and the second. ``P(y)`` is a win rate in [0, 1].
"""

from __future__ import annotations

from ..language import (
    Expression,
    GroupView,
    PairView,
    Paper,
    TokenView,
    group_objective,
    log,
    log_sigmoid,
    maximum,
    pair_objective,
    sigmoid,
    square,
    stop_gradient,
    token_objective,
    where,
)
from ._terms import NON_NEGATIVE, POSITIVE, PROBABILITY, choice, length_normalised_margin, log_ratio_margin

_ONLINE_IPO = Paper(
    "2403.08635",
    "Human Alignment of Large Language Models through Online Preference Optimisation",
    "Calandriello et al. 2024",
)
_COPG = Paper(
    "2406.19185",
    "Contrastive Policy Gradient: Aligning LLMs on sequence-level scores in a supervised-friendly fashion",
    "Flet-Berliac et al. 2024",
)


@pair_objective(
    paper=Paper(
        "2404.03715",
        "Direct Nash Optimization: Teaching Language Models to Self-Improve with General Preferences",
        "Rosset et al. 2024",
    ),
    equation="eq. 12",
    identities=("dno = dpo(label_smoothing=0.5) where win_prob=0.4",),
    bounds={"beta": POSITIVE},
)
def dno(pair: PairView, *, beta: float = 0.1) -> Expression:
    """Direct Nash optimization, DNO.

    ``-ζ log σ(βΔ) - (1-ζ) log σ(-βΔ)`` with ``ζ = σ(P(w) - P(l))``: the columns ``win_prob`` hold P(y), the win rate
    against the previous policy, which is also the reference.

    beta: η of the paper, 0.05-0.5. With ζ = 1 (DNO-Prct) it is `dpo`.
    """
    margin = beta * log_ratio_margin(pair)
    return -log_sigmoid(margin) + sigmoid(pair.rejected["win_prob"] - pair.chosen["win_prob"]) * margin


@pair_objective(
    paper=Paper(
        "2407.00617",
        "Iterative Nash Policy Optimization: Aligning LLMs with General Preferences via No-Regret Learning",
        "Zhang et al. 2024",
    ),
    equation="eq. 8",
    identities=("inpo(eta=0.1, tau=0.1) = ipo(beta=0.1, average=False)",),
    bounds={"eta": POSITIVE, "tau": NON_NEGATIVE},
)
def inpo(pair: PairView, *, eta: float = 0.005, tau: float = 0.005 / 3) -> Expression:
    """Iterative Nash policy optimization, INPO.

    ``(D - (τ/η) D_ref - (1 - τ/η) D_prev - 1/(2η))²``, each D the log-probability of w less that of l: under the
    policy, the reference, and the previous policy, whose log-probabilities are the columns ``previous_logps``.

    eta: η, 0.002-0.1; the target is 1/(2η) nats. tau: τ, η/3; at η it is `ipo` with sums, at 0 so with the previous
    policy for a reference.
    """
    chosen, rejected = pair.chosen, pair.rejected
    policy, reference = chosen.logp - rejected.logp, chosen.ref_logp - rejected.ref_logp
    previous = chosen["previous_logps"] - rejected["previous_logps"]
    return square(policy - tau / eta * reference - (1.0 - tau / eta) * previous - 0.5 / eta)


@pair_objective(
    paper=_ONLINE_IPO,
    equation="eq. 11",
    identities=("online_ipo(beta=0.1) = ipo(beta=0.1, average=False) where win_prob=1",),
    bounds={"beta": POSITIVE},
)
def online_ipo(pair: PairView, *, beta: float = 0.1) -> Expression:
    """Online IPO with soft labels.

    ``(Δ - (p - ½)/β)²``: the column ``win_prob`` holds p, the probability that w, the first sample, beats the second.
    Both come from the policy, or for IPO-MD from its geometric mixture with the reference.

    beta: τ of the paper, 0.01-1.
    Libraries: TRL's OnlineDPO has ``loss_type="ipo"`` with hard labels and sums, `ipo` with ``average=False``: the same
    gradient in expectation.
    """
    return square(log_ratio_margin(pair) - (pair["win_prob"] - 0.5) / beta)


@group_objective(
    paper=_ONLINE_IPO,
    equation="eq. 11",
    identities=("online_ipo_list(beta=0.5) = online_ipo_list(beta=0.7) where win_prob=0.5",),
    bounds={"beta": POSITIVE},
)
def online_ipo_list(group: GroupView, *, beta: float = 0.1) -> Expression:
    """Online IPO over all pairs of K samples.

    Mean over i < j of ``(h_i - h_j - (P_ij - ½)/β)²``: the column ``win_prob`` of shape [G, K, K] holds P_ij, the
    probability that sample i beats sample j.

    beta: τ of the paper, 0.01-1. A single sample has loss 0.
    """
    i, j = group.pairs()
    ratio, place = group.response.logratio, group.response.position
    ahead = i(place) < j(place)
    error = square(i(ratio) - j(ratio) - (group.pairs()["win_prob"] - 0.5) / beta)
    return where(ahead, error, 0.0).sum("group") / maximum(ahead.sum("group"), 1.0)


@token_objective(
    paper=Paper("2312.00886", "Nash Learning from Human Feedback", "Munos et al. 2023"),
    equation="eq. 13",
    identities=("nash_md(beta=0.2) = 2 * nash_md(beta=0.1) where preference=0.5",),
    bounds={"beta": NON_NEGATIVE},
    variants={"trl-1.10": {"credit": "own"}},
)
def nash_md(token: TokenView, *, beta: float = 0.1, credit: str = "following") -> Expression:
    """Nash learning from human feedback by mirror descent, Nash-MD-PG.

    ``β Σ_t sg[H_t] log π_t - (P - ½) log π(y)``, ``H_t = Σ_{i≥t} h_i``: the response column ``preference`` holds P, the
    probability that y, a sample of the policy, beats one of the geometric mixture of policy and reference. Its value
    means nothing.

    beta: τ of the paper, 0.01-1. credit: the log-ratios that a token answers for: its own and the ``"following"``, as
    appendix F of the paper says, all of the response, ``"whole"``, as eq. 13 stands, or ``"own"``.
    Libraries: TRL up to 1.10 credits each token with its own log-ratio alone.
    """
    h = stop_gradient(token.logratio)
    kept = choice("nash_md: credit", credit, {"following": h.suffix_sum(), "whole": h.sum(), "own": h})
    anchor = (kept * token.logp).sum()
    return beta * anchor - (stop_gradient(token.response["preference"]) - 0.5) * token.logp.sum()


@pair_objective(
    paper=Paper(
        "2503.08942",
        "Extragradient Preference Optimization (EGPO): Beyond Last-Iterate Convergence "
        "for Nash Learning from Human Feedback",
        "Zhou et al. 2025",
    ),
    identities=("egpo(beta=0.1) = ipo(beta=0.1, average=False) where chosen_win_prob=0.75, rejected_win_prob=0.25",),
    bounds={"beta": POSITIVE},
    variants={"original": {"average": True}},
)
def egpo(pair: PairView, *, beta: float = 0.1, average: bool = False) -> Expression:
    """The loss inside extragradient preference optimization, EGPO.

    ``(Δ - [P(w) - P(l)]/β)²``: the columns ``win_prob`` hold the probability of beating a third response, from the
    policy. Each step is taken twice: to a midpoint, and from the start again with the midpoint's win rates.

    beta: 0.01-1. average: divide each log-ratio by its response's length, as the authors' code for language models.
    """
    margin = length_normalised_margin(pair) if average else log_ratio_margin(pair)
    return square(margin - (pair.chosen["win_prob"] - pair.rejected["win_prob"]) / beta)


@pair_objective(
    paper=Paper(
        "2310.12036", "A General Theoretical Paradigm to Understand Learning from Human Preferences", "Azar et al. 2023"
    ),
    equation="eq. 13",
    identities=(
        "psi_po = ipo(average=False) where chosen_win_prob=0.75, rejected_win_prob=0.25",
        "psi_po(beta=0.1) = egpo(beta=0.1)",
    ),
    bounds={"beta": POSITIVE},
)
def psi_po(pair: PairView, *, beta: float = 0.1, link: str = "identity") -> Expression:
    """ΨPO, preference optimization under any utility of the win rate.

    ``(Δ - [Ψ(P(w)) - Ψ(P(l))]/β)²``, the regression that the optimum of ``E Ψ(P) - β KL`` solves: the columns
    ``win_prob`` hold P(y) against the comparison policy.

    beta: τ of the paper, 0.01-1. link: Ψ, ``"identity"`` (IPO) or ``"logit"`` log(P/(1-P)), under which Bradley-Terry
    preferences give the optimum of RLHF and DPO. A logit counts P outside [10⁻⁶, 1 - 10⁻⁶] as the end.
    """
    chosen, rejected = (_utility(response["win_prob"], link) for response in (pair.chosen, pair.rejected))
    return square(log_ratio_margin(pair) - (chosen - rejected) / beta)


def _utility(win_prob: Expression, link: str) -> Expression:
    inside = win_prob.clamp(1e-6, 1.0 - 1e-6)
    return choice("psi_po: link", link, {"identity": win_prob, "logit": log(inside) - log(1.0 - inside)})


@pair_objective(paper=_COPG, equation="eqs. 7 to 9", bounds={"beta": POSITIVE})
def copg(pair: PairView, *, beta: float = 0.06) -> Expression:
    """Contrastive policy gradient, CoPG.

    ``(β/2) Δ² - [R(w) - R(l)] Δ``: the columns ``score`` hold rewards R of any two responses, from whatever policy.

    beta: 0.01-1. The value may be negative; up to a constant it is `reward_distillation` over 2β.
    The paper's text says that its eq. 17 is minimised; it is the negative that is.
    """
    margin = log_ratio_margin(pair)
    return 0.5 * beta * square(margin) - (pair.chosen["score"] - pair.rejected["score"]) * margin


@group_objective(
    paper=_COPG,
    equation="eqs. 7 to 9",
    identities=("copg_list = copg_list(beta=1) where logps=2",),
    bounds={"beta": POSITIVE},
)
def copg_list(group: GroupView, *, beta: float = 0.06) -> Expression:
    """CoPG over K samples, generalised.

    ``1/(K-1) Σ_{i<j} (R_i - βh_i - R_j + βh_j)²``, R the column ``score``: two samples give `reward_distillation`,
    which is `copg` up to a factor and a constant.

    beta: 0.01-1. A single sample has loss 0.
    """
    i, j = group.pairs()
    place = group.response.position
    reward = stop_gradient(group.response["score"]) - beta * group.response.logratio
    terms = where(i(place) < j(place), square(i(reward) - j(reward)), 0.0)
    return terms.sum("group") / maximum(group.size - 1.0, 1.0)


@pair_objective(
    paper=Paper("2405.19316", "Robust Preference Optimization through Reward Model Distillation", "Fisch et al. 2024"),
    bounds={"beta": POSITIVE},
)
def reward_distillation(pair: PairView, *, beta: float = 0.1) -> Expression:
    """Reward distillation, e-DPO; REBEL (Gao et al. 2024, arXiv:2404.16767).

    ``([R(w) - R(l)] - βΔ)²``: the implicit reward's margin is regressed on that of a reward model, in the columns
    ``score``. REBEL's reference is the previous policy and its β is 1/η.

    beta: 0.01-1.
    """
    return square(pair.chosen["score"] - pair.rejected["score"] - beta * log_ratio_margin(pair))


@pair_objective(
    paper=Paper(
        "2405.19320",
        "Value-Incentivized Preference Optimization: A Unified Approach to Online and Offline RLHF",
        "Cen et al. 2024",
    ),
    identities=("vpo(alpha=0) = dpo",),
    bounds={"beta": POSITIVE, "alpha": NON_NEGATIVE},
)
def vpo(pair: PairView, *, beta: float = 0.1, alpha: float = 0.01, mode: str = "online") -> Expression:
    """Value-incentivised preference optimization, VPO, as reconstructed.

    ``-log σ(βΔ) ± αβ h(c)``: the role ``calibration`` is a response c of a fixed policy. Plus, ``"online"``, is
    optimism: what that policy covers already is pushed down. Minus, ``"offline"``, is pessimism: with c = w it is DPO
    with SFT.

    beta: 0.05-0.5. alpha: 1e-3-1; at 0 it is DPO. mode: the sign.
    SELM (arXiv:2405.19332) is the online form with c from the reference, and its code's ``alpha`` of 1e-3.
    """
    sign = choice("vpo: mode", mode, {"online": 1.0, "offline": -1.0})
    bonus = alpha * beta * pair.response("calibration").logratio
    return -log_sigmoid(beta * log_ratio_margin(pair)) + sign * bonus


@pair_objective(
    paper=Paper(
        "2405.21046",
        "Exploratory Preference Optimization: Provably Sample-Efficient Exploration in "
        "RLHF with General Function Approximation",
        "Xie et al. 2024",
    ),
    equation="algorithm 1",
    identities=(
        "xpo(alpha=0) = dpo",
        'xpo(alpha=0, link="ipo") = ipo(average=False)',
    ),
    bounds={"beta": POSITIVE, "alpha": NON_NEGATIVE},
    variants={"trl-1.10": {}},
)
def xpo(pair: PairView, *, beta: float = 0.1, alpha: float = 1e-5, link: str = "sigmoid") -> Expression:
    """Exploratory preference optimization, XPO.

    ``-log σ(βΔ) + α log π(ỹ)``: of the two responses one is the policy's and ỹ the reference's, which is pushed down.
    The column ``chosen_from_policy`` is true where w is the policy's, so that ỹ is l.

    beta: 0.05-0.5. alpha: 1e-6-1e-3. link: ``"sigmoid"``, or ``"ipo"`` for (Δ - 1/(2β))².
    Libraries: TRL's XPO trainer, which 1.16 no longer has, agrees.
    """
    margin = log_ratio_margin(pair)
    loss = choice("xpo: link", link, {"sigmoid": -log_sigmoid(beta * margin), "ipo": square(margin - 0.5 / beta)})
    return loss + alpha * where(pair["chosen_from_policy"], pair.rejected.logp, pair.chosen.logp)


@pair_objective(
    paper=Paper(
        "2406.05534", "Online DPO: Online Direct Preference Optimization with Fast-Slow Chasing", "Qi et al. 2024"
    ),
    equation="eqs. 3 to 6",
    identities=("ofs_dpo(alpha=0) = dpo",),
    bounds={"beta": POSITIVE, "alpha": NON_NEGATIVE, "limit": POSITIVE},
)
def ofs_dpo(
    pair: PairView, *, beta: float = 0.1, alpha: float = 0.2, limit: float = 10.0, module: str = "fast"
) -> Expression:
    """Online fast-slow chasing DPO, OFS-DPO.

    ``-log σ(βΔ) ± a (-log σ(βΔ_FS))``, plus for the fast of two adapters and minus for the slow, each with the other's
    log-probabilities in the columns ``other_logps``: Δ_FS is by how much the fast one prefers w over l more than the
    slow one does.

    beta: 0.05-0.5. alpha: a, 0.1-0.5. limit: of |βΔ_FS|, without which the slow module's loss has no lower bound;
    beyond it the second term has gradient 0. module: ``"fast"`` or ``"slow"``.
    """
    own, other = pair.chosen.logp - pair.rejected.logp, pair.chosen["other_logps"] - pair.rejected["other_logps"]
    sign = choice("ofs_dpo: module", module, {"fast": 1.0, "slow": -1.0})
    chase = -log_sigmoid((sign * beta * (own - other)).clamp(-limit, limit))
    return -log_sigmoid(beta * log_ratio_margin(pair)) + sign * alpha * chase


@pair_objective(
    paper=Paper("2406.01660", "Self-Improving Robust Preference Optimization", "Choi et al. 2024"),
    equation="algorithm 1",
    bounds={"beta": POSITIVE, "alpha": PROBABILITY},
)
def srpo(pair: PairView, *, beta: float = 0.1, alpha: float = 0.5) -> Expression:
    """Self-improving robust optimization, SRPO, as reconstructed.

    ``(1-α) (1 - β [h(w|l) - h(l|w) + h(w) - h(l)])²`` for the generator and its improver together, and
    ``α {(½ - β [h(w|l) - h(l|l)])² + (½ - β [h(w|w) - h(l|w)])²}`` for the improver alone: h(y|y') is the log-ratio of
    y from a prompt that also shows y'. Roles: ``improved`` w|l, ``worsened`` l|w, ``kept_chosen`` w|w,
    ``kept_rejected`` l|l.

    beta: 0.01-1. alpha: share of the improver's own loss, in [0, 1].
    """
    improved, worsened = pair.response("improved").logratio, pair.response("worsened").logratio
    kept_chosen, kept_rejected = pair.response("kept_chosen").logratio, pair.response("kept_rejected").logratio
    joint = square(1.0 - beta * (improved - worsened + log_ratio_margin(pair)))
    improver = square(0.5 - beta * (improved - kept_rejected)) + square(0.5 - beta * (kept_chosen - worsened))
    return (1.0 - alpha) * joint + alpha * improver


@group_objective(
    paper=Paper(
        "2406.01462",
        "The Importance of Online Data: Understanding Preference Fine-tuning via Coverage",
        "Song et al. 2024",
    ),
    bounds={"weight": NON_NEGATIVE},
)
def hypo_kl(group: GroupView, *, weight: float = 1e-4) -> Expression:
    """The online term of hybrid preference optimization, HyPO.

    ``(λ/k) Σ_s a_s log π(y_s)`` with ``a_s`` the log-ratio of sample s less the mean of the other samples', which takes
    no gradient: an unbiased gradient of ``λ KL(π‖π_ref)`` from k samples of the policy. Add it to `dpo` on offline
    pairs, each on its own batch. The value means nothing; a single sample has no baseline.

    weight: λ, 1e-5-1e-2.
    """
    ratio = group.response.logratio
    others = (ratio.sum() - ratio) / (group.size - 1.0).clamp(min=1.0)
    return weight * (stop_gradient(ratio - others) * group.response.logp).mean()
