"""Row statistics and their gradients written from the definition in float64 PyTorch: what every test compares with."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.devices import integers, on_the_cpu

EPS = torch.finfo(torch.float32).eps
"""Spacing of float32 at 1."""

GRADIENTS = ("logp", "lse", "entropy", "mean_logit", "kl", "rkl")


def transform(x: Tensor, temperature: float | Tensor = 1.0, scale: float = 1.0, softcap: float | None = None) -> Tensor:
    """z from raw logits."""
    if isinstance(temperature, Tensor):
        temperature = temperature.to(x.dtype)[..., None]
    x = scale * x
    return (x if softcap is None else softcap * torch.tanh(x / softcap)) / temperature


@on_the_cpu
def statistics(
    x: Tensor,
    labels: Tensor,
    reference: Tensor | None = None,
    k: int = 10,
    precision: torch.dtype = torch.float64,
    **transforms: object,
) -> dict[str, Tensor]:
    """Every statistic at `precision` (differentiable where all logits are finite)."""
    z = transform(x.to(precision), **transforms)
    lse = torch.logsumexp(z, -1)
    log_p = z - lse[..., None]
    p = log_p.exp()
    at = labels[..., None]
    values = {
        "logp": log_p.gather(-1, at)[..., 0],
        "lse": lse,
        "entropy": -_times_log(p, log_p).sum(-1),
        "log_sum_sq": torch.logsumexp(2 * log_p, -1),
        "mean_logit": z.mean(-1),
        "top1": (first_argmax(z) == labels).to(precision),
    }
    top = log_p.topk(min(k, z.shape[-1]), -1).values
    log_q = top - torch.logsumexp(top, -1, keepdim=True)
    values["topk_mass"] = top.exp().sum(-1)
    values["topk_entropy"] = -_times_log(log_q.exp(), log_q).sum(-1)
    if reference is not None:
        ref_z = transform(reference.to(precision), **transforms)
        ref_lse = torch.logsumexp(ref_z, -1)
        log_r = ref_z - ref_lse[..., None]
        values["ref_logp"] = log_r.gather(-1, at)[..., 0]
        values["ref_lse"] = ref_lse
        values["kl"] = _times_log(p, log_p - log_r).sum(-1)
        values["rkl"] = _times_log(log_r.exp(), log_r - log_p).sum(-1)
    return values


@on_the_cpu
def gradient(
    x: Tensor,
    labels: Tensor,
    upstream: dict[str, Tensor],
    reference: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    scale: float = 1.0,
    softcap: float | None = None,
    precision: torch.dtype = torch.float64,
) -> Tensor:
    """d(Σ upstream·statistic)/dx from the closed forms, which hold for −inf logits where autograd's do not."""
    transforms = {"temperature": temperature, "scale": scale, "softcap": softcap}
    x = x.to(precision)
    values = statistics(x, labels, reference, precision=precision, **transforms)
    log_p = transform(x, **transforms) - values["lse"][..., None]
    p = log_p.exp()
    total = torch.zeros_like(x)
    for name, coefficient in upstream.items():
        if name == "logp":
            local = torch.nn.functional.one_hot(labels, x.shape[-1]) - p
        elif name == "lse":
            local = p
        elif name == "mean_logit":
            local = torch.full_like(p, 1 / x.shape[-1])
        elif name == "entropy":
            local = -_times_log(p, log_p + values["entropy"][..., None])
        else:
            log_r = transform(reference.to(precision), **transforms) - values["ref_lse"][..., None]
            local = p - log_r.exp() if name == "rkl" else _times_log(p, log_p - log_r - values["kl"][..., None])
        total += coefficient.to(precision)[..., None] * local
    slope = scale if softcap is None else scale * (1 - torch.tanh(scale * x / softcap) ** 2)
    divisor = temperature.to(precision)[..., None] if isinstance(temperature, Tensor) else temperature
    return total * slope / divisor


