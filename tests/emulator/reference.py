"""Token statistics in float64 PyTorch, written from the table in the design: the truth for every backend."""

from __future__ import annotations

import torch

from prefuse._backends.rows import Rows

NEGATIVE_INFINITY = float("-inf")


def transform(rows: Rows, x: torch.Tensor) -> torch.Tensor:
    """z [*lead, V] of raw logits."""
    temperature = rows.temperature if rows.temperatures is None else rows.temperatures.double().unsqueeze(-1)
    scaled = rows.scale * x.double()
    return (rows.softcap * torch.tanh(scaled / rows.softcap) if rows.softcap else scaled) / temperature


def live(rows: Rows) -> torch.Tensor:
    """Which rows are not ignored."""
    kept = rows.labels != rows.ignore_index
    return kept if rows.mask is None else kept & rows.mask


def statistics(rows: Rows, logits: torch.Tensor | None = None) -> torch.Tensor:
    """The statistics of `rows` [S, *lead] in float64, differentiable with respect to `logits` (a float64 stand-in)."""
    x = rows.logits.double() if logits is None else logits
    keep = live(rows)
    x = torch.where(keep.unsqueeze(-1), x, 0.0)
    z = transform(rows, x)
    label = torch.where(keep, rows.labels, 0).unsqueeze(-1)
    lse = torch.logsumexp(z, -1)
    log_p = z - lse.unsqueeze(-1)
    p = log_p.exp()
    ranked = torch.sort(p, -1, descending=True).values[..., : rows.k]
    mass = ranked.sum(-1)
    values = {
        "logp": log_p.gather(-1, label).squeeze(-1),
        "lse": lse,
        "entropy": -_weighted(p, log_p),
        "log_sum_sq": torch.logsumexp(2 * log_p, -1),
        "mean_logit": z.mean(-1),
        "top1": (x.argmax(-1) == label.squeeze(-1)).double(),
        "topk_mass": mass,
        "topk_entropy": -_weighted(ranked / mass.unsqueeze(-1), (ranked / mass.unsqueeze(-1)).log()),
    }
    if rows.reference is not None:
        w = transform(rows, torch.where(keep.unsqueeze(-1), rows.reference.double(), 0.0))
        ref_lse = torch.logsumexp(w, -1)
        log_q = w - ref_lse.unsqueeze(-1)
        values["ref_logp"] = log_q.gather(-1, label).squeeze(-1)
        values["ref_lse"] = ref_lse
        values["kl"] = _weighted(p, log_p - log_q)
        values["rkl"] = _weighted(log_q.exp(), log_q - log_p)
    return torch.where(keep, torch.stack([values[name] for name in rows.statistics]), 0.0)


def gradient(rows: Rows, grads: torch.Tensor) -> torch.Tensor:
    """d(Σ grads·statistics)/dlogits in float64."""
    logits = rows.logits.double().requires_grad_()
    (result,) = torch.autograd.grad((statistics(rows, logits) * grads.double()).sum(), logits)
    return result


def _weighted(p: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Σ p·value with 0·inf = 0."""
    return torch.where(p > 0, p * torch.where(p > 0, value, 0.0), 0.0).sum(-1)
