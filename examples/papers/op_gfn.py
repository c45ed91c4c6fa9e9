"""Order-preserving GFlowNets on a bandit: sparsification (Chen and Mauch 2023, arXiv:2310.00386, section 3)."""

import numpy as np
from lab import log_softmax, to_logits

from prefuse import objectives

TITLE = "OP-GFN: learning an order sparsifies the reward"
CLAIM = (
    "Trained on nothing but the order of its own samples, the policy puts ever more of its mass on the best answer: "
    "the learned reward keeps the order and sharpens by itself."
)

ARMS, STEPS, RATE = 5, 4000, 0.5


def main():
    op_gfn = objectives.op_gfn.weighted_by("weight")
    first, second = np.divmod(np.arange(ARMS**2), ARMS)
    responses = np.stack([first, second], axis=1).ravel()
    groups, label = np.repeat(np.arange(ARMS**2), 2), (ARMS - responses).astype(float)
    logits, masses = np.zeros(ARMS), []
    for _ in range(STEPS):
        logps = log_softmax(logits)
        masses.append(np.exp(logps))
        weight = np.exp(logps[first] + logps[second])  # on-policy: as often as the policy draws the pair
        columns = {"logps": logps[responses], "label": label, "groups": groups, "weight": weight}
        found = op_gfn.value_and_grad(**columns, reduction="sum").gradients["logps"]
        logits = logits - RATE * to_logits(logps, np.bincount(responses, weights=found))
    masses = np.array(masses)
    np.testing.assert_allclose(masses[[1, 10, 100, 1000], 0], [0.2163, 0.3902, 0.8521, 0.9603], atol=2e-4)
    assert (np.diff(masses[:, 0]) > 0).all()
    assert (np.diff(masses[1:], axis=1) < 0).all()  # the order is there from the first step and stays
    return {"masses": masses}


def draw(axes, data):
    steps = np.unique(np.geomspace(1, STEPS - 1, 80).astype(int))
    for arm in range(ARMS):
        axes.semilogx(steps, data["masses"][steps, arm], label=f"rank {arm + 1}")
    axes.set(xlabel="step", ylabel="probability")
    axes.legend()


if __name__ == "__main__":
    main()
