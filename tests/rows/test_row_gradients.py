"""Gradients of the rows against the closed forms in float64, finite differences, and the rounding of 16-bit outputs."""

import itertools

import pytest
import torch
from row_oracle import EPS, GRADIENTS, assert_gradient, gradient, peaked, some_labels

from prefuse.functional import STATISTICS, token_stats
from tests.devices import normal, on_the_cpu

pytestmark = pytest.mark.usefixtures("device")

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
TRANSFORMS = [
    {},
    {"temperature": 0.7},
    {"scale": 0.5},
    {"softcap": 2.0},
    {"temperature": 0.7, "scale": 0.5, "softcap": 30.0},
]
SUBSETS = [subset for size in (1, 2, 3, 6) for subset in itertools.combinations(GRADIENTS, size)]


def pull_back(x, labels, upstream, reference=None, **options):
    x = x.clone().requires_grad_()
    got = token_stats(x, labels, tuple(upstream), reference_logits=reference, **options)
    torch.autograd.backward([got[name] for name in upstream], [upstream[name].to(got[name].dtype) for name in upstream])
    return x.grad


@on_the_cpu
def random_upstream(names, shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64).float() for name in names}


def check(x, labels, upstream, reference=None, **transforms):
    got = pull_back(x, labels, upstream, reference, **transforms)
    assert_gradient(got, x, labels, upstream, reference, **transforms)


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_together_and_alone(dtype, names):
    x, reference = peaked((3, 2, 131), 1, dtype), peaked((3, 2, 131), 2, dtype)
    check(x, some_labels((3, 2), 131, 1), random_upstream(names, (3, 2), 1), reference)


@pytest.mark.parametrize("vocabulary", [1, 2, 7, 16, 17, 64, 1000, 4095, 4097, 32003])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_vocabularies(dtype, vocabulary):
    x, reference = peaked((4, vocabulary), vocabulary, dtype), peaked((4, vocabulary), vocabulary + 1, dtype)
    labels = some_labels((4,), vocabulary, 3)
    labels[0], labels[1] = 0, vocabulary - 1
    check(x, labels, random_upstream(("logp",), (4,), 3))
    check(x, labels, random_upstream(GRADIENTS, (4,), 3), reference)


