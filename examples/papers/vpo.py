"""Value-incentivised preference optimization, online (Cen et al. 2024, arXiv:2405.19320, algorithm 1).

The set-up is ours: bandits whose reference covers good arms little, rewards in a bounded class as the theory assumes,
one labelled pair of the policy's own samples a round, and a few gradient steps on all pairs so far, as one would train
a language model.
"""

import numpy as np
from lab import Adam, log_softmax, thinned, to_logits

from prefuse import objectives

TITLE = "VPO: optimism lowers regret"
CLAIM = (
    "Learning online from pairs of its own samples, plain DPO (α = 0) settles for what the reference covers; VPO's "
    "optimism brings it to arms seldom seen and lowers cumulative regret."
)

ARMS, SEEDS, ROUNDS, BETA, LARGEST = 10, 40, 150, 0.3, 3.0
ALPHAS = (0.0, 0.3, 1.0)
INNER, RATE = 20, 0.03
SHAPE = (SEEDS, ARMS, ARMS)


def run(alpha):
    """Cumulative regret [seeds, rounds]; every seed is a bandit of its own, all trained in one call."""
    rng = np.random.default_rng(0)
    rewards = LARGEST * rng.random((SEEDS, ARMS))
    reference = log_softmax(-rewards)
    everyone, first, second = np.arange(SEEDS), *np.divmod(np.arange(ARMS**2), ARMS)
    objective = objectives.vpo(beta=BETA, mode="online").weighted_by("weight")
    fixed = {
        "ref_chosen_logps": reference[:, first].ravel(),
        "ref_rejected_logps": reference[:, second].ravel(),
        "ref_calibration_logps": np.zeros(SEEDS * ARMS**2),
    }

    def value(logps):
        return (np.exp(logps) * (rewards - BETA * (logps - reference))).sum(1)

    def policy(raw):
        return log_softmax(reference + LARGEST * np.tanh(raw) / BETA)

    optimum = value(log_softmax(rewards / BETA + reference))
    wins, raw, regret = np.zeros(SHAPE), np.zeros((SEEDS, ARMS)), []
    for count in range(1, ROUNDS + 1):
        logps = policy(raw)
        regret.append(optimum - value(logps))
        draws = (np.exp(logps).cumsum(1)[:, None] < rng.random((SEEDS, 2, 1))).sum(2).clip(max=ARMS - 1)
        one, other = draws[:, 0], draws[:, 1]
        swap = rng.random(SEEDS) >= 1 / (1 + np.exp(rewards[everyone, other] - rewards[everyone, one]))
        wins[everyone, np.where(swap, other, one), np.where(swap, one, other)] += 1
        adam = Adam(RATE)
        for _ in range(INNER):
            logps = policy(raw)
            covered = (np.exp(reference) * logps).sum(1)  # E log π(c), the calibration response c from the reference
            found = objective.value_and_grad(
                chosen_logps=logps[:, first].ravel(),
                rejected_logps=logps[:, second].ravel(),
                calibration_logps=np.repeat(covered, ARMS**2),
                weight=wins.ravel(),
                **fixed,
                **{"vpo.alpha": alpha / count},  # the likelihood is a sum over the data, the optimism is there once
                reduction="sum",
            ).gradients
            gradient = found["chosen_logps"].reshape(SHAPE).sum(2) + found["rejected_logps"].reshape(SHAPE).sum(1)
            gradient += found["calibration_logps"].reshape(SEEDS, -1).sum(1, keepdims=True) * np.exp(reference)
            by_raw = to_logits(logps, gradient) * LARGEST / BETA * (1 - np.tanh(raw) ** 2)
            raw = adam.step(raw, by_raw)
    return np.cumsum(regret, axis=0).T


def main():
    regrets = {alpha: run(alpha) for alpha in ALPHAS}
    final = {alpha: regret[:, -1] for alpha, regret in regrets.items()}
    for alpha in ALPHAS[1:]:
        assert final[alpha].mean() < 0.8 * final[0.0].mean()
        assert np.median(final[alpha]) < 0.5 * np.median(final[0.0])
    return {"regrets": regrets}


def draw(axes, data):
    for number, (alpha, regret) in enumerate(data["regrets"].items()):
        name = "DPO (α = 0)" if alpha == 0.0 else f"VPO, α = {alpha:g}"
        axes.plot(*thinned(regret.mean(0)), f"C{number}", label=name)
        axes.plot(*thinned(np.median(regret, 0)), f"C{number}:")
    axes.set(xlabel="round (one labelled pair each)", ylabel="cumulative regret\n(mean; median dotted)")
    axes.legend()


if __name__ == "__main__":
    main()
