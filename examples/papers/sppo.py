"""Self-play preference optimization on a cyclic game (Wu et al. 2024, arXiv:2405.00675, theorem 3.1)."""

import numpy as np
from lab import game_gap, log_softmax, thinned

from prefuse import objectives

TITLE = "SPPO: the average iterate reaches the equilibrium"
CLAIM = (
    "Under preferences that no reward explains, the average of SPPO's iterates converges to the equilibrium policy; "
    "the last iterate need not."
)

WINS = np.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]])
EQUILIBRIUM = np.array([0.3, 0.3, 0.4])
ETA, ROUNDS = 0.1, 2000


def main():
    sppo = objectives.sppo_point(beta=1 / ETA)
    logps, total = np.log([0.6, 0.3, 0.1]), np.zeros(3)
    last, average = [], []
    for count in range(1, ROUNDS + 1):
        policy = np.exp(logps)
        total += policy
        last.append(game_gap(WINS, policy) / 2)
        average.append(game_gap(WINS, total / count) / 2)
        # The loss is ½(h - target)²: one step of rate 1 from h = 0 is its minimiser, but for the normalisation.
        columns = {"logps": logps, "ref_logps": logps, "win_prob": WINS @ policy}
        gradient = sppo.value_and_grad(**columns, reduction="sum").gradients["logps"]
        logps = log_softmax(logps - gradient)

    np.testing.assert_allclose([average[99], average[499], average[1999]], [0.1560, 0.0263, 0.0088], atol=2e-4)
    assert min(last[-500:]) > 5 * average[-1]
    assert np.abs(total / ROUNDS - EQUILIBRIUM).max() < 0.03
    return {"last": last, "average": average}


def draw(axes, data):
    axes.semilogy(*thinned(data["last"], 300), label="last iterate")
    axes.semilogy(*thinned(data["average"], 300), label="average iterate")
    axes.set(xlabel="round", ylabel="exploitability")
    axes.legend()


if __name__ == "__main__":
    main()
