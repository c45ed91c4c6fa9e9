"""Point objectives: every response has a label of its own, no partner is needed.

Notation: ``h(y) = log π(y|x) - log π_ref(y|x)`` summed over the response. The column ``label`` is true for a
desirable response and false for an undesirable one.
"""

from __future__ import annotations

from ..language import Expression, ResponseView, log_sigmoid, maximum, point_objective, sigmoid, stop_gradient, where
from ._terms import NON_NEGATIVE, POSITIVE


@point_objective(bounds={"beta": POSITIVE, "desirable_weight": NON_NEGATIVE, "undesirable_weight": NON_NEGATIVE})
def kto(
    response: ResponseView,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    kl: float | None = None,
) -> Expression:
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7).

    ``λ_D [1 - σ(β (h - z))]`` for a desirable response, ``λ_U [1 - σ(β (z - h))]`` for an undesirable one;
    ``z = max(0, mean of h over mismatched completions)`` estimates KL(π‖π_ref) and takes no gradient.

    beta: 0.01-0.5. desirable_weight, undesirable_weight: λ_D and λ_U; keep λ_D n_D / (λ_U n_U) in 1-4/3. kl: z itself,
    in nats (a mean over all processes, say; 0 gives APO-zero on unpaired data). Without it the columns ``kl_logps`` and
    ``ref_kl_logps`` must hold the log-probabilities of completions taken from other prompts.
    Libraries: TRL and HALOs differ in how z is pooled over devices; Liger's has no weights.
    """
    mismatched = (response["kl_logps"] - response["ref_kl_logps"]).mean("batch") if kl is None else kl
    gain = beta * (response.logratio - stop_gradient(maximum(mismatched, 0.0)))
    return where(response["label"], desirable_weight * sigmoid(-gain), undesirable_weight * sigmoid(gain))


@point_objective(bounds={"beta": POSITIVE, "desirable_weight": NON_NEGATIVE, "undesirable_weight": NON_NEGATIVE})
def apo_zero_unpaired(
    response: ResponseView, *, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> Expression:
    """Anchored preference optimization, zero, on unpaired data (D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7).

    ``λ_D [1 - σ(βh)]`` for a desirable response, ``λ_U σ(βh)`` for an undesirable one: `kto` with z = 0.

    beta: 0.01-0.5. desirable_weight, undesirable_weight: λ_D and λ_U, as in `kto`.
    Libraries: TRL's KTO trainer has it under this name; the paper has no weights.
    """
    reward = beta * response.logratio
    return where(response["label"], desirable_weight * sigmoid(-reward), undesirable_weight * sigmoid(reward))


@point_objective(bounds={"beta": POSITIVE})
def bco(response: ResponseView, *, beta: float = 0.1, delta: float | None = None) -> Expression:
    """Binary classifier optimization on unpaired data, BCO (Jung et al. 2024, arXiv:2404.04656).

    ``-log σ(βh - δ)`` for a desirable response, ``-log σ(δ - βh)`` for an undesirable one.

    beta: 0.01-0.5. delta: the reward shift δ, in nats: the caller's running mean of rewards. Without it δ is the mean
    reward of this batch, which takes no gradient.
    Libraries: TRL up to 1.10 updates a running mean over all devices before using it; its weights against
    distribution mismatch are `weighted_by` here.
    """
    reward = beta * response.logratio
    shift = stop_gradient(reward.mean("batch")) if delta is None else delta
    return -log_sigmoid(where(response["label"], reward - shift, shift - reward))
