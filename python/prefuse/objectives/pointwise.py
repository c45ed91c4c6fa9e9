"""Point objectives: every response has a label of its own, no partner is needed.

Notation: ``h(y) = log π(y|x) - log π_ref(y|x)`` summed over the response. The column ``label`` is true for a
desirable response and false for an undesirable one.
"""

from __future__ import annotations

from ..language import (
    Expression,
    Paper,
    ResponseView,
    log,
    log_sigmoid,
    maximum,
    point_objective,
    sigmoid,
    square,
    stop_gradient,
    where,
)
from ._terms import NON_NEGATIVE, POSITIVE, choice, log_odds, weighted_likelihood


@point_objective(
    paper=Paper("2402.01306", "KTO: Model Alignment as Prospect Theoretic Optimization", "Ethayarajh et al. 2024"),
    equation="eq. 7",
    identities=("kto(kl=0) = apo_zero_unpaired",),
    bounds={"beta": POSITIVE, "desirable_weight": NON_NEGATIVE, "undesirable_weight": NON_NEGATIVE},
    variants={"original": {}, "trl-1.16": {}, "halos": {}},
)
def kto(
    response: ResponseView,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    kl: float | None = None,
) -> Expression:
    """Kahneman-Tversky optimization.

    ``λ_D [1 - σ(β (h - z))]`` for a desirable response, ``λ_U [1 - σ(β (z - h))]`` for an undesirable one;
    ``z = max(0, mean of h over mismatched completions)`` estimates KL(π‖π_ref) and takes no gradient.

    beta: 0.01-0.5. desirable_weight, undesirable_weight: λ_D and λ_U; keep λ_D n_D / (λ_U n_U) in 1-4/3. kl: z itself,
    in nats (a mean over all processes, say; 0 gives APO-zero on unpaired data). Without it the columns ``kl_logps`` and
    ``ref_kl_logps`` must hold the log-probabilities of completions taken from other prompts.
    Libraries: TRL and HALOs differ in how z is pooled over devices; Liger's has no weights.
    """
    mismatched = (response["kl_logps"] - response["ref_kl_logps"]).mean("batch") if kl is None else kl
    gain = beta * (response.logratio - stop_gradient(maximum(mismatched, 0.0)))
    return where(response["label"] > 0, desirable_weight * sigmoid(-gain), undesirable_weight * sigmoid(gain))


