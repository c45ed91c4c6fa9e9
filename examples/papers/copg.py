"""Contrastive policy gradient on a bandit, off-policy (Flet-Berliac et al. 2024, arXiv:2406.19185, section 5)."""

import numpy as np
from lab import Adam, log_softmax, pair_gradient, softmax, thinned, to_logits

from prefuse import objectives

TITLE = "CoPG: zero regret from off-policy data"
CLAIM = (
    "From responses that other policies sampled, contrastive policy gradient finds the optimum of the regularised "
    "reward; IPO on the same pairs and policy gradient with or without a value baseline do not."
)

REWARDS, BETA = np.array([2.5, 2.0, 1.0]), 0.5
SAMPLERS = np.array([0.1, 0.2, 0.7]), np.array([0.05, 0.05, 0.9])
STEPS, RATE, PAIRS = 1200, 1e-2, 10_000


def value(logits):
    """J(π) = E[R - β log π/π_ref]."""
    logps = log_softmax(logits)
    return float(np.exp(logps) @ (REWARDS - BETA * (logps + np.log(3))))


def main():
    rng = np.random.default_rng(0)
    first, second = (rng.choice(3, PAIRS, p=sampler) for sampler in SAMPLERS)
    cells, counts = np.unique(np.stack([first, second]), axis=1, return_counts=True)
    shares = counts / PAIRS
    reference = np.full(3, -np.log(3))
    best = value(REWARDS / BETA)
    prefers = 1 / (1 + np.exp(REWARDS[cells[1]] - REWARDS[cells[0]]))  # Bradley-Terry labels, in expectation
    responses = np.concatenate([first, second])
    frequency = np.bincount(responses, minlength=3) / len(responses)

    contrastive = objectives.copg(beta=BETA).weighted_by("weight")
    identity = objectives.ipo(beta=BETA, average=False).weighted_by("weight")
    reinforce = objectives.reinforce(beta=BETA, baseline="given")

    def copg(logits):
        scores = {"chosen_score": REWARDS[cells[0]], "rejected_score": REWARDS[cells[1]]}
        return pair_gradient(contrastive, logits, reference, *cells, **scores, weight=shares)

    def ipo(logits):
        both = np.concatenate([cells, cells[::-1]], axis=1)
        weight = np.concatenate([shares * prefers, shares * (1 - prefers)])
        return pair_gradient(identity, logits, reference, *both, weight=weight)

    def policy_gradient(baseline):
        def gradient(logits):
            logps = log_softmax(logits)
            values = np.full(3, np.exp(logps) @ REWARDS if baseline else 0.0)
            columns = {"logps": logps, "ref_logps": reference, "reward": REWARDS, "value": values}
            found = reinforce.value_and_grad(**columns, reduction="sum").gradients["logps"]
            return to_logits(logps, frequency * found)

        return gradient

    methods = {
        "CoPG": copg,
        "IPO": ipo,
        "policy gradient": policy_gradient(False),
        "policy gradient, value baseline": policy_gradient(True),
    }
    regrets, policies = {}, {}
    for name, gradient in methods.items():
        logits, adam, regrets[name] = np.zeros(3), Adam(RATE), []
        for _ in range(STEPS):
            regrets[name].append(best - value(logits))
            logits = adam.step(logits, gradient(logits))
        policies[name] = softmax(logits)

    assert regrets["CoPG"][0] > 0.29
    assert regrets["CoPG"][-1] < 1e-6
    np.testing.assert_allclose(policies["CoPG"], softmax(REWARDS / BETA), atol=1e-4)
    assert regrets["IPO"][-1] > 0.1
    assert regrets["policy gradient"][-1] > regrets["policy gradient"][0]  # worse than where it started
    assert regrets["policy gradient, value baseline"][-1] > 0.01
    return {"regrets": regrets, "policies": policies}


def draw(axes, data):
    for name, regrets in data["regrets"].items():
        axes.plot(*thinned(regrets), label=name)
    axes.set(xlabel="step", ylabel="regret", ylim=(-0.02, 0.7))
    axes.legend()


if __name__ == "__main__":
    main()
