"""Batches for the tests that need a device: made on the CPU, so that both backends can be given the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefuse.functional import STATISTICS, token_stats
from tests.devices import integers, normal, uniform

GRADIENTS = ("logp", "lse", "entropy", "mean_logit", "kl", "rkl")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Batch(NamedTuple):
    """Logits [*lead, V] of a policy and a reference, labels and mask [*lead]."""

    logits: Tensor
    reference: Tensor
    labels: Tensor
    mask: Tensor

    def to(self, device: Any) -> Batch:
        return Batch(*(tensor.to(device) for tensor in self))


def batch(*lead: int, vocabulary: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Batch:
    """Random rows, some of them confident; one in five is masked."""
    logits, reference = (3 * normal(*lead, vocabulary, seed=seed + at, dtype=torch.float64) for at in (0, 1))
    labels = integers(vocabulary, *lead, seed=seed)
    confident = uniform(*lead, seed=seed) < 0.3
    logits.scatter_add_(-1, labels[..., None], torch.where(confident, 25.0, 0.0).double()[..., None])
    return Batch(logits.to(dtype), reference.to(dtype), labels, uniform(*lead, seed=seed + 1) < 0.8)


def statistics(rows: Batch, names: Sequence[str] = STATISTICS, **options: Any) -> Tensor:
    """The statistics, stacked."""
    values = token_stats(
        rows.logits, rows.labels, names, reference_logits=rows.reference, mask=rows.mask, **options
    ).values()
    return torch.stack(list(values))


def gradient(rows: Batch, names: Sequence[str] = GRADIENTS, **options: Any) -> Tensor:
    """d(Σ weights·statistics)/dlogits, the weights different for every statistic and row."""
    leaf = rows.logits.detach().requires_grad_()
    values = statistics(rows._replace(logits=leaf), names, **options)
    weights = torch.linspace(-1, 2, values.numel(), dtype=torch.float64).view(values.shape).to(values)
    (pulled,) = torch.autograd.grad(values, leaf, weights)
    return pulled


def in_a_new_process(program: str, **environment: str) -> str:
    """What `program` prints; its failure is this process's."""
    import os

    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
