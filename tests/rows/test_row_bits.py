"""The same row gives the same bits: whatever the threads, the neighbours, the strides; and each SIMD level is right."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from row_oracle import GRADIENTS, peaked, some_labels
from torch.utils.dlpack import to_dlpack as capsule

from prefuse import _prefuse
from prefuse._backends.rows import bits_of, names_of
from prefuse.functional import STATISTICS, token_stats

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SAVED = names_of(bits_of(("lse", "entropy", "mean_logit", "ref_lse", "kl", "logp", "rkl")))


def run(x, labels, reference, threads):
    """All statistics and the gradient of all that have one, through the extension itself."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows = (capsule(x), capsule(labels), None, capsule(reference), 0.9, 1.0, 0.0, -100, 0, x.shape[-1])
    out = torch.empty(len(STATISTICS), labels.numel(), dtype=dtype)
    _prefuse.rows_forward(rows, bits_of(STATISTICS), 10, capsule(out), threads)
    saved = torch.stack([out[STATISTICS.index(name)] for name in SAVED])
    grads = torch.tensor([0.3 * (name in GRADIENTS) * (i + 1) for i, name in enumerate(SAVED)], dtype=dtype)
    grads = grads[:, None].expand(len(SAVED), labels.numel()).contiguous()
    gradient = torch.full(x.shape, 7.0, dtype=x.dtype)
    _prefuse.rows_backward(rows, bits_of(SAVED), capsule(grads), capsule(saved), capsule(gradient), threads)
    return out, gradient


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 70001), (2, 40000), (37, 1003)])
def test_threads_do_not_change_a_bit(dtype, shape):
    """Few long rows are cut into chunks that several threads share; many rows are dealt out whole."""
    x, reference = peaked(shape, 1, dtype), peaked(shape, 2, dtype)
    labels = some_labels(shape[:1], shape[1], 1)
    out, gradient = run(x, labels, reference, 1)
    for threads in (2, 3, 8):
        again, gradient_again = run(x, labels, reference, threads)
        assert torch.equal(out, again)
        assert torch.equal(gradient, gradient_again)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_neighbours_do_not_change_a_bit(dtype):
    x, reference = peaked((19, 2051), 3, dtype), peaked((19, 2051), 4, dtype)
    labels = some_labels((19,), 2051, 3)
    out, gradient = run(x, labels, reference, 2)
    for row in (0, 7, 18):
        alone, gradient_alone = run(x[row : row + 1], labels[row : row + 1], reference[row : row + 1], 2)
        assert torch.equal(alone[:, 0], out[:, row])
        assert torch.equal(gradient_alone[0], gradient[row])


@pytest.mark.parametrize("step", [-1, 2, -3])
def test_rows_with_any_stride(step):
    """The extension follows strides that torch cannot express."""
    x = peaked((7, 260), 5).numpy()
    labels = np.arange(7)
    rows, strided = x[::step], labels[::step]
    out = np.empty((2, len(rows)), dtype=np.float32)
    call = (rows.__dlpack__(), strided.__dlpack__(), None, None, 1.0, 1.0, 0.0, -100, 0, 260)
    _prefuse.rows_forward(call, bits_of(["logp", "entropy"]), 1, out.__dlpack__(), 2)
    expected = token_stats(
        torch.from_numpy(np.ascontiguousarray(rows)),
        torch.from_numpy(np.ascontiguousarray(strided)),
        ("logp", "entropy"),
    )
    np.testing.assert_array_equal(out, torch.stack(list(expected.values())).numpy())


@pytest.mark.usefixtures("device")
def test_odd_addresses():
    """Rows that begin at any element, not at a vector's boundary."""
    store = peaked((4000,), 6)
    labels = torch.tensor([700])
    exact = None
    for offset in range(5):
        x = torch.empty(4000 + offset)[offset:].copy_(store).view(1, -1)
        values = torch.stack(list(token_stats(x, labels, ("logp", "entropy", "log_sum_sq")).values()))
        exact = values if exact is None else exact
        assert torch.equal(values, exact)


LEVEL_SCRIPT = """
import sys
sys.path[:0] = sys.argv[1:]
import torch
from prefuse import _prefuse
from row_oracle import GRADIENTS, assert_as_good_as_oracle, assert_gradient, peaked, some_labels, statistics
from prefuse.functional import STATISTICS, token_stats
for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
    for vocabulary in (1, 15, 33, 5001):
        x, reference = peaked((3, vocabulary), 1, dtype), peaked((3, vocabulary), 2, dtype)
        if vocabulary > 2:
            x[0, 1] = reference[0, 1] = float("-inf")
        x.requires_grad_()
        labels = some_labels((3,), vocabulary, 1)
        labels[0] = 0
        got = token_stats(x, labels, STATISTICS, reference_logits=reference, temperature=0.8)
        precision = got.logp.dtype
        exact = statistics(x.detach(), labels, reference, temperature=0.8)
        own = statistics(x.detach(), labels, reference, temperature=0.8, precision=precision)
        largest = 2.5 * x.detach().abs()[x.detach().isfinite()].max().item()
        for name in STATISTICS:
            assert_as_good_as_oracle(got[name].detach(), exact[name], own[name], name, largest=largest)
        sum(got[name].sum() for name in GRADIENTS).backward()
        ones = {name: torch.ones(3) for name in GRADIENTS}
        assert_gradient(x.grad, x.detach(), labels, ones, reference, temperature=0.8)
print(_prefuse.simd_level())
"""


# Rows know no more of these than vectors of AVX-512.
SAME_VECTORS = ("avx512", "avx512bf16", "amx")
OWN = "avx512" if _prefuse.simd_level() in SAME_VECTORS else _prefuse.simd_level()


@pytest.mark.parametrize("level", [level for level in ("portable", "avx2", "avx512") if level != OWN])
def test_every_simd_level_is_right(level):
    """PREFUSE_SIMD sets the level; one that the machine lacks is skipped. All other tests run at the machine's own."""
    here = os.path.dirname(__file__)
    root = os.path.dirname(os.path.dirname(here))
    environment = {**os.environ, "PREFUSE_SIMD": level}
    done = subprocess.run(
        [sys.executable, "-c", LEVEL_SCRIPT, here, root], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode and "PREFUSE_SIMD" in done.stderr:
        pytest.skip(f"this machine has no {level}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == level
