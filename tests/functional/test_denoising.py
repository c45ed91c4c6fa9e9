"""Squared errors and Gaussian log-densities per sample, against PyTorch's own in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.testing import assert_close

import prefuse
from prefuse import denoising, gaussian_logps, squared_errors

SHAPES = [(1,), (5,), (3, 7), (2, 3, 5, 4), (2, 1, 4, 40_000), (70, 1000), (0, 3), (2, 0)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def draw(shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def errors(predicted, target):
    squares = (predicted.double() - target.double()).square()
    return squares.sum(tuple(range(1, squares.dim()))) if squares.dim() > 1 else squares


@pytest.mark.parametrize(("shape", "dtype"), list(itertools.product(SHAPES, DTYPES)))
def test_values_and_gradients(shape, dtype):
    predicted, target = draw(shape, dtype), draw(shape, torch.float32, seed=1)
    weights = draw(shape[:1], seed=2)
    ours = [x.clone().requires_grad_() for x in (predicted, target)]
    theirs = [x.double().requires_grad_() for x in (predicted, target)]
    found, expected = squared_errors(*ours, mean=False), errors(*theirs)
    assert found.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    assert_close(found.double(), expected, rtol=1e-6, atol=1e-12)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, reference in zip(ours, theirs, strict=True):
        tolerance = {torch.float16: 2e-3, torch.bfloat16: 1e-2}.get(dtype, 1e-6)
        assert mine.grad.dtype == mine.dtype
        assert_close(mine.grad.double(), reference.grad, rtol=tolerance, atol=1e-6)


def test_gradcheck():
    predicted, target = (draw((3, 2, 4), seed=seed).requires_grad_() for seed in (0, 1))
    std = (0.5 + torch.rand(3, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(squared_errors, (predicted, target))
    assert torch.autograd.gradcheck(gaussian_logps, (target, predicted, std))


def test_operators():
    arguments = draw((3, 2, 4)).requires_grad_(), draw((3, 2, 4), seed=1)
    torch.library.opcheck(denoising._squared_errors, arguments)
    torch.library.opcheck(denoising._squared_errors_backward, (draw((3,)), *(x.detach() for x in arguments)))
    compiled = torch.compile(lambda x, y: squared_errors(x, y).sum(), fullgraph=True, backend="aot_eager")
    (expected,) = torch.autograd.grad(squared_errors(*arguments).sum(), arguments[0])
    (found,) = torch.autograd.grad(compiled(*arguments), arguments[0])
    assert_close(found, expected)


def test_the_mean_is_over_dimensions():
    predicted, target = draw((3, 2, 4)), draw((3, 2, 4), seed=1)
    assert_close(squared_errors(predicted, target), (predicted - target).square().mean((1, 2)))
    assert squared_errors(draw((2, 0)), draw((2, 0))).tolist() == [0.0, 0.0]


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "batch last": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "strided": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "a slice": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
}


@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("first", LAYOUTS)
def test_layouts_do_not_matter(first, second):
    predicted, target = draw((4, 3, 8, 6)), draw((4, 3, 8, 6), seed=1)
    arguments = LAYOUTS[first](predicted).requires_grad_(), LAYOUTS[second](target).requires_grad_()
    found = squared_errors(*arguments)
    assert_close(found, (predicted - target).square().flatten(1).mean(1))
    gradients = torch.autograd.grad(found.sum(), arguments)
    assert_close(gradients[0], 2 * (predicted - target) / 144)
    assert_close(gradients[1], -2 * (predicted - target) / 144)


def test_the_gradient_lies_like_the_prediction():
    predicted = draw((4, 3, 8, 6)).to(memory_format=torch.channels_last).requires_grad_()
    squared_errors(predicted, draw((4, 3, 8, 6), seed=1)).sum().backward()
    assert predicted.grad.is_contiguous(memory_format=torch.channels_last)


def test_broadcast_targets():
    predicted, target = draw((4, 3, 8)).requires_grad_(), draw((1, 3, 1), seed=1).requires_grad_()
    squared_errors(predicted, target.expand(4, 3, 8), mean=False).sum().backward()
    assert_close(predicted.grad, 2 * (predicted.detach() - target.detach()))
    assert_close(target.grad, -2 * (predicted.detach() - target.detach()).sum((0, 2), keepdim=True))


@pytest.mark.parametrize(("one", "other"), list(itertools.product(DTYPES, DTYPES)))
def test_every_pair_of_dtypes(one, other):
    arguments = draw((3, 1000), one).requires_grad_(), draw((3, 1000), other, seed=1).requires_grad_()
    found = squared_errors(*arguments)
    wide = torch.float64 if torch.float64 in (one, other) else torch.float32
    assert found.dtype == wide
    assert_close(found.double(), errors(*arguments).detach() / 1000, rtol=16 * torch.finfo(wide).eps, atol=0)
    scale = 2.0 / 1000
    for gradient, x, y in zip(torch.autograd.grad(found.sum(), arguments), arguments, arguments[::-1], strict=True):
        assert gradient.dtype == x.dtype
        exact = scale * (x.detach().double() - y.detach().double())
        assert_close(gradient.double(), exact, rtol=2 * torch.finfo(x.dtype).eps, atol=1e-7)


def test_a_sample_gives_the_same_bits_in_any_company_and_on_any_threads():
    predicted, target = draw((5, 20_001), torch.float32), draw((5, 20_001), torch.float32, seed=1)
    together, threads = squared_errors(predicted, target), torch.get_num_threads()
    alone = torch.cat([squared_errors(predicted[i : i + 1], target[i : i + 1]) for i in range(5)])
    assert torch.equal(together, alone)
    try:
        torch.set_num_threads(1)
        assert torch.equal(together, squared_errors(predicted, target))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "std", [0.7, torch.tensor(0.7), torch.tensor([0.3, 0.7, 1.1])], ids=["number", "scalar", "each"]
)
def test_gaussian_logps(std):
    x, mean = draw((3, 2, 4), torch.float32), draw((3, 2, 4), torch.float32, seed=1)
    wide = std if isinstance(std, float) else std.double().reshape(-1, 1, 1)
    expected = torch.distributions.Normal(mean.double(), wide).log_prob(x.double()).flatten(1)
    assert_close(gaussian_logps(x, mean, std).double(), expected.sum(1), rtol=1e-5, atol=1e-5)
    assert_close(gaussian_logps(x, mean, std, average=True).double(), expected.mean(1), rtol=1e-5, atol=1e-5)
    if not isinstance(std, float) and std.numel() == 3:
        assert_close(gaussian_logps(x, mean, std.reshape(3, 1, 1)), gaussian_logps(x, mean, std))


def test_far_samples_stay_finite():
    far = torch.full((2, 3), 1e15)
    found = squared_errors(far.requires_grad_(), -far.detach())
    found.sum().backward()
    assert found.tolist() == pytest.approx([4e30] * 2) and torch.isfinite(far.grad).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x: squared_errors(x, x[:1]),
            ValueError,
            r"target: expected shape \(2, 3\) like predicted, got \(1, 3\)",
        ),
        (lambda x: squared_errors(x[0, 0], x[0, 0]), ValueError, r"predicted: expected \[B, …\]"),
        (lambda x: squared_errors(x, x.long()), TypeError, "target: expected a float16.*got torch.int64"),
        (
            lambda x: squared_errors(x, x.to("meta")),
            ValueError,
            "target: expected device cpu, like the other arguments, got meta",
        ),
        (lambda x: squared_errors(x.numpy(), x), TypeError, r"predicted: expected a torch\.Tensor, got ndarray"),
        (lambda x: squared_errors(x.to_sparse(), x), TypeError, "predicted: expected a dense"),
        (lambda x: gaussian_logps(x, x[:, :2], 1.0), ValueError, r"mean: expected shape \(2, 3\) like sample"),
        (lambda x: gaussian_logps(x, x, 0.0), ValueError, "std: expected a value above 0, got 0.0"),
        (lambda x: gaussian_logps(x, x, torch.ones(3)), ValueError, r"std: expected a number or one per sample, \[2\]"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.randn(2, 3))


def test_no_second_derivative():
    predicted = draw((2, 3)).requires_grad_()
    (gradient,) = torch.autograd.grad(
        squared_errors(predicted, draw((2, 3), seed=1)).sum(), predicted, create_graph=True
    )
    with pytest.raises(RuntimeError, match="differentiable once"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    "transform",
    [
        lambda f, x: torch.vmap(f)(x),
        lambda f, x: torch.func.grad(lambda x: f(x).sum())(x),
        lambda f, x: torch.func.jvp(f, (x,), (x,)),
    ],
    ids=["vmap", "grad", "jvp"],
)
def test_transforms_are_a_clear_error(transform):
    target = draw((3, 2, 4), seed=1)
    with pytest.raises(NotImplementedError, match=r"prefuse has no rules for torch\.func"):
        transform(lambda x: squared_errors(x, target if x.dim() == 3 else target[0]), draw((3, 2, 4)))


def test_forward_mode_is_a_clear_error():
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(draw((3, 2)), draw((3, 2)))
        with pytest.raises(NotImplementedError, match="forward-mode"):
            gaussian_logps(draw((3, 2), seed=1), x, 0.5)


def test_public_names():
    assert {"squared_errors", "gaussian_logps"} <= set(prefuse.__all__)
