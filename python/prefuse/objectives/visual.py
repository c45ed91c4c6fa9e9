"""Objectives for models that see: pairs against responses written, or scored, without the image.

Diffusion-DPO (arXiv:2311.12908) is `dpo` of half its β, whose log-probabilities are minus the denoising errors.

Notation: ``h(y) = log π(y|x) - log π_ref(y|x)`` summed over the response, w chosen, l rejected.
"""

from __future__ import annotations

from ..language import Expression, PairView, Paper, ResponseView, log_sigmoid, pair_objective
from ._terms import NON_NEGATIVE, POSITIVE, log_ratio_margin


@pair_objective(
    paper=Paper(
        "2503.14189",
        "Towards Harmless Multimodal Assistants with Blind Preference Optimization",
        "Li, Yang, Wang, You, Li and Nie 2025",
    ),
    identities=(
        "bpo = 2 * dpo where blind=rejected",
        'bpo(combine="mean") = dpo where blind=rejected',
    ),
    bounds={"beta": POSITIVE},
    variants={"original": {"combine": "mean"}},
)
def bpo(pair: PairView, *, beta: float = 0.1, combine: str = "sum") -> Expression:
    """Blind preference optimization.

    ``-log σ(β [h(w) - h(l)]) - log σ(β [h(w) - h(b)])``: two DPO terms that share the chosen response. The third
    role, ``blind``, is a response that the initial model wrote without seeing the image; all log-probabilities,
    its own included, are conditioned on the full prompt with the image.

    beta: 0.05-0.5. combine: ``"sum"`` is the paper's loss, ``"mean"`` half of it.
    The authors' released script trains on the two pairs as separate rows of one data set, whose mean loss is
    ``combine="mean"``; other libraries do not have it.
    """
    human = -log_sigmoid(beta * log_ratio_margin(pair))
    blind = -log_sigmoid(beta * (pair.chosen.logratio - pair.response("blind").logratio))
    if combine == "sum":
        return human + blind
    if combine == "mean":
        return 0.5 * (human + blind)
    raise ValueError(f'bpo: combine must be "sum" or "mean", got {combine!r}')


@pair_objective(
    paper=Paper(
        "2406.11839",
        "mDPO: Conditional Preference Optimization for Multimodal Large Language Models",
        "Wang et al. 2024",
    ),
    equation="section 3",
    identities=(
        "multimodal_dpo(image_weight=0, anchor_weight=0) = dpo",
        "multimodal_dpo(anchor_weight=0) = bpo where chosen_damaged=blind",
    ),
    bounds={"beta": POSITIVE, "image_weight": NON_NEGATIVE, "anchor_weight": NON_NEGATIVE},
)
def multimodal_dpo(
    pair: PairView, *, beta: float = 0.1, image_weight: float = 1.0, anchor_weight: float = 1.0, delta: float = 0.0
) -> Expression:
    """Conditional preference optimization for multimodal models, mDPO.

    ``-log σ(β [h(w) - h(l)]) - μ log σ(β [h(w) - h(w')]) - ν log σ(βh(w) - δ)``: the role
    ``chosen_damaged`` w' is the chosen response under a damaged image, and the last term holds up the chosen reward.

    beta: 0.05-0.5. image_weight: μ, 0-1. anchor_weight: ν, 0-1. delta: the anchor δ in units of the reward.
    The authors' code agrees: all weights are 1 and δ is 0.
    """
    chosen = beta * pair.chosen.logratio
    loss = -log_sigmoid(beta * log_ratio_margin(pair))
    image = -log_sigmoid(chosen - beta * pair.response("chosen_damaged").logratio)
    return loss + image_weight * image - anchor_weight * log_sigmoid(chosen - delta)


@pair_objective(
    paper=Paper(
        "2501.09695",
        "Mitigating Hallucinations in Large Vision-Language Models via DPO: On-Policy Data Hold the Key",
        "Yang et al. 2025",
    ),
    bounds={"beta": POSITIVE, "image_weight": NON_NEGATIVE, "anchor_weight": NON_NEGATIVE},
)
def opa_dpo(pair: PairView, *, beta: float = 0.1, image_weight: float = 0.2, anchor_weight: float = 1.0) -> Expression:
    """On-policy alignment DPO, OPA-DPO, as reconstructed on sequences.

    With ``ℓ(a, b) = -log σ(β [h(a) - h(b)])``: ``ℓ(G, O) + ℓ(A, O) + μ [ℓ(G, G') + ℓ(A, A')] + ν [-log σ(βh(G)) -
    log σ(-βh(O))]``. The chosen response G is the ground truth, the rejected O the policy's own, the role ``revised`` A
    is O revised by an expert; ``chosen_damaged`` G' and ``revised_damaged`` A' are the same texts under a damaged
    image. In ℓ(A, O) tokens weigh by the token column ``severity`` of the revised and the rejected response, in
    ℓ(A, A') by ``recognition`` of both.

    beta: 0.05-0.5. image_weight: μ, 0-1. anchor_weight: ν, 0-1.
    The authors' code pairs tokens position by position, padding included, and anchors the revised response downwards.
    """
    revised, rejected = pair.response("revised"), pair.rejected
    chosen_damaged, revised_damaged = pair.response("chosen_damaged"), pair.response("revised_damaged")

    def prefer(better: Expression, worse: Expression) -> Expression:
        return -log_sigmoid(beta * (better - worse))

    language = prefer(pair.chosen.logratio, rejected.logratio)
    language = language + prefer(_weighted(revised, "severity"), _weighted(rejected, "severity"))
    image = prefer(pair.chosen.logratio, chosen_damaged.logratio)
    image = image + prefer(_weighted(revised, "recognition"), _weighted(revised_damaged, "recognition"))
    anchor = -log_sigmoid(beta * pair.chosen.logratio) - log_sigmoid(-beta * rejected.logratio)
    return language + image_weight * image + anchor_weight * anchor


def _weighted(response: ResponseView, weight: str) -> Expression:
    return (response.token[weight] * response.token.logratio).sum()
