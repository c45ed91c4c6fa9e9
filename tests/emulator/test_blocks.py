"""Logits cut into blocks of classes give what the whole gives: on the CPU backend, and by the CUDA kernels emulated."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from prefuse._backends import cpu
from prefuse._backends.cuda import check_values
from prefuse._backends.rows import Rows
from tests.emulator.backend import MANY, Emulated
from tests.emulator.test_agreement import hostile
from tests.emulator.test_rows import BF16, F16, F32, F64, peaked, rows, upstream

needs_compiler = pytest.mark.needs("compiler")
BACKENDS = [
    pytest.param(cpu, id="cpu"),
    pytest.param(Emulated(), id="emulated", marks=needs_compiler),
    pytest.param(Emulated(multiprocessors=MANY), id="split", marks=needs_compiler),
]
OF_THE_LABEL = {"logp": -torch.inf, "ref_logp": -torch.inf, "top1": 0.0}
"""Statistics that see the label, with their values where it is in another block."""
CUTS = {333: [0, 1, 101, 108, 109, 333], 20000: [0, 4096, 4097, 9001, 20000]}
"""Uneven blocks by width, some of one class. Labels of the hostile rows are below 64: most blocks have none."""


def blocks(case: Rows) -> list[tuple[slice, Rows]]:
    """The rows cut along their classes, each block with the columns it takes."""
    cut = [slice(*ends) for ends in pairwise(CUTS[case.logits.shape[-1]])]
    return [
        (
            columns,
            case._replace(
                logits=case.logits[..., columns],
                reference=None if case.reference is None else case.reference[..., columns],
                first_class=columns.start,
                classes=case.logits.shape[-1],
            ),
        )
        for columns in cut
    ]


def forward(backend: Any, case: Rows) -> torch.Tensor:
    out = torch.full((len(case.statistics), *case.labels.shape), 777.0, dtype=F64 if case.logits.dtype == F64 else F32)
    backend.rows_forward(case, out)
    return out


def wide(dtype: torch.dtype) -> Rows:
    """Rows of several chunks, with a soft cap."""
    x, other = (peaked(3, 20000, dtype=dtype, seed=seed) for seed in (0, 1))
    labels = torch.tensor([4096, 19999, 7])
    return rows(x, "logp,lse,entropy,ref_logp,ref_lse,kl,rkl", labels=labels, reference=other, softcap=9.0)


CASES = [pytest.param(make, dtype, id=f"{make.__name__}-{dtype}") for make in (hostile, wide) for dtype in (F32, F64)]
CASES += [pytest.param(hostile, dtype, id=f"hostile-{dtype}") for dtype in (F16, BF16)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("make", "dtype"), CASES)
def test_a_block_has_its_own_statistics(backend: Any, make: Any, dtype: torch.dtype) -> None:
    """Those of its logits alone, but for the label's, which has no mass where it is not."""
    case = make(dtype)
    for columns, block in blocks(case):
        got = forward(backend, block)
        inside = (case.labels >= columns.start) & (case.labels < columns.stop)
        local = torch.where(inside, case.labels - columns.start, 0).where(case.labels != case.ignore_index, -100)
        alone = forward(backend, block._replace(labels=local, first_class=0, classes=None))
        elsewhere = ~inside & (case.labels != case.ignore_index)
        for name, mine, expected in zip(case.statistics, got, alone, strict=True):
            if name in OF_THE_LABEL:
                lse = alone[case.statistics.index("ref_lse" if name == "ref_logp" else "lse")]
                value = torch.full_like(expected, OF_THE_LABEL[name]).where(~lse.isnan(), lse)
                expected = torch.where(elsewhere, value, expected)
            assert torch.equal(mine.nan_to_num(nan=777.0), expected.nan_to_num(nan=777.0)), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("make", "dtype"), CASES)
