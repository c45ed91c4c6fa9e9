"""Self-play preference optimization from win rates (Swamy et al. 2024, arXiv:2401.04056)."""

import numpy as np
from lab import game_gap, log_softmax, ordered_pairs, thinned

from prefuse import objectives

TITLE = "SPO: a minimax winner where a reward model fails"
CLAIM = (
    "With cyclic preferences, policy gradient on win rates against the policy itself finds the minimax winner (on "
    "average over iterates), while a reward model fitted to the same preferences commits to one exploitable answer."
)

WINS = np.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]])
WINNER = np.array([0.3, 0.3, 0.4])
RATE, STEPS = 0.1, 4000
START = np.array([0.5, 0.0, -0.3])


def fitted_rewards():
    """A Bradley-Terry reward model of the preferences, every pair compared equally often."""
    first, second = ordered_pairs(3)
    bradley_terry, rewards = objectives.bradley_terry.weighted_by("weight"), np.zeros(3)
    for _ in range(300):
        columns = {"chosen_reward": rewards[first], "rejected_reward": rewards[second]}
        found = bradley_terry.value_and_grad(**columns, weight=WINS[first, second], reduction="sum").gradients
        np.subtract.at(rewards, first, 0.5 * found["chosen_reward"])
        np.subtract.at(rewards, second, 0.5 * found["rejected_reward"])
    return rewards


def learn(reward_of):
    """Natural policy gradient: the gap of the last iterate and of the average one, step by step."""
    reinforce = objectives.reinforce(baseline="none")
    logps, total, last, average = log_softmax(START), np.zeros(3), [], []
    for count in range(1, STEPS + 1):
        policy = np.exp(logps)
        total += policy
        last.append(game_gap(WINS, policy))
        average.append(game_gap(WINS, total / count))
        found = reinforce.value_and_grad(logps=logps, reward=reward_of(policy), reduction="sum")
        logps = log_softmax(logps - RATE * found.gradients["logps"])
    return last, average, total / STEPS


def main():
    rewards = fitted_rewards()
    last, average, mean = learn(lambda policy: WINS @ policy)
    committed, _, _ = learn(lambda policy: rewards)
    assert abs(average[-1] - 0.00463) < 2e-4
    np.testing.assert_allclose(mean, WINNER, atol=0.01)
    assert min(last[-500:]) > 0.1  # it cycles
    assert rewards.argmax() == 0
    assert abs(committed[-1] - 0.6) < 1e-6  # arm 0 alone loses to arm 2
    return {"SPO, average": average, "SPO, last": last, "reward model": committed}


def draw(axes, data):
    for name, gaps in data.items():
        axes.semilogy(*thinned(gaps, 300), label=name)
    axes.set(xlabel="step", ylabel="duality gap")
    axes.legend()


if __name__ == "__main__":
    main()
