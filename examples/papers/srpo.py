"""Self-improving robust preference optimization, whoever sampled the data (Choi et al. 2024, arXiv:2406.01660)."""

import numpy as np
import torch
from lab import minimise

from prefuse import objectives

TITLE = "SRPO: does not depend on who sampled the data"
CLAIM = (
    "SRPO's optimum is the same whatever policy the pairs were sampled from; those of DPO and IPO move with it when "
    "preferences are no Bradley-Terry model."
)

WINS = np.array([[0.5, 0.99, 0.3], [0.01, 0.5, 0.25], [0.7, 0.75, 0.5]])
REFERENCE = np.array([0.5, 0.3, 0.2])
BEHAVIOURS = np.array([0.58, 0.37, 0.05]), np.array([0.05, 0.37, 0.58])
BETA = 1.0


def optimum():
    """π*(y) ∝ π_ref(y) / Z(y), Z(y) the normaliser of the improver π†(y'|y) ∝ π_ref(y') exp(P(y' ≻ y)/β)."""
    normaliser = (REFERENCE[:, None] * np.exp(WINS / BETA)).sum(0)
    policy = REFERENCE / normaliser
    return policy / policy.sum()


def trained(method, behaviour):
    """The minimiser in expectation: every ordered pair, weighted by how often it is sampled and labelled so."""
    chosen, rejected = (index.ravel() for index in np.indices((3, 3)))
    weight = torch.tensor(behaviour[chosen] * behaviour[rejected] * WINS[chosen, rejected])
    reference = torch.tensor(np.log(REFERENCE))
    objective = {
        "SRPO": objectives.srpo(beta=BETA),
        "IPO": objectives.ipo(beta=BETA, average=False),
        "DPO": objectives.dpo(beta=BETA),
    }[method].weighted_by("weight")

    def loss(logits):
        rows = logits.log_softmax(-1)  # the generator, then the improver shown each answer
        columns = {
            "chosen_logps": rows[0, chosen],
            "rejected_logps": rows[0, rejected],
            "ref_chosen_logps": reference[chosen],
            "ref_rejected_logps": reference[rejected],
        }
        if method == "SRPO":
            for role, shown, given in (
                ("improved", rejected, chosen),
                ("worsened", chosen, rejected),
                ("kept_chosen", chosen, chosen),
                ("kept_rejected", rejected, rejected),
            ):
                columns[f"{role}_logps"] = rows[1 + shown, given]
                columns[f"ref_{role}_logps"] = reference[given]
        return objective(**columns, weight=weight, reduction="sum").loss

    logits = minimise(loss, np.zeros((4, 3)), steps=400)
    return np.exp(logits[0]) / np.exp(logits[0]).sum()


def main():
    policies = {method: [trained(method, mu) for mu in BEHAVIOURS] for method in ("SRPO", "IPO", "DPO")}
    np.testing.assert_allclose(optimum(), [0.541730, 0.219713, 0.238557], atol=1e-6)
    for policy in policies["SRPO"]:
        np.testing.assert_allclose(policy, optimum(), atol=1e-4)
    moved = {method: float(np.abs(one - other).sum()) for method, (one, other) in policies.items()}
    assert moved["IPO"] > 0.05
    assert moved["DPO"] > 0.05
    return {"policies": policies, "moved": moved, "optimum": optimum()}


def draw(axes, data):
    places = np.arange(3)
    for number, (method, policies) in enumerate(data["policies"].items()):
        for side, policy in enumerate(policies):
            left = places + (2 * number + side - 2.5) * 0.13
            axes.bar(
                left, policy, 0.12, color=f"C{number}", alpha=1.0 if side == 0 else 0.5, label=None if side else method
            )
    axes.plot(places, data["optimum"], "k_", markersize=40, label="optimum")
    axes.set(xticks=places, xticklabels=["arm 1", "arm 2", "arm 3"], ylabel="trained policy, under two samplers")
    axes.legend()


if __name__ == "__main__":
    main()
