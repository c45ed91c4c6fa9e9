"""Statistical rejection sampling: what the sampler draws (Liu et al. 2023, RSO, arXiv:2309.06657, section 3.3)."""

import numpy as np

from prefuse import curate

TITLE = "RSO: samples of the optimal policy, by rejection"
CLAIM = (
    "Accepting candidates of the SFT model with probability exp((r - max r)/β) draws from the optimal policy "
    "π_SFT exp(r/β)/Z; β = 0 is top-k, a large β is the SFT model."
)

SFT = np.array([0.5, 0.3, 0.15, 0.05])
REWARDS = np.array([0.0, 0.5, 1.0, 1.2])
PROMPTS, CANDIDATES, KEEP = 4000, 64, 8
BETAS = (0.0, 0.5, 5.0)


def optimal(beta):
    weights = SFT * np.exp(REWARDS / beta)
    return weights / weights.sum()


def drawn(beta):
    responses = np.random.default_rng(0).choice(4, (PROMPTS, CANDIDATES), p=SFT).ravel()
    groups = np.repeat(np.arange(PROMPTS), CANDIDATES)
    kept = curate.rejection_sampling_indices(REWARDS[responses], groups, keep=KEEP, beta=beta, seed=1)
    assert len(kept) == PROMPTS * KEEP
    return np.bincount(responses[kept], minlength=4) / len(kept)


def main():
    laws = {beta: drawn(beta) for beta in BETAS}
    np.testing.assert_allclose(optimal(0.5), [0.16807, 0.27411, 0.37256, 0.18526], atol=1e-5)
    np.testing.assert_allclose(laws[0.5], optimal(0.5), atol=0.015)
    np.testing.assert_allclose(laws[5.0], optimal(5.0), atol=0.015)
    assert laws[0.0][:2].sum() < 0.01  # top-k: the best eight of sixty-four
    return {"laws": laws}


def draw(axes, data):
    bars = {"SFT": SFT} | {f"RSO, β = {beta:g}": law for beta, law in data["laws"].items()}
    for number, (name, law) in enumerate(bars.items()):
        axes.bar(np.arange(4) + (number - 1.5) * 0.2, law, 0.18, label=name)
        if number >= 2:
            axes.plot(np.arange(4) + (number - 1.5) * 0.2, optimal(BETAS[number - 1]), "k_", markersize=12)
    axes.set(
        xticks=range(4),
        xticklabels=[f"reward {r:g}" for r in REWARDS],
        ylabel="drawn (bar), optimal (line)",
        ylim=(0, 0.8),
    )
    axes.legend(ncols=2)


if __name__ == "__main__":
    main()
