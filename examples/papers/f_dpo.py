"""DPO under other divergences (Wang et al. 2023, f-DPO, arXiv:2309.16240, theorem 1)."""

import numpy as np
import torch
from lab import minimise, ordered_pairs, pair_columns, softmax

from prefuse import objectives

TITLE = "f-DPO: each divergence has its own optimum"
CLAIM = "Minimising f-DPO on preferences gives the policy that maximises reward less β times that f-divergence."

REWARDS, REFERENCE, BETA = np.array([1.0, 0.5, 0.0]), np.array([0.2, 0.5, 0.3]), 0.5
DIVERGENCES = {  # f(u) of D_f(π‖π_ref) = E_ref f(π/π_ref)
    "reverse_kl": lambda u: u * u.log(),
    "js": lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log(),
    "forward_kl": lambda u: -u.log(),
    "alpha": lambda u: (u**0.5 - 0.5 * u - 0.5) / (0.5 * -0.5),
}
OPTIMA = {
    "reverse_kl": (0.47110, 0.43327, 0.09563),
    "js": (0.75867, 0.20535, 0.03598),
    "forward_kl": (0.51439, 0.36002, 0.12559),
    "alpha": (0.49839, 0.38918, 0.11243),
}


def from_preferences(divergence):
    first, second = ordered_pairs(3)
    prefers = 1 / (1 + np.exp(REWARDS[second] - REWARDS[first]))
    weight = torch.tensor(REFERENCE[first] * REFERENCE[second] * prefers)
    objective = objectives.f_dpo(divergence=divergence, beta=BETA).weighted_by("weight")
    reference = torch.tensor(np.log(REFERENCE))

    def loss(logits):
        return objective(
            **pair_columns(logits.log_softmax(0), reference, first, second), weight=weight, reduction="sum"
        ).loss

    return softmax(minimise(loss, np.log(REFERENCE), steps=400))


def from_rewards(divergence):
    """The same optimum without any preference: reward less divergence, maximised over policies."""
    reward, reference = torch.tensor(REWARDS), torch.tensor(REFERENCE)

    def loss(logits):
        policy = logits.softmax(0)
        return BETA * reference @ DIVERGENCES[divergence](policy / reference) - policy @ reward

    return softmax(minimise(loss, np.log(REFERENCE), steps=400))


def main():
    policies = {name: from_preferences(name) for name in DIVERGENCES}
    for name, policy in policies.items():
        np.testing.assert_allclose(policy, from_rewards(name), atol=1e-4)
        np.testing.assert_allclose(policy, OPTIMA[name], atol=1e-4)
    assert policies["js"][0] > 0.7 > 0.55 > policies["forward_kl"][0]  # they differ
    return {"policies": policies}


def draw(axes, data):
    names = {"reverse_kl": "reverse KL (DPO)", "js": "Jensen-Shannon", "forward_kl": "forward KL", "alpha": "α = ½"}
    for number, (name, policy) in enumerate(data["policies"].items()):
        axes.bar(np.arange(3) + (number - 1.5) * 0.2, policy, 0.18, label=names[name])
        axes.plot(np.arange(3) + (number - 1.5) * 0.2, OPTIMA[name], "k_", markersize=12)
    axes.set(xticks=range(3), xticklabels=["reward 1", "reward ½", "reward 0"], ylabel="policy (bar), optimum (line)")
    axes.legend()


if __name__ == "__main__":
    main()
