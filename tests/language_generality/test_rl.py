"""Pieces of policy gradients: advantages whitened over a batch, a leave-one-out baseline inside the group."""

from __future__ import annotations

import numpy as np
import torch

from prefuse.language import (
    group_objective,
    sqrt,
    square,
    stop_gradient,
    token_objective,
)

from .checking import check_against, check_numbers, ragged_mask

# --- advantages whitened over all tokens of the batch --------------------------------------------------------------


@token_objective
def whitened_reinforce(token):
    centred = token["advantage"] - token["advantage"].mean("batch")
    whitened = stop_gradient(centred / sqrt(square(centred).mean("batch") + 1e-6))
    return -(whitened * token.logp).mean("batch")


def test_whitened_advantages():
    def reference(*, logps, advantage, mask):
        kept = advantage[mask]
        whitened = (kept - kept.mean()) / torch.sqrt(kept.var(unbiased=False) + 1e-6)
        return -(whitened.detach() * logps[mask]).mean()

    rng = np.random.default_rng(15)
    mask = ragged_mask([3, 2, 5, 1], 5)
    columns = {name: rng.normal(-1, 2, mask.shape) for name in ("logps", "advantage")}
    check_against(whitened_reinforce, columns | {"mask": mask}, reference)


# --- RLOO / HyPO's KL term (arXiv:2406.01462): leave-one-out baseline inside the group ------------------------------


@group_objective
def leave_one_out_kl(group, *, weight=0.1):
    h = group.response.logratio
    baseline = (h.sum() - h) / (group.size - 1.0)
    return weight * (stop_gradient(h - baseline) * group.response.logp).mean()


def test_leave_one_out_kl():
    # pairwise.md, HyPO: coefficients ±0.03
    columns = {"logps": [0.5, -0.1], "ref_logps": [0.0, 0.0], "groups": [0, 0]}
    check_numbers(leave_one_out_kl, columns, 0.03 * 0.6, {"logps": [0.03, -0.03]})
