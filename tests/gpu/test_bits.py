"""Determinism: the same row gives the same bits in every run, in any company, at any address."""

import pytest
import torch

from tests.gpu.making import DTYPES, Batch, batch, gradient, statistics

pytestmark = pytest.mark.needs_cuda


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 151936), (3, 40000), (600, 1003), (5000, 33)])
def test_runs(shape, dtype):
    rows = batch(shape[0], vocabulary=shape[1], dtype=dtype).to("cuda")
    values, pulled = statistics(rows), gradient(rows)
    for _ in range(5):
        assert torch.equal(statistics(rows), values)
        assert torch.equal(gradient(rows), pulled)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocabulary", [33, 1003, 40000, 151936])
def test_company(vocabulary, dtype):
    """Alone, a row is divided among many blocks; among many rows it has one, or shares one."""
    rows = batch(300, vocabulary=vocabulary, dtype=dtype).to("cuda")
    together, pulled = values_and_gradient(rows)
    for at in (0, 17, 299):
        alone, pulled_alone = values_and_gradient(Batch(*(tensor[at : at + 1] for tensor in rows)))
        assert torch.equal(alone, together[:, at : at + 1])
        assert torch.equal(pulled_alone, pulled[at : at + 1])


def values_and_gradient(rows):
    leaf = rows.logits.detach().clone().requires_grad_()
    values = statistics(rows._replace(logits=leaf), ("logp", "entropy"))
    return values.detach(), torch.autograd.grad(values.sum(), leaf)[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [1, 3, 7])
def test_addresses(dtype, offset):
    """Rows that begin off a 16-byte boundary, at an odd stride."""
    rows = batch(5, vocabulary=4099, dtype=dtype).to("cuda")
    store = torch.full((5 * 5001 + offset,), torch.nan, dtype=dtype, device="cuda")
    moved = store[offset:].view(5, 5001)[:, :4099].copy_(rows.logits)
    assert torch.equal(statistics(rows._replace(logits=moved)), statistics(rows))
    assert torch.equal(gradient(rows._replace(logits=moved)), gradient(rows))


def test_policy_equal_to_its_reference():
    rows = batch(64, vocabulary=50257, dtype=torch.bfloat16).to("cuda")
    rows = rows._replace(reference=rows.logits.clone())
    logp, ref_logp, kl, rkl = statistics(rows, ("logp", "ref_logp", "kl", "rkl"))
    assert torch.equal(logp, ref_logp)
    assert not kl.any()
    assert not rkl.any()
