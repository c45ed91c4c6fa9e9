"""Objectives of all K responses to one prompt: learning to rank, posterior matching, contrastive estimation.

Notation: ``h_i = log π(y_i|x) - log π_ref(y_i|x)``, ``s_i = β h_i``, ``ψ_i`` the label of y_i (column ``label``,
larger is better), ``r_i`` its score. Lists may differ in length. Labels, scores and ranks take no gradient.
Differences of scores above 700 inside an exponential count as 700, with gradient 0.
"""

from __future__ import annotations

import math
from functools import reduce
from operator import and_, or_

from ..language import (
    Expression,
    GroupView,
    Paper,
    absolute,
    clamp,
    exp,
    group_objective,
    log,
    log1p,
    log_sigmoid,
    maximum,
    relu,
    softplus,
    square,
    stop_gradient,
    where,
)
from ._terms import NON_NEGATIVE, POSITIVE, choice

DIFFERENCE_CAP = 700.0
"""Largest difference of scores that is exponentiated."""

LOSSES = ("mse", "sigmoid", "logistic", "hinge", "list_mle", "softmax", "lambda")

_INFO_NCA = Paper(
    "2402.05369", "Noise Contrastive Alignment of Language Models with Explicit Rewards", "Chen et al. 2024"
)
_OP_GFN = Paper("2310.00386", "Order-Preserving GFlowNets", "Chen and Mauch 2023")


