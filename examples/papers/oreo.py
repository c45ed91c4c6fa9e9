"""OREO on a tree: the soft Bellman optimum from offline trajectories (Wang et al. 2024, arXiv:2412.16145)."""

import numpy as np
from lab import log_softmax, thinned, to_logits

from prefuse import objectives

TITLE = "OREO: the optimal policy and values, from any data"
CLAIM = (
    "From trajectories of a uniform policy with one reward at their end, OREO's value and policy losses together "
    "converge to the optimal soft values and the optimal policy: credit reaches the step that earned it."
)

BETA, STEPS, RATE = 0.5, 3000, 0.5
# Two binary tokens; three states: the beginning, after token 0, after token 1.
REFERENCE = np.log([[0.6, 0.4], [0.5, 0.5], [0.7, 0.3]])
TRAJECTORIES = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
REWARDS = np.array([0.0, 1.0, 1.0, 0.0])
STATES = np.stack([np.zeros(4, int), 1 + TRAJECTORIES[:, 0]], axis=1)
POLICY = np.array([[0.534828, 0.465172], [0.119203, 0.880797], [0.945179, 0.054821]])
VALUES = np.array([0.774382, 0.716890, 0.849853])


def main():
    policy_loss, value_loss = objectives.oreo(beta=BETA, divergence="none"), objectives.oreo_value(beta=BETA)
    logits, values, history = np.zeros((3, 2)), np.zeros(3), []
    everywhere = np.ones((4, 2), bool)
    for _ in range(STEPS):
        logps = log_softmax(logits)
        history.append(np.concatenate([values, np.exp(logps[:, 0])]))
        columns = {
            "logps": logps[STATES, TRAJECTORIES],
            "ref_logps": REFERENCE[STATES, TRAJECTORIES],
            "value": values[STATES],
            "reward": REWARDS,
            "mask": everywhere,
        }
        by_token = policy_loss.value_and_grad(**columns).gradients["logps"]
        by_value = value_loss.value_and_grad(**columns).gradients["value"]
        gradient = np.zeros((3, 2))
        np.add.at(gradient, (STATES, TRAJECTORIES), by_token)
        logits = logits - RATE * to_logits(logps, gradient) / BETA**2
        np.subtract.at(values, STATES, RATE * by_value)

    np.testing.assert_allclose(values, VALUES, atol=1e-4)
    np.testing.assert_allclose(np.exp(log_softmax(logits)), POLICY, atol=1e-4)
    # VALUES are the soft values: V(s) = β log E_ref exp(V(s')/β), worked out from the leaves.
    leaves = BETA * np.log((np.exp(REFERENCE[1:]) * np.exp(REWARDS.reshape(2, 2) / BETA)).sum(1))
    root = BETA * np.log((np.exp(REFERENCE[0]) * np.exp(leaves / BETA)).sum())
    np.testing.assert_allclose(values, [root, *leaves], atol=1e-4)
    return {"history": np.array(history)}


def draw(axes, data):
    names = ["V, begin", "V, after 0", "V, after 1", "π(0), begin", "π(0), after 0", "π(0), after 1"]
    for number, (name, target) in enumerate(zip(names, [*VALUES, *POLICY[:, 0]], strict=True)):
        axes.plot(*thinned(data["history"][:300, number]), f"C{number}", label=name)
        axes.axhline(target, color=f"C{number}", linestyle=":", linewidth=1)
    axes.set(xlabel="step (dotted: the optimum)", ylabel="value, probability")
    axes.legend(ncols=2, fontsize="small")


if __name__ == "__main__":
    main()
