"""Extragradient preference optimization on rock-paper-scissors (Zhou et al. 2025, arXiv:2503.08942)."""

import numpy as np
import torch
from lab import thinned

from prefuse import objectives, outer

TITLE = "EGPO: converges where mirror descent cycles"
CLAIM = (
    "With a weak pull to the reference, the extra step brings the last iterate to the regularised equilibrium of "
    "rock-paper-scissors at a linear rate, while online mirror descent and online IPO keep cycling."
)

WINS = torch.tensor([[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]], dtype=torch.float64)
START = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
BETA, RATE = 0.02, 0.02
FIRST, SECOND = torch.cartesian_prod(torch.arange(3), torch.arange(3)).T


class Player(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = torch.nn.Parameter(START.clone())

    def policy(self):
        return self.logits.detach().softmax(0)

    def columns(self):
        logps, reference = self.logits.log_softmax(0), START.log_softmax(0)
        return {
            "chosen_logps": logps[FIRST],
            "rejected_logps": logps[SECOND],
            "ref_chosen_logps": reference[FIRST],
            "ref_rejected_logps": reference[SECOND],
        }


def gap(policy):
    """Duality gap of the game regularised towards the reference."""
    against = WINS @ policy
    best = BETA * torch.logsumexp(START.log_softmax(0) + against / BETA, 0)
    kl = policy @ (policy.log() - START.log_softmax(0))
    return float(2 * (best - (0.5 - BETA * kl)))


def play(method, steps):
    player = Player()
    optimizer = torch.optim.SGD(player.parameters(), lr=RATE)
    egpo, ipo = objectives.egpo(beta=BETA), objectives.online_ipo(beta=BETA).weighted_by("weight")

    def loss(rates):
        if method == "online IPO":
            pi = player.policy()
            weight = pi[FIRST] * pi[SECOND]
            return ipo(**player.columns(), win_prob=WINS[FIRST, SECOND], weight=weight, reduction="sum").loss
        return egpo(**player.columns(), chosen_win_prob=rates[FIRST], rejected_win_prob=rates[SECOND]).loss

    def targets():
        return WINS @ player.policy()

    gaps = []
    for _ in range(steps):
        gaps.append(gap(player.policy()))
        if method == "EGPO":
            outer.extragradient_step(player, optimizer, targets, loss)
        else:
            optimizer.zero_grad()
            loss(targets()).backward()
            optimizer.step()
    return np.array(gaps), player.policy().numpy()


def main():
    results = {"EGPO": play("EGPO", 300), "mirror descent": play("OMD", 1000), "online IPO": play("online IPO", 1000)}
    gaps = {name: gaps for name, (gaps, _) in results.items()}
    assert abs(gaps["EGPO"][0] - 0.3246) < 1e-4
    assert gaps["EGPO"][50] < 1e-3
    assert gaps["EGPO"][-1] < 1e-12
    np.testing.assert_allclose(results["EGPO"][1], [0.348231, 0.306792, 0.344977], atol=1e-6)
    assert gaps["mirror descent"][-300:].min() > 0.2
    assert gaps["online IPO"][-300:].min() > 0.2
    return {"gaps": gaps}


def draw(axes, data):
    for name, gaps in data["gaps"].items():
        axes.semilogy(*thinned(np.maximum(gaps[:300], 1e-15), 150), label=name)
    axes.set(xlabel="step", ylabel="duality gap")
    axes.legend()


if __name__ == "__main__":
    main()
