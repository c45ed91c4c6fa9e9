"""The variance of BRAIn's gradient (Pandey et al. 2024, arXiv:2402.02479, section 4 and the authors' experiment)."""

import numpy as np

from prefuse import objectives

TITLE = "BRAIn: a gradient of little variance off-policy"
CLAIM = (
    "With both normalisers and the self-normalised baseline the variance of BRAIn's gradient stays low wherever the "
    "samples come from; away from the posterior that of distributional policy gradient (DPG) and GDC++ is a multiple."
)

POLICY_MEAN, SAMPLES, REPEATS = 1.0, 8, 20_000  # policy N(1, 1), posterior N(0, 1), proposal N(m, 1)
PROPOSALS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])


def log_normal(x, mean):
    return -0.5 * (x - mean) ** 2 - 0.5 * np.log(2 * np.pi)


def gradients(mean):
    """The three estimates of the gradient by the policy's mean, one per repeat."""
    x = mean + np.random.default_rng(0).standard_normal((REPEATS, SAMPLES))
    posterior, policy, proposal = log_normal(x, 0.0), log_normal(x, POLICY_MEAN), log_normal(x, mean)
    score = x - POLICY_MEAN
    found = objectives.brain(gamma=1.0).value_and_grad(
        logps=policy.ravel(),
        ref_logps=posterior.ravel(),
        proposal_logps=proposal.ravel(),
        score=np.zeros(x.size),
        groups=np.repeat(np.arange(REPEATS), SAMPLES),
        reduction="sum",
    )
    wanted, own = np.exp(posterior - proposal), np.exp(policy - proposal)
    return {
        "DPG": -(wanted * score).mean(1),
        "GDC++": ((own - wanted) * score).mean(1),
        "BRAIn": (found.gradients["logps"].reshape(x.shape) * score).sum(1),
    }


def main():
    table = {name: [] for name in ("DPG", "GDC++", "BRAIn")}
    for mean in PROPOSALS:
        for name, estimates in gradients(mean).items():
            table[name].append(float(estimates.var()))
    brain, dpg, gdc = (np.array(table[name]) for name in ("BRAIn", "DPG", "GDC++"))
    assert (brain < 0.25).all()
    assert (brain[2:] < 0.6 * np.minimum(dpg, gdc)[2:]).all()
    assert dpg[-1] > 8 * brain[-1]
    assert gdc[-1] > 5 * brain[-1]
    return {"proposals": PROPOSALS, "variance": table}


def draw(axes, data):
    for name, variance in data["variance"].items():
        axes.semilogy(data["proposals"], variance, "o-", label=name)
    axes.set(xlabel="mean of the proposal (posterior 0, policy 1)", ylabel="variance of the gradient")
    axes.legend()


if __name__ == "__main__":
    main()
