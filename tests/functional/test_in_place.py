"""Results may be changed in place before the backward pass, as those of log_softmax and gather may."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import prefuse
from prefuse.compat.trl import ChunkedLogProbFunction, selective_log_softmax

WEIGHT = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([[1, 6, 0], [3, 2, 5]])


def chunked(hidden: Tensor) -> Tensor:
    flat = ChunkedLogProbFunction.apply(hidden.reshape(-1, 4), WEIGHT, None, LABELS.reshape(-1), 1.0, 8)
    return flat[0].view(2, 3)


MADE: dict[str, Callable[[Tensor], Tensor]] = {
    "token_logps": lambda hidden: prefuse.token_logps(hidden @ WEIGHT.T, LABELS),
    "token_stats": lambda hidden: prefuse.token_stats(hidden @ WEIGHT.T, LABELS, ("logp", "entropy")).logp,
    "linear_token_logps": lambda hidden: prefuse.linear_token_logps(hidden, WEIGHT, LABELS),
    "linear_token_stats": lambda hidden: prefuse.linear_token_stats(hidden, WEIGHT, LABELS, ("logp", "entropy")).logp,
    "selective_log_softmax": lambda hidden: selective_log_softmax(hidden @ WEIGHT.T, LABELS),
    "ChunkedLogProbFunction": chunked,
}


def zeroed(logps: Tensor) -> None:
    logps[LABELS > 3] = 0


def doubled(logps: Tensor) -> None:
    logps *= 2


@pytest.mark.parametrize("change", [zeroed, doubled])
@pytest.mark.parametrize("name", MADE)
def test_the_gradient_is_that_of_what_was_changed(name: str, change: Callable[[Tensor], None]):
    gradients = []
    for make in (MADE[name], lambda h: (h @ WEIGHT.T).log_softmax(-1).gather(-1, LABELS[..., None])[..., 0]):
        hidden = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
        logps = make(hidden)
        change(logps)
        (logps * torch.arange(6.0).view(2, 3)).sum().backward()
        gradients.append(hidden.grad)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("statistic", ["entropy", "top1"])
def test_statistics_that_are_looked_at_may_be_changed_too(statistic: str):
    gradients = []
    for changed in (False, True):
        logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(1)).requires_grad_()
        made = prefuse.token_stats(logits, LABELS, ("logp", statistic))
        if changed:
            made[statistic].fill_(0)
        made.logp.sum().backward()
        gradients.append(logits.grad)
    assert torch.equal(*gradients)
