"""16-bit gradients are rounded no more often than those of a head written in PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import prefuse
from prefuse.linear.gemm import add_product, add_rows
from tests.devices import integers, normal

TOKENS, FEATURES, CLASSES = 256, 64, 1000


def plain(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Logits in the head's dtype, log-probabilities in float32 or wider."""
    logits = hidden @ weight.T
    wide = logits if logits.dtype == torch.float64 else logits.float()
    logp = wide.log_softmax(-1).gather(-1, labels.clamp(min=0)[:, None])[:, 0]
    return torch.where(labels == -100, 0.0, logp)


@pytest.mark.parametrize("spread", [0.05, 0.4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("plan", ["keep", "recompute"])
def test_no_less_exact_than_plain(dtype: torch.dtype, spread: float, plan: str) -> None:
    given = [normal(TOKENS, FEATURES, seed=0).to(dtype), (spread * normal(CLASSES, FEATURES, seed=1)).to(dtype)]
    labels, up = integers(CLASSES, TOKENS, seed=2), normal(TOKENS, seed=3)
    labels[::7] = -100

    def gradients(function: object, tensors: list[Tensor]) -> list[Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        found = function(*leaves, labels)  # type: ignore[operator]
        return list(torch.autograd.grad((found * up).sum(), leaves))

    right = gradients(plain, [tensor.double() for tensor in given])
    theirs = gradients(plain, given)
    ours = gradients(lambda *tensors: prefuse.linear_token_logps(*tensors, plan=plan), given)
    for our, their, exact in zip(ours, theirs, right, strict=True):
        assert (our.double() - exact).norm() <= 1.001 * (their.double() - exact).norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rows_added_at_equal_indices(dtype: torch.dtype) -> None:
    total, rows = normal(5, 8, seed=0).to(dtype), normal(40, 8, seed=1).to(dtype)
    index, factors = integers(4, 40, seed=2), normal(40, seed=3).to(torch.promote_types(dtype, torch.float32))
    right = total.double().index_add(0, index, rows.double() * factors.double()[:, None])
    add_rows(total, index, rows, factors)
    assert (total.double() - right).abs().max() <= 10 * torch.finfo(dtype).eps
    untouched = total.clone()
    add_rows(total, index[:0], rows[:0], factors[:0])
    assert torch.equal(total, untouched)


def test_products_are_added_without_rounding() -> None:
    a, b = normal(30, 50, seed=0).bfloat16(), normal(50, 20, seed=1).bfloat16()
    total = torch.zeros(30, 20)
    add_product(total, a, b, exact=True)
    torch.testing.assert_close(total, a.float() @ b.float(), rtol=1e-6, atol=1e-5)
