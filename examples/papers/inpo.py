"""Iterative Nash policy optimization: the last iterate (Zhang et al. 2024, arXiv:2407.00617, theorem 3)."""

import numpy as np
import torch
from lab import minimise, ordered_pairs, pair_columns, softmax

from prefuse import objectives

TITLE = "INPO: the last iterate converges"
CLAIM = (
    "With the pull to the reference, INPO's last iterate converges to the regularised equilibrium at a linear rate; "
    "without it (τ = 0) the policy keeps cycling."
)

WINS = np.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]])
REFERENCE = np.array([0.6, 0.3, 0.1])
EQUILIBRIUM = np.array([0.492747, 0.154147, 0.353106])  # of the game regularised with τ = 0.1
ETA, TAU, ROUNDS = 1.0, 0.1, 100


def rounds(tau):
    first, second = ordered_pairs(3)
    inpo, reference = objectives.inpo(eta=ETA, tau=tau).weighted_by("weight"), torch.tensor(np.log(REFERENCE))
    logits, policies = np.log(REFERENCE), []
    for _ in range(ROUNDS):
        policy = softmax(logits)
        policies.append(policy)
        weight = torch.tensor(policy[first] * policy[second] * WINS[first, second])
        previous = torch.tensor(np.log(policy))

        def loss(logits, weight=weight, previous=previous):
            columns = pair_columns(logits.log_softmax(0), reference, first, second)
            columns |= {"chosen_previous_logps": previous[first], "rejected_previous_logps": previous[second]}
            return inpo(**columns, weight=weight, reduction="sum").loss

        logits = minimise(loss, logits)
    return np.array(policies)


def main():
    policies = {"INPO": rounds(TAU), "without reference": rounds(0.0)}
    kl = {name: (EQUILIBRIUM * np.log(EQUILIBRIUM / policy)).sum(1) for name, policy in policies.items()}
    np.testing.assert_allclose(policies["INPO"][-1], EQUILIBRIUM, atol=1e-3)
    # the exact iteration: π ∝ exp(P π_t/η) π_ref^{τ/η} π_t^{1 - τ/η}
    exact = REFERENCE
    for _ in range(ROUNDS - 1):
        exact = np.exp(WINS @ exact / ETA) * REFERENCE ** (TAU / ETA) * exact ** (1 - TAU / ETA)
        exact /= exact.sum()
    np.testing.assert_allclose(policies["INPO"][-1], exact, atol=1e-6)
    assert kl["INPO"][-1] < 1e-7 < 1e-3 < kl["INPO"][10]
    assert kl["without reference"][-20:].max() > 0.05
    return {"kl": kl}


def draw(axes, data):
    for name, kl in data["kl"].items():
        axes.semilogy(kl, label=name)
    axes.set(xlabel="round", ylabel="KL from the regularised equilibrium")
    axes.legend()


if __name__ == "__main__":
    main()
