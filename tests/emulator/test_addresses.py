"""A million tokens by 262144 classes: offsets up to 2³⁸ elements, on the CPU and by the CUDA kernels emulated."""

from __future__ import annotations

import pytest
import torch
from torch.utils.dlpack import to_dlpack as capsule

import prefuse
from prefuse import _prefuse
from prefuse._backends import cpu
from prefuse._backends.rows import Rows
from prefuse.linear.plans import Job, choose
from tests.emulator.backend import Emulated
from tests.emulator.test_rows import BF16, peaked, rows, upstream
from tests.reserved import reserve

TOKENS, CLASSES = 1 << 20, 1 << 18
STATISTICS = "logp,lse,entropy"
LAST = 3
"""Rows at the end that are scored."""


@pytest.fixture
def logits() -> torch.Tensor:
    """[TOKENS, CLASSES], zeros but for the last rows."""
    made = reserve(TOKENS * CLASSES).view(TOKENS, CLASSES)
    made[-LAST:] = peaked(LAST, CLASSES, dtype=BF16)
    return made


def far_and_near(logits: torch.Tensor) -> tuple[Rows, Rows]:
    """All rows with the last ones scored, and these as a small tensor of their own."""
    labels = torch.full((TOKENS,), -100)
    labels[-LAST:] = torch.tensor([5, CLASSES - 1, CLASSES // 2])
    far = rows(logits, STATISTICS, labels=labels)
    return far, far._replace(logits=logits[-LAST:].clone(), labels=labels[-LAST:])


def forward(backend, case: Rows) -> torch.Tensor:
    out = torch.zeros(len(case.statistics), *case.labels.shape)
    backend.rows_forward(case, out)
    return out


@pytest.mark.needs("sparse_memory")
def test_statistics_of_the_last_rows(logits):
    far, near = far_and_near(logits)
    got = forward(cpu, far)
    assert torch.equal(got[:, -LAST:], forward(cpu, near))
    assert not got[:, :-LAST].any()


@pytest.mark.needs("sparse_memory")
def test_gradients_of_rows_that_lie_far_apart(logits):
    """Four rows, the first and the last of all among them: the others would have to be written with zeros."""
    step = (TOKENS - 1) // 3
    far = logits[::step]
    assert 3 * step == TOKENS - 1 and far.shape[0] == 4
    far.copy_(peaked(4, CLASSES, dtype=BF16, seed=1))
    near = rows(far.clone(), STATISTICS, labels=torch.tensor([5, 7, CLASSES - 1, CLASSES // 2]))
    grads, saved = upstream(near), forward(cpu, near)
    expected = torch.empty_like(near.logits)
    cpu.rows_backward(near, grads, saved, expected)
    assert torch.equal(forward(cpu, near._replace(logits=far)), saved)
    cpu.rows_backward(near._replace(logits=far), grads, saved, far)
    assert torch.equal(far, expected)


@pytest.mark.needs("sparse_memory")
@pytest.mark.needs("compiler")
def test_the_last_row_of_the_kernels(logits):
    far, near = far_and_near(logits)
    last = near._replace(logits=near.logits[-1:], labels=near.labels[-1:])
    saved = forward(Emulated(), last)
    assert torch.equal(forward(Emulated(blocks=(TOKENS - 1, TOKENS)), far)[:, -1:], saved)
    expected, grads = torch.empty_like(last.logits), upstream(last)
    Emulated().rows_backward(last, grads, saved, expected)
    spread = [torch.zeros(3, TOKENS) for _ in range(2)]
    for whole, own in zip(spread, (grads, saved), strict=True):
        whole[:, -1:] = own
    (launch,) = _prefuse.cuda_plan_rows_backward(
        last.arguments(), last.stats, capsule(grads), capsule(saved), capsule(expected)
    )
    blocks = launch["grid"]  # of one row
    Emulated(blocks=(blocks * (TOKENS - 1), blocks * TOKENS)).rows_backward(far, *spread, logits)
    assert torch.equal(logits[-1:], expected)
    assert torch.equal(logits[-LAST:-1], near.logits[:-1])


@pytest.mark.parametrize("weight", [False, True])
@pytest.mark.parametrize("name", [None, "recompute"])
def test_plans_count_beyond_32_bits(name, weight):
    job = Job(rows=TOKENS, features=4096, classes=CLASSES, itemsize=2, hidden=True, weight=weight)
    plan = choose(job, plan=name)
    (height, width), budget = plan.tile, 256 << 20
    assert width == CLASSES and height * plan.tiles >= TOKENS > height * (plan.tiles - 1)
    assert plan.tile_bytes == height * job.row_bytes <= budget
    if plan.name == "recompute":
        height, width = plan.backward_tile
        assert 0 < height * width * job.itemsize <= budget
    kept = choose(job, workspace_bytes=1 << 50, plan="keep")
    assert kept.kept_bytes == 2**39


def test_such_a_head_explained(capsys):
    hidden = torch.empty(1024, TOKENS // 1024, 64, dtype=BF16, device="meta", requires_grad=True)
    weight = torch.empty(CLASSES, 64, dtype=BF16, device="meta", requires_grad=True)
    labels = torch.empty(hidden.shape[:-1], dtype=torch.int64, device="meta")
    plan = prefuse.explain("simpo", hidden=hidden, weight=weight, labels=labels, workspace_bytes=2 << 30)
    assert plan.job.rows == TOKENS and plan.job.classes == CLASSES
    assert "512 GiB of logits" in capsys.readouterr().out