@pytest.mark.parametrize("transforms", TRANSFORMS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_transforms(dtype, transforms):
    x, reference = peaked((5, 301), 4, dtype), peaked((5, 301), 5, dtype)
    check(x, some_labels((5,), 301, 4), random_upstream(GRADIENTS, (5,), 4), reference, **transforms)


def test_temperature_per_token():
    temperature = torch.tensor([[0.5], [2.0]])
    x, reference = peaked((2, 3, 65), 5), peaked((2, 3, 65), 6)
    labels, upstream = some_labels((2, 3), 65, 5), random_upstream(GRADIENTS, (2, 3), 5)
    got = pull_back(x, labels, upstream, reference, temperature=temperature)
    for row, value in enumerate(temperature[:, 0].tolist()):
        one = {name: coefficient[row] for name, coefficient in upstream.items()}
        assert torch.equal(got[row], pull_back(x[row], labels[row], one, reference[row], temperature=value))


@pytest.mark.parametrize("transforms", [{}, {"temperature": 0.7, "scale": 1.3, "softcap": 3.0}], ids=str)
def test_gradcheck_by_finite_differences(transforms):
    x = normal(2, 3, 6, seed=7, dtype=torch.float64).requires_grad_()
    reference = normal(2, 3, 6, seed=8, dtype=torch.float64)
    labels, mask = some_labels((2, 3), 6, 7), torch.tensor([[1, 1, 0], [1, 0, 1]])

    def function(x):
        got = token_stats(x, labels, GRADIENTS, reference_logits=reference, mask=mask, **transforms)
        return tuple(got.values())

    assert torch.autograd.gradcheck(function, x, eps=1e-6, atol=1e-8, rtol=1e-6)


def test_statistics_without_gradient_say_so():
    x = peaked((2, 65), 8).requires_grad_()
    got = token_stats(x, torch.tensor([0, 1]), STATISTICS, reference_logits=peaked((2, 65), 9))
    assert {name for name in STATISTICS if got[name].requires_grad} == set(GRADIENTS)


def test_confident_bfloat16_row_keeps_its_gradient():
    """p_y ≈ 0.999: subtracting the one-hot after rounding p to bfloat16 would give 0 or be off by 100 %."""
    x = torch.zeros(1, 50, dtype=torch.bfloat16)
    x[0, 3] = 10.8125
    labels = torch.tensor([3])
    exact = gradient(x, labels, {"logp": torch.ones(1)})
    assert 5e-4 < exact[0, 3] < 2e-3
    assert (1.0 - (1.0 - exact[0, 3]).to(torch.bfloat16).double() - exact[0, 3]).abs() > 0.9 * exact[0, 3]
    got = pull_back(x, labels, {"logp": torch.ones(1)}).double()
    assert ((got - exact).abs() <= 2**-8 * exact.abs()).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_without_upstream_gradient_gets_zeros(dtype):
    """Even where its own derivative is not finite."""
    x = peaked((3, 65), 10, dtype)
    x[1] = float("nan")
    x[2, :] = float("-inf")
    upstream = {name: torch.tensor([1.0, 0.0, 0.0]) for name in GRADIENTS}
    got = pull_back(x, torch.tensor([1, 2, 3]), upstream, peaked((3, 65), 11, dtype))
    assert got[0].any()
    assert not got[1:].any()


def test_ignored_rows_are_not_read_and_get_zeros():
    x = peaked((4, 65), 12)
    x[1], x[2] = float("nan"), float("inf")
    labels = torch.tensor([5, -100, 6, 7])
    x = x.requires_grad_()
    got = token_stats(x, labels, ("logp", "entropy"), mask=torch.tensor([True, True, False, True]))
    assert got.logp[1:3].tolist() == [0, 0]
    (got.logp.sum() + got.entropy.sum()).backward()
    assert x.grad.isfinite().all()
    assert not x.grad[1:3].any()
    assert x.grad[[0, 3]].any(-1).all()


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient_rows_sum_to_zero_but_for_lse_and_mean(name):
    """Adding a constant to all logits changes lse and the mean by it and the other statistics not at all."""
    x, reference = peaked((6, 999), 13), peaked((6, 999), 14)
    got = pull_back(x, some_labels((6,), 999, 13), {name: torch.ones(6)}, reference).double()
    expected = float(name in ("lse", "mean_logit"))
    assert torch.allclose(
        got.sum(-1), torch.full((6,), expected, dtype=torch.float64), atol=200 * EPS * got.abs().max()
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_label_smoothing(dtype):
    """(1 − ε)·logp + ε·(mean_logit − lse) is PyTorch's smoothed cross entropy, but for the sign."""
    x, labels, epsilon = peaked((6, 301), 17, dtype), some_labels((6,), 301, 17), 0.1
    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    got = token_stats(ours, labels, ("logp", "lse", "mean_logit"))
    loss = -((1 - epsilon) * got.logp + epsilon * (got.mean_logit - got.lse))
    expected = torch.nn.functional.cross_entropy(theirs, labels, label_smoothing=epsilon, reduction="none")
    torch.testing.assert_close(loss.double(), expected, rtol=64 * EPS, atol=64 * EPS)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=max(torch.finfo(dtype).eps, 64 * EPS), atol=1e-6)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_mean_pulls_at_banned_tokens_too(softcap):
    """Its derivative is the constant 1/V, where the soft cap does not flatten it; a row of nothing else gets zeros."""
    x = torch.zeros(3, 8)
    x[0, 2], x[1], x[2, 7] = -torch.inf, -torch.inf, 5.0
    upstream = {"mean_logit": torch.tensor([2.0, 2.0, 0.0]), "logp": torch.zeros(3)}
    got = pull_back(x, torch.zeros(3, dtype=torch.int64), upstream, temperature=0.5, softcap=softcap)
    row = torch.full((8,), 2.0 / 8 / 0.5)
    if softcap is None:
        assert torch.equal(got, torch.stack([row, torch.zeros(8), torch.zeros(8)]))
    else:
        row[2] = 0.0
        torch.testing.assert_close(got[0], row)
        assert got.isfinite().all()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layout", ["sliced", "transposed", "expanded"])
def test_gradient_through_layouts(layout, inplace):
    """Autograd undoes the view; the kernel's own rows are strided."""
    labels = some_labels((3, 4), 33, 15)

    def rows(x):
        y = 1.0 * x
        return {"sliced": y[:, :4], "transposed": y.transpose(0, 1)[:4].transpose(0, 1), "expanded": y[:1, :4]}[layout]

    def run(x, plain):
        z = rows(x)
        if layout == "expanded":
            z = z.clone().expand(3, 4, 33)
        if plain:
            return z.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
        return token_stats(z, labels, inplace=inplace and layout != "expanded").logp

    x = peaked((3, 6, 33), 16, torch.float64).requires_grad_()
    grads = []
    for plain in (False, True):
        x.grad = None
        (run(x, plain) * torch.arange(1.0, 13.0).view(3, 4)).sum().backward()
        grads.append(x.grad)
    assert torch.allclose(*grads, rtol=1e-12, atol=1e-13)
