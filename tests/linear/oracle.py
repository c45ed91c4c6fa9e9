"""The fused head written out: whole logits in float64, statistics from their definitions, autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.devices import integers, normal, on_the_cpu


def problem(
    tokens: int = 37, features: int = 8, classes: int = 53, dtype: torch.dtype = torch.float64
) -> dict[str, Any]:
    """Random hidden states, weight, bias and labels of which some are ignored; a few rows are confident."""
    hidden = normal(tokens, features, seed=1, dtype=torch.float64)
    weight = normal(classes, features, seed=2, dtype=torch.float64)
    labels = integers(classes, tokens, seed=3)
    hidden[::5] = 3 * weight[labels[::5]]  # their label has nearly all of the mass
    labels[1], labels[tokens // 2 :: 7] = -100, -100
    return {
        "hidden": hidden.to(dtype),
        "weight": weight.to(dtype),
        "bias": normal(classes, seed=4, dtype=torch.float64).to(dtype),
        "labels": labels,
    }


@on_the_cpu
def statistics(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    reference: tuple[Tensor, Tensor, Tensor | None] | None = None,
    mask: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    scale: float = 1.0,
    label_smoothing: float = 0.0,
    k: int = 10,
) -> dict[str, Tensor]:
    """Every statistic of every token, in the dtype that comes in; 0 where a token is not scored."""

    def transformed(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = scale * (hidden @ weight.T + (0 if bias is None else bias))
        x = x if softcap is None else softcap * torch.tanh(x / softcap)
        return x / (temperature[..., None] if isinstance(temperature, Tensor) else temperature)

    scored = (labels != -100) & (True if mask is None else mask.bool())
    at = torch.where(scored, labels, 0)[..., None]
    z = transformed(hidden, weight, bias)
    lse = z.logsumexp(-1)
    log_p = z - lse[..., None]
    p = log_p.exp()
    largest = log_p.topk(min(k, z.shape[-1]), -1).values
    shares = largest.log_softmax(-1)
    found = {
        "logp": log_p.gather(-1, at)[..., 0],
        "lse": lse,
        "entropy": -(p * log_p).sum(-1),
        "log_sum_sq": (2 * log_p).logsumexp(-1),
        "mean_logit": z.mean(-1),
        "top1": (z.argmax(-1) == at[..., 0]).to(z.dtype),
        "topk_mass": largest.exp().sum(-1),
        "topk_entropy": -(shares.exp() * shares).sum(-1),
    }
    if label_smoothing:
        found["logp"] = (1 - label_smoothing) * found["logp"] + label_smoothing * log_p.mean(-1)
    if reference is not None:
        w = transformed(*reference)
        log_q = w.log_softmax(-1)
        found["ref_logp"] = log_q.gather(-1, at)[..., 0]
        found["ref_lse"] = w.logsumexp(-1)
        found["kl"] = (p * (log_p - log_q)).sum(-1)
        found["rkl"] = (log_q.exp() * (log_q - log_p)).sum(-1)
    return {name: torch.where(scored, value, 0.0) for name, value in found.items()}


def gradients(
    values: dict[str, Tensor], upstream: dict[str, Tensor], wrt: list[Tensor], **options: Any
) -> list[Tensor]:
    """d(Σ upstream·statistic)/d(wrt)."""
    loss = sum((values[name] * grad).sum() for name, grad in upstream.items())
    return list(torch.autograd.grad(loss, wrt, **options))


def upstream(names: tuple[str, ...], tokens: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """A random gradient for each statistic."""
    return {name: normal(tokens, seed=10 + i, dtype=torch.float64).to(dtype) for i, name in enumerate(names)}


def room(rows: float, features: int = 8, classes: int = 53, itemsize: int = 8, logits: int = 1) -> int:
    """`workspace_bytes` for tiles of so many rows."""
    return int(rows * (logits * classes + 3 * features) * itemsize)