@on_the_cpu
def assert_as_good_as_oracle(got: Tensor, exact: Tensor, at_precision: Tensor, what: str, largest: float = 0.0) -> None:
    """`got` errs from `exact` at most twice as much as the oracle itself does at that precision, plus its last bits.

    `largest` is the largest logit where rounding it is a part of the error: in a mean, and if the transform is not
    the identity. In float64, where the oracle is its own yardstick, the allowance is some spacings of it instead.
    """
    assert got.shape == exact.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(exact.shape)}"
    spacing = torch.finfo(at_precision.dtype).eps
    got, exact = got.double(), exact.double()
    same = (got == exact) | (got.isnan() & exact.isnan())
    error = torch.where(same, 0.0, (got - exact).abs())
    if at_precision.dtype == torch.float64:
        at_precision = exact + 8 * spacing * (1 + largest)
    finite = at_precision.double().isfinite() & exact.isfinite()
    own = torch.where(finite, (at_precision.double() - exact).abs(), 0.0)
    if own.numel():
        own = 2 * own.max() + spacing * (2 * torch.where(exact.isfinite(), exact.abs(), 0.0) + largest)
    allowed = own
    assert not error.isnan().any(), f"{what}: NaN where {exact[error.isnan()][:3].tolist()} was expected"
    excess = error - allowed
    if excess.numel() and excess.max() > 0:
        at = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
        raise AssertionError(f"{what}{list(at)}: {got[at]} instead of {exact[at]}, allowed error {allowed[at]:.3g}")


@on_the_cpu
def assert_gradient(
    got: Tensor,
    x: Tensor,
    labels: Tensor,
    upstream: dict[str, Tensor],
    reference: Tensor | None = None,
    **transforms: object,
) -> None:
    """`got` is the gradient computed at float32 (or float64) and rounded once, to the dtype of `x`: half its spacing.

    What the arithmetic may err: twice what the oracle does at that precision, and the rounding of lse, log p, entropy
    and KL, each as large as the logits and the KL itself, which are relative errors of p (and of q in the reverse KL).
    """
    assert got.shape == x.shape
    assert got.dtype == x.dtype
    exact = gradient(x, labels, upstream, reference, **transforms)
    if not exact.numel():
        return
    precision = torch.float64 if x.dtype == torch.float64 else torch.float32
    own = (gradient(x, labels, upstream, reference, **transforms, precision=precision) - exact).abs().max()
    values = statistics(x, labels, reference, **transforms)
    z = transform(x.double(), **transforms)
    largest = torch.where(z.isfinite(), z.abs(), 0.0).amax(-1, keepdim=True)
    if "kl" in upstream:
        largest = largest + values["kl"][..., None]
    p = (z - values["lse"][..., None]).exp()
    if "rkl" in upstream:
        p = p + transform(reference.double(), **transforms).softmax(-1)
    weight = sum(coefficient.double().abs() for coefficient in upstream.values())[..., None]
    at_label = torch.nn.functional.one_hot(labels, x.shape[-1])
    allowed = 2 * own + 6 * torch.finfo(precision).eps * (
        (1 + largest) * (exact.abs() + weight * p) + weight * at_label
    )
    if x.dtype != precision:
        info = torch.finfo(x.dtype)
        allowed = allowed + 0.5 * info.eps * exact.abs() + 0.5 * info.smallest_normal * info.eps
    excess = (got.double() - exact).abs() - allowed
    assert not excess.isnan().any(), f"{tuple(upstream)}: not a number"
    assert excess.max() <= 0, (
        f"{tuple(upstream)}: excess {excess.max():.3g} over {allowed.flatten()[excess.argmax()]:.3g}"
    )


def first_argmax(z: Tensor) -> Tensor:
    """Index of the first of the largest; `argmax` does not promise which."""
    return (z == z.amax(-1, keepdim=True)).int().argmax(-1)


def _times_log(p: Tensor, log: Tensor) -> Tensor:
    """p·log with 0·(−inf) = 0."""
    return torch.where(p == 0, torch.zeros_like(p), p * torch.where(p == 0, torch.zeros_like(log), log))


@on_the_cpu
def peaked(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32, sharpness: float = 3.0) -> Tensor:
    """Normal logits with a few multiplied by 20: without confident rows all probabilities are tiny and errors hide."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * sharpness
    boost = torch.rand(shape, generator=generator) < 2.0 / max(shape[-1], 2)
    return torch.where(boost, x.abs() * 20 / sharpness, x).to(dtype)


def some_labels(shape: tuple[int, ...], vocabulary: int, seed: int) -> Tensor:
    return integers(vocabulary, *shape, seed=seed + 1)


STATISTICS_OF = {
    False: ("logp", "lse", "entropy", "log_sum_sq", "mean_logit", "top1", "topk_mass", "topk_entropy"),
    True: ("ref_logp", "ref_lse", "kl", "rkl"),
}
"""Statistics by whether they need reference logits."""
