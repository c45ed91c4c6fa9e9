"""Statistics and gradient in one visit on a device: the bits of the two calls, whichever way the row is held."""

import pytest
import torch

from prefuse._backends import backend
from prefuse._backends.rows import Rows, bits_of
from tests.gpu.making import DTYPES, batch

pytestmark = pytest.mark.needs_cuda

WIDTHS = [8, 1000, 4096, 8192, 32000, 50257, 128256, 151936]
"""Rows of a warp, of a block and of clusters; one that does not begin at 16-byte boundaries."""


def called(case, grads, both, in_place):
    """Statistics and gradient, by one call or by two, over a copy of the logits or into new memory."""
    logits = case.logits.clone()
    case, module = case._replace(logits=logits), backend(logits.device)
    out, gradient = torch.full_like(grads, 777.0), logits if in_place else torch.full_like(logits, 777.0)
    if both:
        module.rows_both(case, grads, out, gradient)
    else:
        module.rows_forward(case, out)
        module.rows_backward(case, grads, out, gradient)
    return out, gradient


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("stats", ["logp,lse", "logp,lse,entropy,mean_logit,top1,log_sum_sq"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_bits_of_the_two_calls(width, dtype, stats, in_place):
    rows = batch(97, vocabulary=width, dtype=dtype).to("cuda")
    for softcap in (0.0, 30.0):
        case = Rows(
            rows.logits, rows.labels, rows.mask, None, None, 0.9, 1.0, softcap, -100, bits_of(stats.split(",")), 10
        )
        table = torch.float64 if dtype == torch.float64 else torch.float32
        grads = torch.linspace(-1, 1, len(case.statistics) * 97, device="cuda", dtype=table).view(-1, 97)
        expected = called(case, grads, both=False, in_place=in_place)
        for got in (called(case, grads, both=True, in_place=in_place) for _ in range(3)):
            for mine, theirs in zip(got, expected, strict=True):
                assert torch.equal(mine, theirs)