@point_objective(
    paper=Paper(
        "2408.06266",
        "Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification in Alignment",
        "D'Oosterlinck et al. 2024",
    ),
    equation="eq. 7",
    bounds={"beta": POSITIVE, "desirable_weight": NON_NEGATIVE, "undesirable_weight": NON_NEGATIVE},
)
def apo_zero_unpaired(
    response: ResponseView, *, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> Expression:
    """Anchored preference optimization, zero, on unpaired data.

    ``λ_D [1 - σ(βh)]`` for a desirable response, ``λ_U σ(βh)`` for an undesirable one: `kto` with z = 0.

    beta: 0.01-0.5. desirable_weight, undesirable_weight: λ_D and λ_U, as in `kto`.
    Libraries: TRL's KTO trainer has it under this name; the paper has no weights.
    """
    reward = beta * response.logratio
    return where(response["label"] > 0, desirable_weight * sigmoid(-reward), undesirable_weight * sigmoid(reward))


@point_objective(
    paper=Paper("2404.04656", "Binary Classifier Optimization for Large Language Model Alignment", "Jung et al. 2024"),
    equation="eq. 8",
    bounds={"beta": POSITIVE},
    variants={"trl-1.10": {}, "trl-0.24": {}},
)
def bco(response: ResponseView, *, beta: float = 0.1, delta: float | None = None) -> Expression:
    """Binary classifier optimization on unpaired data, BCO.

    ``-log σ(βh - δ)`` for a desirable response, ``-log σ(δ - βh)`` for an undesirable one.

    beta: 0.01-0.5. delta: the reward shift δ, in nats: the caller's running mean of rewards. Without it δ is the mean
    reward of this batch, which takes no gradient.
    Libraries: TRL up to 1.10 updates a running mean over all devices before using it; its weights against
    distribution mismatch are `weighted_by` here.
    """
    reward = beta * response.logratio
    shift = stop_gradient(reward.mean("batch")) if delta is None else delta
    return -log_sigmoid(where(response["label"] > 0, reward - shift, shift - reward))


@point_objective(
    paper=Paper("2405.00675", "Self-Play Preference Optimization for Language Model Alignment", "Wu et al. 2024"),
    equation="eq. 4.7",
    bounds={"beta": POSITIVE},
)
def sppo_point(response: ResponseView, *, beta: float = 1e-3) -> Expression:
    """SPPO on single responses: one half of `sppo`.

    ``½ (h - (P - ½)/β)²``: the column ``win_prob`` holds P in [0, 1], the win rate against the previous policy, which
    is the reference.

    beta: 1/η of the paper, 1e-3; targets are then hundreds of nats.
    """
    return 0.5 * square(response.logratio - (response["win_prob"] - 0.5) / beta)


@point_objective(
    paper=Paper(
        "2410.02197",
        "Beyond Bradley-Terry Models: A General Preference Model for Language Model Alignment",
        "Zhang et al. 2024",
    ),
    equation="eq. 5.3",
    bounds={"beta": POSITIVE},
)
def gpo(response: ResponseView, *, beta: float = 1e-3) -> Expression:
    """General preference optimization, GPO.

    ``(h - s/β)²``: the column ``score`` holds s, the mean score of the response against others of the previous policy,
    which is the reference, from a preference model that need not be transitive.

    beta: 1e-3-1; targets may be hundreds of nats.
    The trainer's code is not public; with ``s = P - ½`` it is twice `sppo_point`.
    """
    return square(response.logratio - response["score"] / beta)


@point_objective(
    paper=Paper(
        "2405.19107",
        "Offline Regularised Reinforcement Learning for Large Language Models Alignment",
        "Richemond et al. 2024",
    ),
    equation="section 3.3",
    identities=("dro(tau=0.1) = 0.005 * gpo(beta=0.1) where value=0, reward=score",),
    bounds={"tau": POSITIVE},
)
def dro(response: ResponseView, *, tau: float = 1.0) -> Expression:
    """Direct reward optimization, DRO.

    ``½ (r - V - τh)²``: the columns ``reward`` and ``value`` hold r, a score of this response alone, and V, the value
    of its prompt from a head that learns from the same loss: it takes a gradient.

    tau: strength of the pull towards the reference, 0.1-5. The paper divides the policy's gradient, not that of V, by
    τ in practice: scale its learning rate.
    """
    return 0.5 * square(response["reward"] - response["value"] - tau * response.logratio)


@point_objective(
    paper=Paper("2409.10571", "ASFT: Aligned Supervised Fine-Tuning through Absolute Likelihood", "Wang et al. 2024"),
    equation="β: arXiv:2502.01237, section 3.1.2",
    bounds={"beta": POSITIVE, "weight": NON_NEGATIVE, "alpha": NON_NEGATIVE},
)
def asft_unpaired(response: ResponseView, *, beta: float = 1.0, weight: float = 1.0, alpha: float = 1.0) -> Expression:
    """ASFT on unpaired data.

    ``-α avg(y) - λ log σ(β o(y))`` for a desirable response, ``-λ log σ(-β o(y))`` for an undesirable one: the terms of
    `asft`, whose pairs are sums of two points.

    beta, weight, alpha: as in `asft`.
    """
    average, odds = response.avg_logp, beta * log_odds(response.avg_logp)
    return where(response["label"] > 0, -alpha * average - weight * log_sigmoid(odds), -weight * log_sigmoid(-odds))


@point_objective(
    paper=Paper("2409.20370", "The Perfect Blend: Redefining RLHF with Mixture of Judges", "Xu et al. 2024"),
    equation="eq. 18",
)
def crraft(response: ResponseView, *, average: str = "sum") -> Expression:
    """Calibrated regularised reward-ranked fine-tuning of CGPO, CRRAFT.

    ``-c log π(y)``: the column ``score`` holds c in [0, 1], the calibrated reward of the best response that passes
    every constraint judge and stays near the reference. With c = 1 it is RAFT.

    average: ``"sum"`` over tokens, or ``"tokens"``, one loss for the batch: its sum divided by all its tokens.
    Libraries: none; a trainer proposed to TRL, which it did not take in, divides by all tokens.
    """
    return weighted_likelihood("crraft: average", response["score"], response, average)


@point_objective(
    paper=Paper(
        "2007.07204", "Sampler Design for Implicit Feedback Data by Noisy-label Robust Learning", "Yu and Qin 2020"
    ),
    bounds={"beta": POSITIVE},
)
def nbpo(response: ResponseView, *, beta: float = 1.0, form: str = "surrogate_gradient") -> Expression:
    """Noisy-label robust preference learning, NBPO.

    With the reward ``R = βh`` and, in the column ``flip``, G, the logit of a wrong label, which takes a gradient:
    ``-log σ(R) - log σ(-G)`` for a desirable response, ``-log[σ(-R) + σ(G) σ(R)]`` for an undesirable one.

    beta: 0.1-1. form: ``"likelihood"`` is that; ``"surrogate_gradient"``, the paper's, has for each of R and G the
    gradient of a surrogate in which the other is held fixed, so that the value means nothing; ``"surrogate"`` is minus
    the likelihood, without the logarithm.
    Where no label is ever flipped it is BPO, `bco` with ``delta=0``.
    """
    reward, flip = beta * response.logratio, response["flip"]
    trust, taken, liked = (stop_gradient(sigmoid(x)) for x in (-flip, flip, reward))
    held = trust * log_sigmoid(reward) + liked * log_sigmoid(-flip)
    held_unvoted = log_sigmoid(-reward) + taken * log_sigmoid(reward) + liked * log_sigmoid(flip)
    unvoted = sigmoid(-reward) + sigmoid(flip) * sigmoid(reward)
    forms = {
        "surrogate_gradient": (held, held_unvoted),
        "likelihood": (log_sigmoid(reward) + log_sigmoid(-flip), log(unvoted)),
        "surrogate": (sigmoid(reward) * sigmoid(-flip), unvoted),
    }
    return -where(response["label"] > 0, *choice("nbpo: form", form, forms))


@point_objective(
    paper=Paper(
        "2312.02554",
        "ULMA: Unified Language Model Alignment with Human Demonstration and Point-wise Preference",
        "Cai et al. 2023",
    ),
    equation="eq. 9 at ICLR",
    identities=("ulma = bco(delta=0) where demonstration=0",),
    bounds={"beta": POSITIVE},
)
def ulma(response: ResponseView, *, beta: float = 0.1) -> Expression:
    """Unified language model alignment, ULMA.

    ``-log π(y)`` of a demonstration, ``-log σ(βh)`` of another desirable response and ``-log σ(-βh)`` of an undesirable
    one: supervised fine-tuning and point-wise DPO in one step. The column ``demonstration`` is true for demonstrations,
    whose label does not matter.

    beta: 0.05-0.5.
    In the authors' code, which agrees, every desirable response is a demonstration.
    """
    reward = beta * response.logratio
    labelled = -log_sigmoid(where(response["label"] > 0, reward, -reward))
    return where(response["demonstration"], -response.logp, labelled)


@point_objective(
    paper=Paper(
        "2404.05868",
        "Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning",
        "Zhang et al. 2024, unlearning",
    ),
    equation="eq. 3",
    bounds={"beta": POSITIVE},
)
def npo(response: ResponseView, *, beta: float = 0.1) -> Expression:
    """Negative preference optimization, NPO.

    ``-(2/β) log σ(-βh)`` on responses to forget: DPO without a chosen response.

    beta: 0.01-1; towards 0 the gradient is that of gradient ascent.
    The authors' code agrees.
    """
    return -2.0 / beta * log_sigmoid(-beta * response.logratio)


@point_objective(
    paper=Paper(
        "2410.07163",
        "Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning",
        "Fan et al. 2024",
    ),
    equation="eq. 4",
    bounds={"beta": POSITIVE},
)
def simnpo(response: ResponseView, *, beta: float = 2.5, gamma: float = 0.0) -> Expression:
    """Simple negative preference optimization, SimNPO, as reconstructed.

    ``-(2/β) log σ(-β avg(y) - γ)``: `npo` on averages, without a reference.

    beta: 1-10. gamma: the margin γ in the units of the logit, 0-2; the authors' code multiplies its own by β.
    """
    return -2.0 / beta * log_sigmoid(-beta * response.avg_logp - gamma)
