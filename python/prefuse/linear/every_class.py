"""The gradient of the mean logit: the same number for every class of a row, so a matrix of rank one.

Without a soft cap d(mean_logit_r)/d(logit_rj) is slope_r/V. With f_r the upstream gradient times that,

    d(hidden_r) = f_r · Σ_j W_j,    d(W_j) = Σ_r f_r · hidden_r,    d(bias_j) = Σ_r f_r

which takes no product of the logits' size, whatever carries the gradients of the probabilities beside it. Every row of
the weight has a gradient then.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from prefuse.linear.call import Call
from prefuse.linear.gemm import scale_rows, sum_dtype, sum_rows
from prefuse.linear.passes import product_or_zero


class EveryClass(NamedTuple):
    """d(loss)/d(logits) of M rows, `factors` [M] in the columns of all classes."""

    factors: Tensor

    def add_to_input(self, found: Tensor, weight: Tensor) -> None:
        """Adds the product with `weight` [V, H] to `found` [M, H], which is of the dtype of sums."""
        found.addcmul_(self.factors[:, None], sum_rows(weight))

    def of_weight(self, inputs: Tensor) -> Tensor:
        """What each row of a weight's gradient has of `inputs` [M, H]: [H], of the dtype of sums."""
        scaled = scale_rows(inputs, self.factors, sum_dtype(inputs.dtype))
        return scaled.masked_fill_((self.factors == 0)[:, None], 0).sum(0)  # a row of NaN without a gradient is none

    def of_bias(self) -> Tensor:
        """What each number of the bias's gradient has."""
        return self.factors.sum()


def every_class(call: Call, table: Tensor, part: Tensor | slice, upstream: dict[str, Tensor]) -> EveryClass | None:
    """That of the scored rows `part`, by upstream gradients of kernel statistics; None where the mean logit has none.

    `table` has the kernel statistics of all tokens.
    """
    if "mean_logit" not in upstream:
        return None
    lse = table[call.kernel_names.index("lse")][part]
    share = call.slope(part) / (call.shard.classes or call.head.classes)
    # As the dense gradient: 0 in a row of nothing but -inf, NaN in one that has NaN.
    share = torch.where(lse == -torch.inf, 0, torch.where(lse.isnan(), lse, share))
    return EveryClass(product_or_zero(upstream["mean_logit"][part].to(lse.dtype), share))
