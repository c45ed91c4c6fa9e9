"""Reinforced token optimization: a DPO model's token rewards (Zhong et al. 2024, arXiv:2404.18922, sections 3, 4)."""

import numpy as np
from lab import log_softmax, thinned, to_logits

from prefuse import objectives

TITLE = "RTO: dense token rewards against one at the end"
CLAIM = (
    "Policy gradient with the token rewards of a model trained by DPO needs far fewer samples than with the "
    "same sentence-level reward alone."
)

LENGTH, VOCABULARY, BATCH, RATE, PATIENCE = 6, 4, 64, 6.0, 1600
UNIFORM = np.full((LENGTH, VOCABULARY), -np.log(VOCABULARY))
TARGET = np.array([2, 0, 3, 1, 1, 2])
POSITIONS = np.arange(LENGTH)
SEEDS = 3


def dpo_model(rng):
    """DPO on random pairs, labelled by a Bradley-Terry rater who counts right tokens."""
    dpo, logits = objectives.dpo(beta=1.0), np.zeros((LENGTH, VOCABULARY))
    chosen, rejected = rng.integers(VOCABULARY, size=(2, 1024, LENGTH))
    gap = (rejected == TARGET).sum(1) - (chosen == TARGET).sum(1)
    swap = (rng.random(1024) >= 1 / (1 + np.exp(gap)))[:, None]
    chosen, rejected = np.where(swap, rejected, chosen), np.where(swap, chosen, rejected)
    reference = np.full(1024, LENGTH * -np.log(VOCABULARY))
    for _ in range(60):
        logps = log_softmax(logits)
        columns = {"chosen_logps": logps[POSITIONS, chosen].sum(1), "rejected_logps": logps[POSITIONS, rejected].sum(1)}
        found = dpo.value_and_grad(**columns, ref_chosen_logps=reference, ref_rejected_logps=reference).gradients
        gradient = np.zeros_like(logits)
        np.add.at(gradient, (POSITIONS, chosen), found["chosen_logps"][:, None])
        np.add.at(gradient, (POSITIONS, rejected), found["rejected_logps"][:, None])
        logits -= 4.0 * to_logits(logps, gradient)
    return log_softmax(logits)


def updates_until_success(dpo_weight, seed):
    """Updates until the policy writes the target, the only rewarded response, nine times out of ten; and the curve."""
    rng = np.random.default_rng(seed)
    dpo_logps, logits, curve = dpo_model(rng), UNIFORM.copy(), []
    rto = objectives.rto(dpo_weight=dpo_weight, kl_weight=0.0, score_weight=1.0, smoothing=1.0)
    everywhere, values = np.ones((BATCH, LENGTH), bool), np.zeros((BATCH, LENGTH))
    while len(curve) < PATIENCE:
        logps = log_softmax(logits)
        curve.append(float(np.exp(logps[POSITIONS, TARGET].sum())))
        if curve[-1] > 0.9:
            break
        tokens = (np.exp(logps).cumsum(1) < rng.random((BATCH, LENGTH, 1))).sum(2).clip(max=VOCABULARY - 1)
        own = logps[POSITIONS, tokens]
        found = rto.value_and_grad(
            logps=own,
            old_logps=own,
            ref_logps=UNIFORM[POSITIONS, tokens],
            dpo_logps=dpo_logps[POSITIONS, tokens],
            value=values,
            score=(tokens == TARGET).all(1).astype(float),
            mask=everywhere,
        ).gradients["logps"]
        gradient = np.zeros_like(logits)
        np.add.at(gradient, (POSITIONS, tokens), found)
        logits = logits - RATE * to_logits(logps, gradient)
    return len(curve), curve


def main():
    runs = {
        "sparse: the reward alone": [updates_until_success(0.0, seed) for seed in range(SEEDS)],
        "dense: and DPO's token rewards": [updates_until_success(0.25, seed) for seed in range(SEEDS)],
    }
    sparse, dense = ([count for count, _ in found] for found in runs.values())
    assert max(dense) < PATIENCE / 8
    assert min(sparse) > 5 * max(dense)
    return {
        "updates": {"sparse": sparse, "dense": dense},
        "curves": {name: [c for _, c in f] for name, f in runs.items()},
    }


def draw(axes, data):
    for number, (name, curves) in enumerate(data["curves"].items()):
        for seed, curve in enumerate(curves):
            x, y = thinned(curve)
            axes.semilogx(x + 1, y, f"C{number}", label=None if seed else name)
    axes.set(xlabel="updates of 64 responses", ylabel="probability of the rewarded response")
    axes.legend()


if __name__ == "__main__":
    main()
