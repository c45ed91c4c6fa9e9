"""Liger's chunked preference losses (`liger_kernel.chunked_loss` of liger-kernel 0.8.5) over prefuse's head.

The modules, the autograd functions' ``apply`` and the functional forms take what Liger's take and return what they
return: ``(loss, auxiliary)``, gradients of the loss to input, weight and bias as far as they require any, none through
what is auxiliary. Results are float32 (float64 for float64 input, where Liger rounds to float32).

Two arguments change no result here. ``chunk_size``, how many pairs or responses Liger puts into a block of logits: what
a block holds is chosen by `prefuse.linear.plans`. ``compiled``: nothing is compiled by ``torch.compile``.
"""

from prefuse.compat.liger.grpo import LigerFusedLinearGRPOFunction, LigerFusedLinearGRPOLoss
from prefuse.compat.liger.kto import LigerFusedLinearKTOFunction, LigerFusedLinearKTOLoss
from prefuse.compat.liger.preference import (
    LigerFusedLinearCPOFunction,
    LigerFusedLinearCPOLoss,
    LigerFusedLinearDPOFunction,
    LigerFusedLinearDPOLoss,
    LigerFusedLinearORPOFunction,
    LigerFusedLinearORPOLoss,
    LigerFusedLinearSimPOFunction,
    LigerFusedLinearSimPOLoss,
)

liger_fused_linear_cpo = LigerFusedLinearCPOFunction.apply
"""`LigerFusedLinearCPOFunction.apply`, under the name that Liger gives it."""
liger_fused_linear_dpo = LigerFusedLinearDPOFunction.apply
"""`LigerFusedLinearDPOFunction.apply`, under the name that Liger gives it."""
liger_fused_linear_grpo = LigerFusedLinearGRPOFunction.apply
"""`LigerFusedLinearGRPOFunction.apply`, under the name that Liger gives it."""
liger_fused_linear_kto = LigerFusedLinearKTOFunction.apply
"""`LigerFusedLinearKTOFunction.apply`, under the name that Liger gives it."""
liger_fused_linear_orpo = LigerFusedLinearORPOFunction.apply
"""`LigerFusedLinearORPOFunction.apply`, under the name that Liger gives it."""
liger_fused_linear_simpo = LigerFusedLinearSimPOFunction.apply
"""`LigerFusedLinearSimPOFunction.apply`, under the name that Liger gives it."""

__all__ = [
    "LigerFusedLinearCPOFunction",
    "LigerFusedLinearCPOLoss",
    "LigerFusedLinearDPOFunction",
    "LigerFusedLinearDPOLoss",
    "LigerFusedLinearGRPOFunction",
    "LigerFusedLinearGRPOLoss",
    "LigerFusedLinearKTOFunction",
    "LigerFusedLinearKTOLoss",
    "LigerFusedLinearORPOFunction",
    "LigerFusedLinearORPOLoss",
    "LigerFusedLinearSimPOFunction",
    "LigerFusedLinearSimPOLoss",
    "liger_fused_linear_cpo",
    "liger_fused_linear_dpo",
    "liger_fused_linear_grpo",
    "liger_fused_linear_kto",
    "liger_fused_linear_orpo",
    "liger_fused_linear_simpo",
]
