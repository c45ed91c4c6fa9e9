"""The objectives of `prefuse.objectives.visual` once more, as plain float64 PyTorch."""

from __future__ import annotations

from torch.nn.functional import logsigmoid as log_sigmoid

from tests.objectives.references.dpo_family import dpo
from tests.objectives.references.shared import PAIR, reads, rewards, smoothed, summed


def bpo(
    chosen_logps,
    rejected_logps,
    blind_logps,
    ref_chosen_logps,
    ref_rejected_logps,
    ref_blind_logps,
    *,
    beta=0.1,
    combine="sum",
):
    human, r = dpo(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta=beta)
    blind, s = dpo(chosen_logps, blind_logps, ref_chosen_logps, ref_blind_logps, beta=beta)
    return (human + blind) * (1 if combine == "sum" else 0.5), r | {"blind": s["rejected"]}


OPA_TOKENS = ("rejected", "revised", "revised_damaged")


@reads(
    "chosen_logps ref_chosen_logps chosen_damaged_logps ref_chosen_damaged_logps "
    + " ".join(f"{role}_mask {role}_token_logps ref_{role}_token_logps" for role in OPA_TOKENS)
    + " rejected_token_severity revised_token_severity revised_token_recognition revised_damaged_token_recognition"
)
def opa_dpo(c, *, beta=0.1, image_weight=0.2, anchor_weight=1.0):
    def weighted(role, name):
        weight = getattr(c, f"{role}_token_{name}")
        return summed(c, role, weight, weight)

    chosen, damaged = rewards(c, 1.0, "chosen", "chosen_damaged").values()
    rejected = summed(c, "rejected")
    losses = [
        -log_sigmoid(beta * (chosen - rejected)),
        -log_sigmoid(beta * (weighted("revised", "severity") - weighted("rejected", "severity"))),
        -log_sigmoid(beta * (chosen - damaged)) * image_weight,
        -log_sigmoid(beta * (weighted("revised", "recognition") - weighted("revised_damaged", "recognition")))
        * image_weight,
        -log_sigmoid(beta * chosen) * anchor_weight,
        -log_sigmoid(-beta * rejected) * anchor_weight,
    ]
    return sum(losses), rewards(c, beta, "chosen", "chosen_damaged") | {
        role: beta * summed(c, role) for role in OPA_TOKENS
    }


@reads(f"{PAIR} chosen_damaged_logps ref_chosen_damaged_logps")
def multimodal_dpo(c, *, beta=0.1, image_weight=1.0, anchor_weight=1.0, delta=0.0):
    r = rewards(c, beta, "chosen", "rejected", "chosen_damaged")
    loss = smoothed(r["chosen"] - r["rejected"], 0.0) + image_weight * smoothed(r["chosen"] - r["chosen_damaged"], 0.0)
    return loss + anchor_weight * smoothed(r["chosen"] - delta, 0.0), r
