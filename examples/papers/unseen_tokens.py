"""Direct alignment losses cannot see what no pair has (Rafailov et al. 2024, arXiv:2406.02900, section 5)."""

import numpy as np
from lab import pair_gradient

from prefuse import objectives

TITLE = "DAAs: the loss is blind to unseen responses"
CLAIM = (
    "With two equally preferred responses, DPO, IPO and SLiC are at their minimum for every policy that gives the two "
    "the same probability, though all but none of it may be theirs: the rest is on a response no pair has."
)

LINKS, BETA = ("dpo", "ipo", "slic"), 0.1
UNSEEN = np.concatenate([np.linspace(0.0, 0.99, 100), 1 - np.geomspace(1e-2, 1e-6, 20)])
REFERENCE = np.log(np.full(3, 1 / 3))
FIRST, SECOND = np.array([0, 1]), np.array([1, 0])  # each of the two was preferred once


def losses(link):
    """The loss of policies that share what the unseen response leaves between the two seen."""
    seen = np.log((1 - UNSEEN) / 2)
    score = objectives.daa(beta=BETA, link=link).value_and_grad(
        chosen_logps=seen,
        rejected_logps=seen,
        ref_chosen_logps=np.full_like(seen, REFERENCE[0]),
        ref_rejected_logps=np.full_like(seen, REFERENCE[1]),
        chosen_lengths=np.ones_like(seen),
        rejected_lengths=np.ones_like(seen),
        reduction="sum",
    )
    return score.losses


def main():
    curves = {link: losses(link) for link in LINKS}
    lengths = {"chosen_lengths": np.ones(2), "rejected_lengths": np.ones(2)}
    for link, at_minimum in zip(LINKS, (np.log(2), 1.0, 1.0), strict=True):
        np.testing.assert_allclose(curves[link], at_minimum, atol=1e-12)
        objective = objectives.daa(beta=BETA, link=link)

        def steepness(policy, objective=objective):
            return np.abs(pair_gradient(objective, np.log(policy), REFERENCE, FIRST, SECOND, **lengths)).max()

        assert max(steepness([(1 - unseen) / 2, (1 - unseen) / 2, unseen]) for unseen in (0.01, 0.5, 0.999)) < 1e-12
        if link != "slic":  # whose two hinges cancel until the margin is 1/β
            assert steepness([0.5, 0.3, 0.2]) > 1e-4  # what it does see: the two seen ones apart
    return {"unseen": UNSEEN, "losses": curves, "reward": 1 - UNSEEN}


def draw(axes, data):
    for link, curve in data["losses"].items():
        axes.plot(data["unseen"], curve, "--" if link == "slic" else "-", label=f"loss, {link.upper()}")
    axes.plot(data["unseen"], data["reward"], "k:", label="expected reward, if unseen is worth 0")
    axes.set(xlabel="probability of the unseen response", ylim=(0, 1.2))
    axes.legend(loc="lower left")


if __name__ == "__main__":
    main()
