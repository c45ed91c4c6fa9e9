"""Accelerated preference optimization on a bandit (He et al. 2024, arXiv:2410.06293)."""

import numpy as np
import torch
from lab import minimise, ordered_pairs, pair_columns, softmax

from prefuse import objectives, outer

TITLE = "Accelerated PO: extrapolation speeds rounds up"
CLAIM = "Extrapolating between rounds of DPO with momentum α approaches the optimum about 1/(1 - α) times as fast."

REWARDS, BETA, ROUNDS = np.array([1.0, 0.8, 0.5, 0.2, 0.0]), 5.0, 30
ALPHAS = (0.0, 0.3, 0.5, 0.9)


class Bandit(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))


def train(alpha):
    """Sub-optimality after each round, whose inner problem is solved to the end."""
    first, second = ordered_pairs(5)
    weight = torch.tensor(1 / (1 + np.exp(REWARDS[second] - REWARDS[first])))  # Bradley-Terry
    dpo = objectives.dpo(beta=BETA).weighted_by("weight")

    def step(current):
        reference = current.previous.logits.log_softmax(0)

        def loss(logits):
            columns = pair_columns(logits.log_softmax(0), reference, first, second)
            return dpo(**columns, weight=weight, reduction="sum").loss

        solved = minimise(loss, current.policy.logits.detach().numpy())
        with torch.no_grad():
            current.policy.logits.copy_(torch.tensor(solved))
        return REWARDS.max() - float(softmax(solved) @ REWARDS)

    return outer.run_rounds(Bandit(), step, rounds=ROUNDS, acceleration=alpha)


def main():
    gaps = {alpha: train(alpha) for alpha in ALPHAS}
    # π̂_t ∝ exp(Σ_i (1 - α^{t-i})/(1 - α) r/β), the paper's theorem
    for alpha, values in gaps.items():
        exponent = sum((1 - alpha ** (ROUNDS - i)) / (1 - alpha) for i in range(ROUNDS))
        assert abs(values[-1] - (1 - softmax(exponent * REWARDS / BETA) @ REWARDS)) < 1e-6
    final = [values[-1] for values in gaps.values()]
    np.testing.assert_allclose(final, [0.069175, 0.037791, 0.019296, 0.000039], atol=2e-6)
    needed = {
        alpha: 1 + next(t for t, gap in enumerate(values) if gap < final[0] * 1.0001) for alpha, values in gaps.items()
    }
    assert needed[0.5] / ROUNDS < 0.65  # towards 1 - α = 0.5
    assert needed[0.3] / ROUNDS < 0.85  # towards 0.7
    return {"gaps": gaps, "rounds_to_the_same_gap": needed}


def draw(axes, data):
    for alpha, gaps in data["gaps"].items():
        axes.semilogy(range(1, len(gaps) + 1), gaps, label=f"α = {alpha:g}")
    axes.set(xlabel="round", ylabel="sub-optimality")
    axes.legend()


if __name__ == "__main__":
    main()
