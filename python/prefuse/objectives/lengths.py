"""Pair objectives against the bias towards long responses.

Notation: ``h(y) = log π(y|x) - log π_ref(y|x)`` summed over the response, ``Δ = h(w) - h(l)`` for chosen w and
rejected l, ``n(y)`` the number of response tokens. See also `dpo_norm` and `simpo`.
"""

from __future__ import annotations

from ..language import Expression, PairView, Paper, ResponseView, log_sigmoid, minimum, pair_objective, where
from ._terms import POSITIVE, PROBABILITY, choice, log_ratio_margin


@pair_objective(
    paper=Paper(
        "2403.19159", "Disentangling Length from Quality in Direct Preference Optimization", "Park et al. 2024"
    ),
    equation="eq. 9",
    identities=(
        "r_dpo(alpha=0) = dpo",
        "r_dpo = dpo where lengths=5",
        "r_dpo(alpha=0.05) = daa(alpha=0.05)",
    ),
    bounds={"beta": POSITIVE},
)
def r_dpo(pair: PairView, *, beta: float = 0.1, alpha: float = 0.01) -> Expression:
    """Length-regularised DPO, R-DPO.

    ``-log σ(βΔ + α [n(w) - n(l)])``: DPO for the reward ``r - α n``, so that a longer chosen response is pushed less.

    beta: 0.05-0.5. alpha: penalty per token, 0.005-0.1; the notes on the scaling paper (arXiv:2406.02900) print the
    opposite sign, which is a negative alpha here.
    Libraries: SamPO's code has it with this sign; TRL and Liger do not have it.
    """
    return -log_sigmoid(beta * log_ratio_margin(pair) + alpha * (pair.chosen.length - pair.rejected.length))


@pair_objective(
    paper=Paper("2409.06411", "Length Desensitization in Direct Preference Optimization", "Liu et al. 2024"),
    equation="eq. 11 at ICLR",
    identities=("ld_dpo(alpha=1) = dpo",),
    bounds={"beta": POSITIVE, "alpha": PROBABILITY},
    variants={
        "trl-1.16": {"scope": "both"},
        "llamafactory": {"scope": "policy"},
        "ms-swift": {"scope": "policy"},
    },
)
def ld_dpo(pair: PairView, *, beta: float = 0.1, alpha: float = 0.5, scope: str = "both") -> Expression:
    """Length-desensitised DPO, LD-DPO.

    DPO whose sums run over the first ``m = min(n(w), n(l))`` tokens in full and over the rest with weight α.

    beta: 0.05-0.5. alpha: weight of the tokens beyond m, in [0, 1]; at 1 it is DPO. scope: ``"both"`` weighs policy and
    reference, ``"policy"`` the policy alone.
    Libraries: TRL 1.x weighs both (``ld_alpha``), LLaMA-Factory and ms-swift the policy; TRL 0.x counts positions from
    the start of the prompt.
    """
    shared = minimum(pair.chosen.length, pair.rejected.length)

    def desensitised(response: ResponseView) -> Expression:
        token = response.token
        weight = where(token.position < shared, 1.0, alpha)
        reference = choice("ld_dpo: scope", scope, {"both": weight * token.ref_logp, "policy": token.ref_logp})
        return (weight * token.logp - reference).sum()

    return -log_sigmoid(beta * (desensitised(pair.chosen) - desensitised(pair.rejected)))


@pair_objective(
    paper=Paper(
        "2406.10957",
        "Eliminating Biased Length Reliance of Direct Preference Optimization via Down-Sampled KL Divergence",
        "Lu et al. 2024",
    ),
    equation="eq. 10",
    identities=("sampo = dpo where sampled=1",),
    bounds={"beta": POSITIVE},
    variants={"original": {"independent": True}},
)
def sampo(pair: PairView, *, beta: float = 0.1, independent: bool = False) -> Expression:
    """Down-sampled DPO, SamPO.

    DPO whose sums run over min(n(w), n(l)) tokens of either response: of the longer one a random choice, made by the
    caller in the token columns ``sampled`` (true for the tokens kept).

    beta: 0.05-0.5. independent: let the reference's sums run over a choice of their own, in ``ref_sampled``, as the
    authors' code does.
    """

    def kept(response: ResponseView) -> Expression:
        token = response.token
        policy = where(token["sampled"], token.logp, 0.0).sum()
        return policy - where(token["ref_sampled" if independent else "sampled"], token.ref_logp, 0.0).sum()

    return -log_sigmoid(beta * (kept(pair.chosen) - kept(pair.rejected)))
