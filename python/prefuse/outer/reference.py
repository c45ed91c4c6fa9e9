"""References that follow the policy: refreshed, averaged (TR-DPO, arXiv:2404.09656), frozen."""

from __future__ import annotations

import copy
import warnings
from typing import TypeVar

import torch
from torch import nn

from ._weights import check_share, matched

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_SIXTEEN_BITS = (torch.float16, torch.bfloat16)
_SMALLEST_IN_16_BITS = 2.0**-8
"""α below which a step from a bfloat16 weight to another of its size is less than half its last place."""


def frozen_copy(policy: ModuleT) -> ModuleT:
    """Return a copy of a policy that takes no gradient and is in evaluation mode: a reference as of now."""
    return copy.deepcopy(policy).requires_grad_(False).eval()


@torch.no_grad()
def refresh_reference(reference: nn.Module, policy: nn.Module, *, alpha: float = 1.0) -> None:
    """Move a reference towards the policy, in place (Gorbatovski et al. 2024, TR-DPO, arXiv:2404.09656, eq. 8, 9).

    ``θ_ref ← α θ + (1 - α) θ_ref``. With α = 1, the hard update, the copy is exact. The paper makes a soft update with
    α of 0.5-0.6 at every step or so, or a hard one every 256 or 512 steps.

    The same step keeps averages of a policy: α = 1 - decay for an exponential one, α = 1/(t + 1) after iterate t for
    the plain mean of all iterates, which is what SPPO's and SPO's theorems are about.

    Args:
        reference: of the policy's architecture; its dtype and device may differ. Small α want float32: in bfloat16
            a step below 1/256 of a weight is rounded away. A 16-bit reference and an α in (0, 2^-8) give a warning.
        policy: left alone.
        alpha: α in [0, 1]. Buffers are copied unless it is 0.

    Raises:
        ValueError: α outside [0, 1], or weights whose names or shapes differ.
    """
    check_share("alpha", alpha)
    if reference is policy:
        raise ValueError("reference: is the policy itself; expected a copy, such as frozen_copy(policy)")
    if 0.0 < alpha < _SMALLEST_IN_16_BITS and any(weight.dtype in _SIXTEEN_BITS for weight in reference.parameters()):
        warnings.warn(
            f"alpha: {alpha} is below 2^-8 and the reference has 16-bit weights, which round such steps away; "
            "keep it in float32, as with frozen_copy(policy).float()",
            stacklevel=3,
        )
    for target, source, is_weight in matched(reference, policy, ("reference", "policy")):
        if is_weight and alpha < 1.0:
            target.lerp_(source.to(target), alpha)
        elif alpha > 0.0:
            target.copy_(source)
