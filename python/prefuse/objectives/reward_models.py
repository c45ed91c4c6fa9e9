"""Objectives of reward models: no policy, only the rewards a head gives two answers.

Combining the scores of several reward models is `prefuse.objectives.advantages.ensemble_reward`.
"""

from __future__ import annotations

from ..language import Expression, GroupView, PairView, Paper, group_objective, log_sigmoid, pair_objective, square
from ._terms import NON_NEGATIVE, POSITIVE


@pair_objective(
    paper=Paper(
        "2203.02155", "Training language models to follow instructions with human feedback", "Ouyang et al. 2022"
    ),
    equation="eq. 1; margins Touvron et al. 2023",
    bounds={"center": NON_NEGATIVE},
)
def bradley_terry(
    pair: PairView, *, margin: float | None = None, center: float | None = None
) -> tuple[Expression, dict[str, Expression]]:
    """Bradley-Terry reward model.

    ``-log σ(r(w) - r(l) - m) + c (r(w) + r(l))²``.

    Columns: ``chosen_reward``, ``rejected_reward``.

    margin: m, a number or one per pair (larger where the preference was stronger); None is 0. center: c, 0.01, keeps
    the rewards' arbitrary constant near 0 (Eisenstein et al. 2023); None leaves it out.
    Libraries: TRL's reward trainer agrees; MOSS adds 1e-5 inside the logarithm and, on request, `sft` on the chosen.
    """
    chosen, rejected = pair.chosen["reward"], pair.rejected["reward"]
    difference = chosen - rejected if margin is None else chosen - rejected - margin
    loss = -log_sigmoid(difference)
    if center is not None:
        loss = loss + center * square(chosen + rejected)
    return loss, {"chosen": chosen, "rejected": rejected}


@group_objective(
    paper=Paper(
        "2410.02197",
        "Beyond Bradley-Terry Models: A General Preference Model for Language Model Alignment",
        "Zhang et al. 2024",
    ),
    equation="eq. A.1",
    bounds={"temperature": POSITIVE},
)
def gpm(
    group: GroupView,
    *,
    temperature: float = 0.1,
    margin: float | None = None,
    gated: bool = False,
    target: float | None = None,
) -> Expression:
    """General preference model, GPM: preferences that may be cyclic.

    ``-log σ((s - m)/τ)``, ``s = Σ_k λ_k (a_k b'_k - b_k a'_k)``: an answer's embedding of 2K numbers is K pairs (a,
    b), the chosen one's without and the rejected one's with a prime. With K = 1 and a = r, b = 1 it is Bradley-Terry.

    Here a group is a preference pair and its members are the K blocks: columns ``chosen_even`` (a), ``chosen_odd`` (b),
    ``rejected_even``, ``rejected_odd`` of shape [pairs, K], e.g. ``v[:, 0::2]``; if gated also ``gate`` (λ ≥ 0). All
    may require grad. The paper normalises embeddings to length 1 beforehand, its training code does not.

    temperature: τ, 0.1; 1 is usual with K = 1 and b = 1. margin: m, one per pair or for all. gated: whether λ is given;
    else it is 1. target: regress instead, ``½ (s/τ - target)²``, 10 in the authors' code.
    """
    block = group.response
    product = block["chosen_even"] * block["rejected_odd"] - block["chosen_odd"] * block["rejected_even"]
    score = (block["gate"] * product if gated else product).sum()
    if target is not None:
        return 0.5 * square(score / temperature - target)
    return -log_sigmoid((score if margin is None else score - margin) / temperature)
