"""Logits of more than 2³¹ elements: offsets, sizes and strides beyond 32 bits."""

import math

import pytest
import torch

from prefuse.functional import token_logps, token_stats

pytestmark = pytest.mark.needs_cuda

BEYOND = 2**31
GIGABYTES = 10


@pytest.fixture(autouse=True)
def memory():
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < GIGABYTES * 10**9:
        pytest.skip(f"needs {GIGABYTES} GB of free device memory")
    yield
    torch.cuda.empty_cache()


def test_many_rows():
    vocabulary = 131072 + 8
    count = BEYOND // vocabulary + 20
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.empty(count, vocabulary, dtype=torch.bfloat16, device="cuda").normal_(0, 3, generator=generator)
    labels = torch.arange(count, device="cuda")
    assert x.numel() > BEYOND
    last = x[-3:].clone()
    alone = token_stats(last, labels[-3:], ("logp", "entropy", "lse"))
    got = token_stats(x, labels, ("logp", "entropy", "lse"))
    for name, value in alone.items():
        assert torch.equal(got[name][-3:], value)
    leaf = last.clone().requires_grad_()
    (expected,) = torch.autograd.grad(token_logps(leaf, labels[-3:]).sum(), leaf)
    upstream = torch.zeros(count, device="cuda")
    upstream[-3:] = 1
    # Over the logits, so that no second tensor of their size is needed; a view would be refused, an alias is not.
    owner = torch.zeros((), device="cuda", requires_grad=True)
    logits = _Alias.apply(owner, x)
    token_logps(logits, labels, inplace=True).backward(upstream)
    assert torch.equal(x[-3:], expected)
    assert not x[:-3].any()


class _Alias(torch.autograd.Function):
    """`data` as if computed from `owner`."""

    @staticmethod
    def forward(ctx, owner, data):
        return data.new_empty(0).set_(data.untyped_storage(), 0, data.shape, data.stride())

    @staticmethod
    def backward(ctx, gradient):
        return torch.zeros((), device=gradient.device), None


def test_one_row():
    """Equal logits but for the last, which is the label: every number has a closed form."""
    vocabulary = BEYOND + 1001
    x = torch.zeros(1, vocabulary, dtype=torch.bfloat16, device="cuda")
    x[0, -1] = 20.0
    got = token_stats(x, torch.tensor([vocabulary - 1], device="cuda"), ("logp", "lse", "top1"))
    lse = math.log(vocabulary - 1 + math.exp(20.0))
    assert got.lse.item() == pytest.approx(lse, rel=1e-6)
    assert got.logp.item() == pytest.approx(20.0 - lse, abs=1e-5)
    assert got.top1.item() == 1


def test_a_stride_beyond_32_bits():
    stride, vocabulary = BEYOND + 24, 700
    store = torch.empty(stride + vocabulary, dtype=torch.bfloat16, device="cuda")
    near = torch.randn(2, vocabulary, generator=torch.Generator().manual_seed(0)).bfloat16().cuda()
    far = store.as_strided((2, vocabulary), (stride, 1)).copy_(near)
    labels = torch.tensor([5, 699], device="cuda")
    assert torch.equal(token_logps(far, labels), token_logps(near, labels))