@group_objective(
    paper=Paper("2402.01878", "LiPO: Listwise Preference Optimization through Learning-to-Rank", "Liu et al. 2024"),
    equation="eq. 8",
    identities=('lipo(loss="list_mle", beta=0.3) = plackett_luce(beta=0.3)',),
    bounds={"beta": POSITIVE, "base": "(1, inf)"},
    variants={"rax": {"rax": True}},
)
def lipo(
    group: GroupView, *, loss: str = "lambda", beta: float = 0.05, base: float = math.e, rax: bool = False
) -> Expression:
    """Listwise preference optimization, LiPO.

    With s = β h: ``"mse"`` Σ (ψ - s)²; ``"sigmoid"`` -Σ [ψ log σ(s) + (1-ψ) log σ(-s)]; over pairs with ψ_i > ψ_j
    ``"hinge"`` Σ max(0, 1 - (s_i - s_j)), ``"logistic"`` Σ log(1 + e^{s_j - s_i}) and ``"lambda"`` Σ Δ_ij log(1 +
    e^{s_j - s_i}) with ``Δ_ij = |2^{ψ_i} - 2^{ψ_j}| |1/log(1+τ_i) - 1/log(1+τ_j)|``, τ the rank by s, Δ constant;
    ``"list_mle"`` as `plackett_luce`; ``"softmax"`` -Σ ψ/Σψ log softmax(s).

    Column: ``label`` in [0, 1].

    loss: which of the seven. beta: 0.05; 0.01-0.5. base: of λ's logarithm, e as printed (2 changes a factor only).
    rax: what the calls to RAX printed in the paper compute: a binary logarithm, Δ times K, a mean over the batch's
    valid pairs, and no normalisation of ψ in the softmax.
    """
    if loss not in LOSSES:
        raise ValueError(f"lipo: loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    s, label = beta * group.response.logratio, stop_gradient(group.response["label"])
    if loss == "mse":
        return square(label - s).sum()
    if loss == "sigmoid":
        return -(label * log_sigmoid(s) + (1.0 - label) * log_sigmoid(-s)).sum()
    if loss == "list_mle":
        return negative_log_order(group, s, label)
    if loss == "softmax":
        return -((label if rax else shares(label)) * s.log_softmax()).sum()
    return pairwise_loss(group, s, label, loss, math.log(2.0) if rax else log(base), rax)


def pairwise_loss(
    group: GroupView, s: Expression, label: Expression, loss: str, log_base: Expression | float, rax: bool
) -> Expression:
    """Sum of a pair loss over ordered pairs with the larger label first; in RAX's way, the batch's mean over them."""
    i, j = group.pairs()
    margin, beaten = i(s) - j(s), i(label) > j(label)
    link = relu(1.0 - margin) if loss == "hinge" else softplus(-margin)
    if loss == "lambda":
        link = ndcg_weight(group, s, label, log_base) * link * (group.size if rax else 1.0)
    if rax:
        return where(beaten, link, 0.0).sum("batch") / maximum(beaten.sum("batch"), 1.0)
    return where(beaten, link, 0.0).sum("group")


def ndcg_weight(group: GroupView, s: Expression, label: Expression, log_base: Expression | float) -> Expression:
    """λ's weight of a pair: how much DCG would change if the two responses swapped the places s gives them."""
    i, j = group.pairs()
    gain = 2.0**label
    discount = stop_gradient(log_base / log1p(s.rank()))
    return absolute(i(gain) - j(gain)) * absolute(i(discount) - j(discount))


def shares(label: Expression) -> Expression:
    """Labels divided by their sum in the group, 0 if all are 0."""
    return label / maximum(label.sum(), 1e-12)


def negative_log_order(group: GroupView, s: Expression, label: Expression) -> Expression:
    """``-log`` probability of the order of labels under Plackett and Luce's model of scores s; ties by input order."""
    i, j = group.pairs()
    place = label.rank()
    weight = where(j(place) >= i(place), exp(clamp(j(s) - i(s), max=DIFFERENCE_CAP)), 0.0)
    return log(weight.sum("i")).sum()


@group_objective(
    paper=Paper(
        "2305.18290",
        "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
        "Rafailov et al. 2023",
    ),
    equation="eq. 20",
    bounds={"beta": POSITIVE},
)
def plackett_luce(group: GroupView, *, beta: float = 0.1) -> Expression:
    """DPO of a full ranking under the Plackett-Luce model.

    ``-Σ_k log( e^{s_k} / Σ_{j≥k} e^{s_j} )``, responses sorted by falling label; two responses give DPO.

    Column: ``label``; equal labels keep their input order.

    beta: as in `dpo`, 0.01-0.5.
    """
    return negative_log_order(group, beta * group.response.logratio, stop_gradient(group.response["label"]))


@group_objective(
    paper=Paper("2306.17492", "Preference Ranking Optimization for Human Alignment", "Song et al. 2023"),
    equation="eqs. 5 to 9",
    identities=(
        "pro(alpha=0, temperature=False) = plackett_luce(beta=1) where ref=0, lengths=1, score=label",
        'pro = pro(nll="response_mean") where lengths=1',
    ),
    bounds={"alpha": NON_NEGATIVE},
    variants={"original": {"by_size": True}},
)
def pro(
    group: GroupView, *, alpha: float = 0.05, temperature: bool = True, nll: str = "sum", by_size: bool = False
) -> Expression:
    """Preference ranking optimization, PRO.

    ``-Σ_{k<K} log( e^{a_k/T_kk} / Σ_{j≥k} e^{a_j/T_kj} ) - α log π(y_1)`` over responses sorted by falling score, a
    being the average log-probability; ``1/T_kj = r_k - r_j``, ``1/T_kk`` the largest of them. Without temperatures T
    is 1.

    Column: ``score`` (r).

    alpha: weight of the likelihood of the best response, 0.05-1. temperature: whether gaps of scores scale the terms.
    nll: the likelihood is a ``"sum"`` over tokens, or ``"response_mean"``. by_size: the weight is α (K-1)², which the
    paper's experiments and the authors' code have with α = 0.05.
    """
    i, j = group.pairs()
    response, score = group.response, stop_gradient(group.response["score"])
    average, place = response.avg_logp, score.rank()
    if temperature:
        own = i(average) * (i(score) - score.min())
        term = where(i(place) == j(place), own, j(average) * (i(score) - j(score)))
    else:
        own, term = i(average), j(average)
    weight = where(j(place) >= i(place), exp(clamp(term - own, max=DIFFERENCE_CAP)), 0.0)
    likelihood = choice("pro: nll", nll, {"sum": response.logp, "response_mean": average})
    best = where(place == 1.0, likelihood, 0.0).sum()
    return log(weight.sum("i")).sum() - (alpha * square(group.size - 1.0) if by_size else alpha) * best


@group_objective(
    paper=Paper(
        "2304.05302",
        "RRHF: Rank Responses to Align Language Models with Human Feedback without Tears",
        "Yuan et al. 2023",
    ),
    equation="eq. 5",
    bounds={"alpha": NON_NEGATIVE},
)
def rrhf(group: GroupView, *, alpha: float = 1.0) -> Expression:
    """Rank responses to align with human feedback, RRHF.

    ``Σ max(0, avg(y_j) - avg(y_i))`` over pairs with r_i > r_j, ``- α log π(y_1)`` of the response of the largest r.

    Column: ``score`` (r).

    alpha: weight of the best response's likelihood, which the paper sums over tokens; 1.
    """
    i, j = group.pairs()
    response, score = group.response, stop_gradient(group.response["score"])
    wrong = where(i(score) > j(score), relu(j(response.avg_logp) - i(response.avg_logp)), 0.0)
    return wrong.sum("group") - alpha * where(score.rank() == 1.0, response.logp, 0.0).sum()


@group_objective(
    paper=Paper("2405.13516", "LIRE: listwise reward enhancement for preference alignment", "Zhu et al. 2024"),
    equation="eq. 5 at ICLR",
    identities=("lire = lire(temperature=2) where logps=3",),
    bounds={"temperature": POSITIVE},
    variants={"original": {"temperature": 2.0, "normalised": True}},
)
def lire(group: GroupView, *, temperature: float = 1.0, normalised: bool = False) -> Expression:
    """Listwise reward enhancement, LIRE, as reconstructed.

    ``-Σ r_i softmax(log π / T)_i``: the expected reward of a choice among the responses, to be raised.

    Column: ``score`` (r).

    temperature: T, 1-10. normalised: r is the softmax of the scores of the prompt's responses, as in the authors' code.
    """
    score = stop_gradient(group.response["score"])
    choices = (group.response.logp / temperature).softmax()
    return -((score.softmax() if normalised else score) * choices).sum()


@group_objective(
    paper=Paper("2410.12138", "Preference Optimization with Multi-Sample Comparisons", "Wang et al. 2024"),
    identities=("multi_dpo = d2o",),
    bounds={"beta": POSITIVE},
)
def multi_dpo(group: GroupView, *, beta: float = 0.1, link: str = "sigmoid") -> Expression:
    """DPO of multi-sample comparisons, mDPO and mIPO, as reconstructed.

    ``-log σ(β [mean h(chosen) - mean h(rejected)])``: one group of responses is preferred to the other as a whole, for
    its diversity, say. ``"ipo"``: ``(mean h(chosen) - mean h(rejected) - 1/(2β))²``.

    Column: ``label``, 1 for the chosen responses and 0 for the others.

    beta: 0.05-0.5. link: ``"sigmoid"`` or ``"ipo"``.
    """
    chosen, rejected = sides(group)
    links = {
        "sigmoid": lambda: -log_sigmoid(beta * (chosen - rejected)),
        "ipo": lambda: square(chosen - rejected - 0.5 / beta),
    }
    return choice("multi_dpo: link", link, links)()


@group_objective(
    paper=Paper(
        "2403.03419",
        "Negating Negatives: Alignment with Human Negative Samples via Distributional Dispreference Optimization",
        "Duan et al. 2024",
    ),
    equation="eq. 3",
    identities=(
        "d2o = multi_dpo",
        "d2o(beta=0.3, alpha=0.3) = multi_dpo(beta=0.3)",
    ),
    bounds={"beta": POSITIVE, "alpha": NON_NEGATIVE},
)
def d2o(group: GroupView, *, beta: float = 0.1, alpha: float = 0.1) -> Expression:
    """Distributional dispreference optimization, D²O, as reconstructed.

    ``-log σ(β mean h(y) - α h(l))``: the mean is over the policy's own samples y, which stand in for a chosen
    response; l was labelled as bad. The two references may differ.

    Column: ``label``, 1 for the samples and 0 for the bad response (several are averaged).

    beta: strength of the samples, 0.05-0.5. alpha: strength of the bad response, which β does not multiply: 0.1.
    """
    samples, bad = sides(group)
    return -log_sigmoid(beta * samples - alpha * bad)


def sides(group: GroupView) -> tuple[Expression, Expression]:
    """Mean log-ratios of the responses whose label is 1 and of the others; 0 where there are none."""
    chosen, h = group.response["label"] > 0.5, group.response.logratio
    kept = where(chosen, h, 0.0).sum() / maximum(chosen.sum(), 1.0)
    return kept, where(chosen, 0.0, h).sum() / maximum((1.0 - chosen).sum(), 1.0)


@group_objective(
    paper=Paper(
        "2402.02479",
        "BRAIn: Bayesian Reward-conditioned Amortized Inference for natural language generation from feedback",
        "Pandey et al. 2024",
    ),
    equation="theorem 4.2",
    bounds={"gamma": POSITIVE},
)
def brain(group: GroupView, *, gamma: float = 0.5) -> Expression:
    """Bayesian reward-conditioned amortized inference, BRAIn.

    ``-Σ α̂_i log β̂_i`` with ``α̂ = softmax(r/γ + log π_ref - log q)`` and ``β̂ = softmax(log π - log q)``: the
    posterior given a good reward, and the policy, both by self-normalised importance sampling from the proposal q.
    Its gradient is the paper's estimator, ``β̂_i - α̂_i``.

    Columns: ``score`` (r), ``proposal_logps`` (log q). Only the policy takes a gradient.

    gamma: temperature of the reward, 0.1-1.
    """
    response = group.response
    proposal = stop_gradient(response["proposal_logps"])
    posterior = stop_gradient((response["score"] / gamma + response.ref_logp - proposal).softmax())
    return -(posterior * (response.logp - proposal).log_softmax()).sum()


@group_objective(paper=_INFO_NCA, equation="section 3.2", bounds={"beta": POSITIVE, "temperature": POSITIVE})
def info_nca(group: GroupView, *, beta: float = 0.1, temperature: float = 1.0) -> Expression:
    """InfoNCA, noise contrastive alignment by classification.

    ``-Σ_i softmax(r/α)_i log softmax(s)_i``; two responses with a certain winner give DPO.

    Column: ``score`` (r).

    beta: 0.01-0.5. temperature: α, in the units of the score.
    """
    target = stop_gradient((group.response["score"] / temperature).softmax())
    return -(target * (beta * group.response.logratio).log_softmax()).sum()


@group_objective(paper=_INFO_NCA, equation="pairs: table 1", bounds={"beta": POSITIVE, "temperature": POSITIVE})
def nca_list(group: GroupView, *, beta: float = 0.1, temperature: float = 1.0) -> Expression:
    """Noise contrastive alignment over K responses, NCA.

    ``-Σ_i [ softmax(r/α)_i log σ(s_i) + 1/K log σ(-s_i) ]``: every reward has an optimum of its own, not only their
    differences. Two responses with a certain winner give `nca`.

    Column: ``score`` (r).

    beta: 0.01-0.5. temperature: α, in the units of the score.
    """
    s = beta * group.response.logratio
    target = stop_gradient((group.response["score"] / temperature).softmax())
    return -(target * log_sigmoid(s) + log_sigmoid(-s) / group.size).sum()


@group_objective(
    paper=Paper("2402.00856", "Towards Efficient Exact Optimization of Language Model Alignment", "Ji et al. 2024"),
    equation="eq. 13",
    bounds={"beta": POSITIVE, "temperature": POSITIVE},
)
def exo_list(group: GroupView, *, beta: float = 0.1, temperature: float = 1.0) -> Expression:
    """EXO over K responses: reverse KL from policy to reward.

    ``Σ q_i (log q_i - log p_i)``, ``q = softmax(s)``, ``p = softmax(r/β_r)``: where `info_nca` covers the target,
    this seeks its modes.

    Column: ``score`` (r).

    beta: β_π, 0.05-0.5. temperature: β_r, in the units of the score.
    """
    log_q = (beta * group.response.logratio).log_softmax()
    log_p = stop_gradient((group.response["score"] / temperature).log_softmax())
    return (exp(log_q) * (log_q - log_p)).sum()


@group_objective(
    paper=Paper("2406.09215", "On Softmax Direct Preference Optimization for Recommendation", "Chen et al. 2024"),
    equation="eq. 11",
    bounds={"beta": POSITIVE},
)
def softmax_dpo(group: GroupView, *, beta: float = 0.1) -> Expression:
    """Softmax-DPO, S-DPO, one winner among many losers.

    ``-log σ( -log Σ_l e^{s_l - s_w} )``; one loser gives DPO. With several winners, the mean over them, each against
    the losers alone.

    Column: ``label``, 1 for a winner and 0 for a loser.

    beta: 0.1-1.
    """
    s, winner = beta * group.response.logratio, group.response["label"] > 0.5
    losers = where(winner, -math.inf, s).logsumexp()
    return where(winner, softplus(losers - s), 0.0).sum() / maximum(winner.sum(), 1.0)


@group_objective(paper=_OP_GFN, equation="section 3.2 at ICLR")
def op_gfn(group: GroupView) -> Expression:
    """Order-preserving GFlowNets, total order, for text.

    Mean over unordered pairs of ``-t log σ(log π_i - log π_j) - (1-t) log σ(log π_j - log π_i)``, t being 1, ½ or 0 as
    ψ_i is above, equal to or below ψ_j. For left-to-right text the learned log-reward is log π plus a constant; there
    is no reference. One pair with a winner is DPO with β 1 and without reference.

    Column: ``label``.
    Libraries: the authors' code pairs each object with a random one of the batch, itself included.
    """
    i, j = group.pairs()
    logp, label = group.response.logp, stop_gradient(group.response["label"])
    share = where(i(label) > j(label), 1.0, where(i(label) == j(label), 0.5, 0.0))
    place = group.response.position
    others = i(place) != j(place)
    loss = where(others, -2.0 * share * log_sigmoid(i(logp) - j(logp)), 0.0)
    return loss.sum("group") / maximum(others.sum("group"), 1.0)


@group_objective(paper=_OP_GFN)
def op_gfn_pareto(group: GroupView, *, scores: str = "score") -> Expression:
    """Order-preserving GFlowNets, Pareto front, for text.

    ``-Σ_i 1[i on the front]/|front| log softmax(log π)_i``: the target is uniform over the responses of the prompt
    that no other one beats in some score without losing in another.

    scores: names of the columns of scores, separated by blanks, e.g. ``"helpful harmless"``.
    """
    columns = [stop_gradient(group.response[name]) for name in scores.split()]
    i, j = group.pairs()
    if not columns:
        raise ValueError("op_gfn_pareto: scores must name at least one column, got none")
    better = reduce(or_, [j(column) > i(column) for column in columns])
    no_worse = reduce(and_, [j(column) >= i(column) for column in columns])
    front: Expression = (better & no_worse).sum("i") < 1.0
    return -(front / front.sum() * group.response.logp.log_softmax()).sum()


@group_objective(
    paper=Paper(
        "2410.12854",
        "TPO: Aligning Large Language Models with Multi-branch & Multi-step Preference Trees",
        "Liao et al. 2024",
    ),
    equation="eqs. 7 to 10 at ICLR",
    bounds={"beta": POSITIVE, "base": "(1, inf)"},
)
def tpo_tree(group: GroupView, *, beta: float = 0.5, base: float = math.e, average: bool = False) -> Expression:
    """Tree preference optimization, TPO.

    LiPO-λ on the scores ``s_i = β Σ_k w_ik Σ_{t in k} h_t`` over the steps k of response i: its adaptive step reward.
    The weights are the caller's; the paper takes ``1 + cos`` between the semantic vectors of the two responses' steps,
    for each pair of responses anew: give both the same where there are two, or `steps.cosine_step_weights`, which
    compares with the best response.

    Columns by token: ``token_step_start`` (true where a step begins), ``token_weight`` (w, read at a step's start; it
    may require grad); by response ``label`` in [0, 1].

    beta: 0.5. base: of λ's logarithm. average: a step counts by its mean h, a response by the weighted mean over its
    steps, as in the authors' code.
    As printed, w multiplies one response's reward only and λ stands before the sum over pairs; that a shared step has
    margin 0, as the paper says, needs w on both, and LambdaRank, which it cites, has λ inside.
    The authors' code minimises -log σ of the ranking loss, which falls as the ranking gets worse: not offered.
    """
    token = group.token
    start, h = token["step_start"], token.logratio
    step = h.suffix_sum(reset=start)
    if average:
        step = step / (token.position * 0.0 + 1.0).suffix_sum(reset=start)
    weight = where(start > 0.5, token["weight"], 0.0)
    s = beta * where(start > 0.5, weight * step, 0.0).sum("response")
    if average:
        total = weight.sum("response")
        s = s / where(total == 0.0, 1.0, total)
    return pairwise_loss(group, s, stop_gradient(group.response["label"]), "lambda", log(base), False)
