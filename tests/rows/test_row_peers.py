"""The same numbers as TRL's own functions, which preference trainers run today."""

import pytest
import torch
from row_oracle import EPS, peaked, some_labels

from prefuse.functional import token_logps, token_stats

utils = pytest.importorskip("trl.trainer.utils")
chunked = pytest.importorskip("trl.kernels.chunked_logprob")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_selective_log_softmax(dtype, temperature):
    x, labels = peaked((2, 5, 301), 1, dtype), some_labels((2, 5), 301, 1)
    expected = utils.selective_log_softmax(x, labels, temperature=temperature)
    # TRL returns bfloat16 for bfloat16 logits, and divides them by the temperature before anything else.
    rounding = torch.finfo(dtype).eps if dtype == torch.bfloat16 else 8 * EPS
    got = token_logps(x, labels, temperature=temperature)
    assert ((got - expected.double()).abs() <= rounding * (expected.double().abs() + x.abs().max().double())).all()


def test_selective_log_softmax_and_entropy():
    x, labels = peaked((2, 5, 301), 2), some_labels((2, 5), 301, 2)
    grads = []
    for function in (
        lambda x: utils.selective_log_softmax_and_entropy(x, labels, temperature=0.9),
        lambda x: tuple(token_stats(x, labels, ("logp", "entropy"), temperature=0.9).values()),
    ):
        leaf = x.clone().requires_grad_()
        logps, entropy = function(leaf)
        (logps * torch.arange(1, 11).view(2, 5)).sum().add(entropy.square().sum()).backward()
        grads.append((logps.detach(), entropy.detach(), leaf.grad))
    for ours, theirs in zip(*reversed(grads), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=128 * EPS, atol=128 * EPS)


@pytest.mark.parametrize("softcap,scale,temperature", [(None, 1.0, 1.0), (2.0, 0.5, 0.7)])
def test_chunked_log_prob_function(softcap, scale, temperature):
    hidden, weight = peaked((12, 16), 3, sharpness=1.0).clamp(-3, 3), peaked((70, 16), 4, sharpness=1.0).clamp(-3, 3)
    labels, upstream = some_labels((12,), 70, 3), torch.arange(1, 13) / 10
    results = []
    for ours in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if ours:
            names = ("logp", "entropy", "log_sum_sq", "mean_logit", "top1")
            values = token_stats(h @ w.T, labels, names, softcap=softcap, scale=scale, temperature=temperature).values()
            logps, entropy, log_sum_sq, mean_logit, top1 = values
        else:
            logps, entropy, log_sum_sq, mean_logit, top1 = chunked.ChunkedLogProbFunction.apply(
                h, w, None, labels, temperature, 32, softcap, scale
            )
        torch.autograd.backward([logps, entropy], [upstream, -upstream])
        results.append((logps, entropy, log_sum_sq, mean_logit, top1.float(), h.grad, w.grad))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=64 * EPS, atol=64 * EPS)
