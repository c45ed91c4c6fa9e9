"""The objectives of `prefuse.objectives.anchored` once more, as plain float64 PyTorch."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid as log_sigmoid

from tests.objectives.references.shared import PAIR, pair_rewards, reads, rewards


def nca(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1):
    r = pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    w, l = r["chosen"], r["rejected"]  # noqa: E741
    return -log_sigmoid(w) - 0.5 * log_sigmoid(-w) - 0.5 * log_sigmoid(-l), r


def sppo_hard(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=1e-3):
    chosen = chosen_logps - ref_chosen_logps - 1 / (2 * beta)
    rejected = rejected_logps - ref_rejected_logps + 1 / (2 * beta)
    r = pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return chosen**2 + rejected**2, r


def apo_zero(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1):
    r = pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return 1 - torch.sigmoid(r["chosen"]) + torch.sigmoid(r["rejected"]), r


def apo_down(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1):
    r = pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return torch.sigmoid(r["chosen"]) + 1 - torch.sigmoid(r["chosen"] - r["rejected"]), r


@reads(PAIR)
def bco_pair(c, *, beta=0.1, delta=None):
    chosen, rejected = rewards(c, beta).values()
    shift = torch.cat([chosen, rejected]).detach().mean() if delta is None else delta
    return -log_sigmoid(chosen - shift) - log_sigmoid(-(rejected - shift)), rewards(c, beta)


@reads(
    lambda labels="soft", **_: (
        f"{PAIR} " + {"soft": "chosen_win_prob rejected_win_prob", "single": "win_prob", "hard": ""}[labels]
    )
)
def sppo(c, *, beta=1e-3, labels="soft", scale=0.5):
    wins = {
        "soft": lambda: (c.chosen_win_prob, c.rejected_win_prob),
        "single": lambda: (c.win_prob, 1 - c.win_prob),
        "hard": lambda: (1.0, 0.0),
    }[labels]()
    halves = [(h - (win - 0.5) / beta) ** 2 for h, win in zip(rewards(c, 1.0).values(), wins, strict=True)]
    return (halves[0] + halves[1]) * scale, rewards(c, beta)


@reads(PAIR)
def kto_pair(c, *, beta=0.1):
    chosen, rejected = rewards(c, 1.0).values()
    anchors = [max(0.0, float(h.detach().mean())) for h in (chosen, rejected)]
    up, down = 1 - torch.sigmoid(beta * (chosen - anchors[1])), 1 - torch.sigmoid(beta * (anchors[0] - rejected))
    return (up + down) / 2, rewards(c, beta)
