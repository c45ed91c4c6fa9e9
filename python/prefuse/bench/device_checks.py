"""Whether the CUDA kernels are right on this machine: a quick look before anything is measured, not the test suite."""

from __future__ import annotations

import torch
from torch import Tensor

import prefuse.denoising
from prefuse.functional import token_stats
from prefuse.linear.functions import linear_token_logps

from . import denoising, gather, quality, scoring
from . import head as hands

SHAPES = ((3, 1), (300, 1000), (64, 50257), (8, 128256), (257, 151936))
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
HEAD_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_PAIRS = 64
_ROUNDINGS = 64
_HEAD_ERROR = (
    8  # in the dtype's epsilon; a gradient of the head is rounded a few times, and sums of roundings are small
)
_PEER_ERROR = 2**-6  # relative to the row's largest logit: some libraries return log-probabilities in bfloat16


def failures(device: torch.device) -> list[str]:
    """What is wrong, one sentence each; an empty list if nothing is."""
    found = [rows(*shape, dtype, device) for shape in SHAPES for dtype in DTYPES]
    of_head = [check(dtype, device) for check in (head, sparse_head) for dtype in HEAD_DTYPES]
    of_errors = [squared_errors(one, other, device) for one in DTYPES for other in DTYPES]
    return [failure for failure in (*found, objective(device), *of_errors, *of_head) if failure]


def rows(count: int, vocabulary: int, dtype: torch.dtype, device: torch.device) -> str | None:
    """Compares statistics and gradient of random rows with float64 PyTorch on the same device."""
    logits, labels = gather.inputs(count, vocabulary, dtype, device=device)
    ours, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    got = token_stats(ours, labels, ("logp", "lse", "entropy"))
    log_p = exact.log_softmax(-1)
    p = log_p.exp()
    wanted = {
        "logp": log_p.gather(-1, labels[:, None])[:, 0],
        "lse": exact.logsumexp(-1),
        "entropy": -(p * log_p).sum(-1),
    }
    weights = {name: torch.linspace(-1.0, 1.0 + at, count, device=device) for at, name in enumerate(wanted)}
    sum((weights[name] * got[name]).sum() for name in wanted).backward()  # type: ignore[union-attr]
    sum((weights[name] * wanted[name]).sum() for name in wanted).backward()  # type: ignore[union-attr]
    assert ours.grad is not None and exact.grad is not None
    with torch.no_grad():
        rounding = _ROUNDINGS * torch.finfo(got.logp.dtype).eps * (1 + exact.abs().amax(-1))
        what = f"rows [{count}, {vocabulary}] {dtype}"
        for name, value in wanted.items():
            if not bool(((got[name] - value).abs() <= rounding).all()):
                return f"{what}: {name} is off by {float((got[name] - value).abs().max()):.3g}"
        # What a term of the gradient is made of, each wrong by a few roundings, then the rounding to the logits' dtype.
        size = p * (2 - log_p + wanted["entropy"][:, None]) + torch.nn.functional.one_hot(labels, vocabulary)
        info = torch.finfo(dtype)
        allowed = 4 * rounding[:, None] * size + info.eps * (exact.grad.abs() + info.smallest_normal)
        excess = ((ours.grad.double() - exact.grad).abs() - allowed).max()
    return None if float(excess) <= 0 else f"{what}: the gradient is off by {float(excess):.3g} more than it may be"


def squared_errors(one: torch.dtype, other: torch.dtype, device: torch.device) -> str | None:
    """Compares squared errors of samples of odd size, and their gradient, with float64 PyTorch on the same device."""
    predicted, target = denoising.inputs((5, 3, 7001), one, device)[0], denoising.inputs((5, 3, 7001), other, device)[1]
    ours, exact = predicted.clone().requires_grad_(), predicted.double().requires_grad_()
    got, wanted = prefuse.denoising.squared_errors(ours, target), (exact - target).square().flatten(1).mean(1)
    mine, reference = torch.autograd.grad(got.sum(), ours)[0], torch.autograd.grad(wanted.sum(), exact)[0]
    spacing = torch.finfo(torch.float64 if torch.float64 in (one, other) else torch.float32).eps
    if not torch.allclose(got.double(), wanted, rtol=16 * spacing, atol=0):
        return f"squared errors of {one} and {other}: off by {(got - wanted).abs().max().item():.3g}"
    if not torch.allclose(mine.double(), reference, rtol=2 * torch.finfo(one).eps, atol=1e-7):
        return (
            f"squared errors of {one} and {other}: the gradient is off by {(mine - reference).abs().max().item():.3g}"
        )
    return None


def objective(device: torch.device) -> str | None:
    """Compares DPO's loss and gradient on the device with the CPU's and with PyTorch's."""
    here, there = scoring.columns(_PAIRS, device), scoring.columns(_PAIRS, "cpu")
    got = scoring.ways(here)[scoring.PREFUSE]()
    for other in (scoring.ways(there)[scoring.PREFUSE](), scoring.ways(here)[scoring.EAGER]()):
        for mine, theirs in zip(got, other, strict=True):
            if not torch.allclose(mine.cpu(), theirs.cpu(), rtol=1e-5, atol=1e-7):
                return f"objective dpo: off by {float((mine.cpu() - theirs.cpu()).abs().max()):.3g}"
    return None


def head(dtype: torch.dtype, device: torch.device) -> str | None:
    """Compares the gradients that the fused head makes, plan by plan, with float64's."""
    given = quality.problem(dtype, device=device)
    wanted = quality.exact(given)
    for name in quality.WAYS:
        for what, off in quality.errors(quality.by_prefuse(name, given)[0], wanted).items():
            if not off <= _HEAD_ERROR * torch.finfo(dtype).eps:
                return f"head, {name}, {dtype}: d({what}) is off by {off:.2g} of its size"
    return None


def sparse_head(dtype: torch.dtype, device: torch.device) -> str | None:
    """Compares gradients of the fused head from lists, or columns, that leave nothing out with dense ones."""
    batch = hands.inputs(4, 300, 64, 5003, dtype=dtype, trainable=True, device=device)

    def gradients(sparse: float | None) -> tuple[Tensor, ...]:
        logps = linear_token_logps(batch.hidden, batch.weight, batch.labels, sparse=sparse)
        return torch.autograd.grad(logps.sum(), batch.leaves)

    for name, found, dense in zip(("hidden", "weight"), gradients(2.0**-40), gradients(None), strict=True):
        off = float((found.float() - dense.float()).norm() / dense.float().norm())
        if not off <= _HEAD_ERROR * torch.finfo(dtype).eps:
            return f"sparse head, {dtype}: d({name}) is off by {off:.2g} of its size"
    if not all(bool(gradient.isfinite().all()) for gradient in gradients(2.0**-12)):
        return f"sparse head, {dtype}: a gradient is not finite"
    return None


def disagreement(name: str, logits: Tensor, labels: Tensor) -> str | None:
    """Why a hand is not to be measured: it fails, or its log-probabilities are not those; None if it does well."""
    some = slice(0, 16)
    try:
        with torch.no_grad():
            got = gather.hand(name)(logits, labels)[some].double()
    except Exception as error:  # whatever a library raises on this machine
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    exact = gather.log_softmax_gather(logits[some].double(), labels[some])
    off = (got - exact).abs() / logits[some].double().abs().amax(-1)
    return (
        None if bool((off <= _PEER_ERROR).all()) else f"disagrees: off by {float(off.max()):.2g} of the largest logit"
    )