def test_gradients_of_blocks_are_the_whole_s(backend: Any, make: Any, dtype: torch.dtype) -> None:
    case = make(dtype)
    saved, grads, expected = forward(backend, case), upstream(case), torch.empty_like(case.logits)
    backend.rows_backward(case, grads, saved, expected)
    got = torch.empty_like(expected)
    for columns, block in blocks(case):
        backend.rows_backward(block, grads, saved, got[..., columns])
    if backend is not cpu:  # each element by itself, from the same saved values
        assert torch.equal(got.nan_to_num(nan=777.0), expected.nan_to_num(nan=777.0))
        return
    tolerance = 1e-12 if dtype == F64 else 2e-5  # without the label's logit, lse has the digits it was saved with
    rounding = max(torch.finfo(dtype).eps, tolerance)
    torch.testing.assert_close(got, expected, rtol=rounding, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_blocks_are_combined_by_their_log_sums(backend: Any) -> None:
    """What a caller does: Σ over blocks, with the weight that each has in the whole."""
    case = wide(F64)
    whole = dict(zip(case.statistics, forward(backend, case), strict=True))
    parts = [dict(zip(block.statistics, forward(backend, block), strict=True)) for _, block in blocks(case)]
    stacked = {name: torch.stack([part[name] for part in parts]) for name in case.statistics}
    lse, ref_lse = (stacked[name].logsumexp(0) for name in ("lse", "ref_lse"))
    share, ref_share = stacked["lse"] - lse, stacked["ref_lse"] - ref_lse
    gap = share - ref_share
    combined = {
        "lse": lse,
        "ref_lse": ref_lse,
        "logp": (stacked["logp"] + share).amax(0),
        "ref_logp": (stacked["ref_logp"] + ref_share).amax(0),
        "entropy": (share.exp() * (stacked["entropy"] - share)).sum(0),
        "kl": (share.exp() * (stacked["kl"] + gap)).sum(0),
        "rkl": (ref_share.exp() * (stacked["rkl"] - gap)).sum(0),
    }
    for name, value in combined.items():
        torch.testing.assert_close(value, whole[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_blocks_cover_all_leading_shapes_and_uneven_rows(backend: Any) -> None:
    """A block whose rows are those of a wider matrix, in place."""
    x = peaked(2, 3, 333, dtype=F32)
    case = rows(x, "logp,lse", labels=torch.tensor([[0, 1, 332], [101, 108, -100]]))
    saved, grads, expected = forward(backend, case), upstream(case), torch.empty_like(x)
    backend.rows_backward(case, grads, saved, expected)
    for _, block in blocks(case):
        backend.rows_backward(block, grads, saved, block.logits)
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("first_class", "classes", "message"),
    [
        (-1, 10, r"^first_class: -1, expected 0 <= first_class <= 5, which leaves the 5 classes of logits among 10$"),
        (6, 10, r"^first_class: 6, expected 0 <= first_class <= 5"),
        (0, 4, r"^classes: 4, expected at least 5, the last dimension of logits$"),
    ],
)
def test_a_block_outside_the_vocabulary_is_an_error(first_class: int, classes: int, message: str) -> None:
    case = rows(torch.zeros(2, 5), "logp", labels=torch.zeros(2, dtype=torch.int64))
    for backend in (cpu, Emulated()):
        with pytest.raises(ValueError, match=message):
            forward(backend, case._replace(first_class=first_class, classes=classes))


def test_labels_of_other_blocks_are_legal_and_others_are_not() -> None:
    case = rows(torch.zeros(2, 5), "logp", labels=torch.tensor([9, 10]), first_class=3, classes=10)
    message = r"^labels: 10 at \[1\], expected 0 <= label < 10 \(the number of classes\) or ignore_index = -100$"
    for check in (check_values, lambda block: forward(cpu, block)):
        with pytest.raises(ValueError, match=message):
            check(case)
        check(case._replace(labels=torch.tensor([9, 0])))


@needs_compiler
def test_on_cuda_a_label_outside_the_vocabulary_makes_its_row_nan() -> None:
    labels = torch.tensor([2, 9, 10, -1])
    case = rows(peaked(4, 5, dtype=F32), "logp,lse", labels=labels, first_class=3, classes=10)
    values = forward(Emulated(), case)
    assert values[:, 2:].isnan().all()
    assert values[0, :2].tolist() == [-torch.inf] * 2
    gradient = torch.empty_like(case.logits)
    Emulated().rows_backward(case, torch.ones(2, 4), values.nan_to_num(0, 0, -3.0), gradient)
    assert gradient[2:].isnan().all()
    assert gradient[:2].isfinite().all()
