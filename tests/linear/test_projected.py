"""Float32 logits of bfloat16 matrices that are never written: what runs where nothing wants a gradient."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import prefuse
import prefuse._prefuse as _prefuse
from prefuse._backends import projected
from prefuse._backends.arrays import capsule
from tests.devices import integers, normal
from tests.linear.oracle import statistics

SIZES = [(1, 1, 1), (5, 7, 3), (33, 32, 31), (64, 64, 64), (70, 100, 5000), (40, 96, 4100), (3, 576, 2049)]


@pytest.fixture(autouse=True)
def everywhere(monkeypatch):
    """Machines without matrix tiles compute the same without them, if they are told to."""
    monkeypatch.setattr(projected, "AVAILABLE", True)


def problem(rows, features, classes):
    hidden = normal(rows, features, seed=1).bfloat16()
    weight = (normal(classes, features, seed=2) * 3 / features**0.5).bfloat16()
    return hidden, weight, integers(classes, rows, seed=3)


def stats(*arguments, names=("logp", "lse"), **options):
    return prefuse.linear_token_stats(*arguments, names, logits_dtype=torch.float32, **options)


@pytest.fixture
def calls(monkeypatch):
    """How often the kernel has run."""
    made = []
    kernel = _prefuse.rows_projected
    monkeypatch.setattr(_prefuse, "rows_projected", lambda *given: made.append(kernel(*given)))
    return made


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values(sizes, calls):
    hidden, weight, labels = problem(*sizes)
    bias, temperature = normal(sizes[2], seed=4).bfloat16(), 0.5 + torch.rand(sizes[0])
    exact = statistics(hidden.double(), weight.double(), labels)
    found = stats(hidden, weight, labels)
    for name in ("logp", "lse"):
        torch.testing.assert_close(found[name].double(), exact[name], rtol=1e-6, atol=3e-6)
    exact = statistics(hidden.double() * 2, weight.double(), labels, bias=bias.double() * 2, temperature=temperature)
    found = stats(hidden, weight, labels, bias=bias, temperature=temperature, scale=2.0)
    for name in ("logp", "lse"):
        torch.testing.assert_close(found[name].double(), exact[name], rtol=1e-6, atol=2e-5)
    assert len(calls) == 2


def test_a_sequences_error():
    """471 tokens, logits of up to 40: 2e-3 nats is what they may be off by together."""
    hidden, weight = normal(471, 64, seed=1).bfloat16(), normal(3000, 64, seed=2).bfloat16()
    labels = integers(3000, 471, seed=3)
    exact = statistics(hidden.double(), weight.double(), labels)["logp"].sum()
    assert abs(stats(hidden, weight, labels).logp.double().sum() - exact) < 1e-4


def test_bits_depend_on_nothing_else(monkeypatch):
    """Neither threads, nor the other rows, nor strides: one row by itself gives what it gives in the batch."""
    hidden, weight, labels = problem(70, 100, 5000)
    whole = stats(hidden, weight, labels)
    for threads in (2, 3, 8):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        again = stats(hidden, weight, labels)
        assert torch.equal(again.logp, whole.logp) and torch.equal(again.lse, whole.lse)
    wide = torch.zeros(5000, 130, dtype=torch.bfloat16)
    wide[:, 10:110] = weight
    for row in (0, 31, 32, 69):
        one = stats(hidden[row : row + 1], wide[:, 10:110], labels[row : row + 1])
        assert (one.logp[0], one.lse[0]) == (whole.logp[row], whole.lse[row])
        column = stats(hidden[row : row + 1], weight.t().contiguous().t(), labels[row : row + 1])
        assert column.lse[0] == whole.lse[row]


def test_many_tokens_go_in_groups():
    """More hidden states than a cache holds are multiplied in turn, to the same bits."""
    hidden, weight, labels = problem(40, 2100, 70)
    many = stats(hidden.repeat(30, 1), weight, labels.repeat(30))
    one = stats(hidden, weight, labels)
    assert torch.equal(many.logp, one.logp.repeat(30)) and torch.equal(many.lse, one.lse.repeat(30))


def test_rows_that_are_not_scored():
    hidden, weight, labels = problem(70, 20, 100)
    mask = torch.arange(70) % 3 > 0
    hidden[~mask], labels[5] = float("nan"), -100
    found = stats(hidden, weight, labels, mask=mask)
    scored = mask & (labels != -100)
    exact = statistics(hidden[scored].double(), weight.double(), labels[scored])
    torch.testing.assert_close(found.logp[scored].double(), exact["logp"], rtol=1e-6, atol=3e-6)
    assert not found.logp[~scored].any() and not found.lse[~scored].any()
    nothing = stats(hidden, weight, torch.full((70,), -100))
    assert not nothing.logp.any()


def test_special_numbers():
    """Banned classes, a row of nothing else, and a NaN, which stays in its row."""
    hidden, weight, labels = problem(40, 20, 100)
    bias = torch.zeros(100)
    bias[::2] = float("-inf")
    found = stats(hidden, weight, labels, bias=bias.bfloat16())
    exact = statistics(hidden.double(), weight.double(), labels, bias=bias.double())
    torch.testing.assert_close(found.lse.double(), exact["lse"], rtol=1e-6, atol=3e-6)
    assert torch.equal(found.logp == float("-inf"), labels % 2 == 0)
    none = stats(hidden, weight, labels, bias=torch.full((100,), float("-inf")).bfloat16())
    assert bool((none.lse == float("-inf")).all()) and bool((none.logp == float("-inf")).all())
    hidden[7] = float("nan")
    found = stats(hidden, weight, labels)
    assert found.lse.isnan().nonzero().tolist() == [[7]] and found.logp.isnan().nonzero().tolist() == [[7]]


@pytest.mark.parametrize(
    "options",
    [
        {"names": ("logp", "entropy")},
        {"softcap": 30.0},
        {"label_smoothing": 0.1},
        {"support": prefuse.Support(top_k=5)},
        {"lora": (normal(3, 20, seed=5).bfloat16(), normal(100, 3, seed=6).bfloat16(), 0.5)},
    ],
    ids=str,
)
def test_what_it_does_not_compute_goes_the_other_way(options, calls):
    hidden, weight, labels = problem(40, 20, 100)
    stats(hidden, weight, labels, **options)
    stats(hidden.half(), weight.half(), labels)
    prefuse.linear_token_logps(hidden, weight, labels)
    stats(hidden.requires_grad_(), weight, labels).logp.sum().backward()
    assert not calls
    with torch.no_grad():
        stats(hidden, weight, labels)
    assert len(calls) == 1


def test_with_and_without_a_gradient_agree():
    hidden, weight, labels = problem(70, 100, 5000)
    without = stats(hidden, weight, labels).logp
    torch.testing.assert_close(
        stats(hidden.requires_grad_(), weight, labels).logp.detach(), without, rtol=1e-6, atol=3e-6
    )


def test_compiled():
    hidden, weight, labels = problem(40, 20, 100)
    compiled = torch.compile(lambda *given: stats(*given).logp, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(hidden, weight, labels), stats(hidden, weight, labels).logp)


def test_the_extension_refuses_what_does_not_match():
    hidden, weight, labels = problem(4, 20, 100)
    out = torch.empty(2, 4)

    def call(first, second, bias=None, softcap=0.0, names=3):
        rows = (("f32", (4, 100), (100, 1)), capsule(labels), None, None, 1.0, 1.0, softcap, -100, 0, 100)
        bias = None if bias is None else capsule(bias)
        _prefuse.rows_projected(rows, names, (capsule(first), capsule(second), bias), capsule(out), 1)

    for error, match, arguments in [
        (TypeError, "hidden: dtype f32, expected bf16", (hidden.float(), weight)),
        (ValueError, "weight: ", (hidden, weight[:99])),
        (ValueError, "hidden: expected rows whose elements", (hidden.t().contiguous().t(), weight)),
        (TypeError, "bias: expected contiguous f32", (hidden, weight, torch.zeros(100).bfloat16())),
        (ValueError, "rows: expected f32 logits without softcap", (hidden, weight, None, 30.0)),
        (ValueError, 'stats: "entropy", expected lse or logp', (hidden, weight, None, 0.0, 5)),
    ]:
        with pytest.raises(error, match=match):
            call(*arguments)
    with pytest.raises(ValueError, match="labels: 100 at"):
        labels[2] = 100
        call(hidden, weight)


LEVELS = ["portable", "avx2", "avx512"]


@pytest.mark.parametrize("level", LEVELS[: LEVELS.index(_prefuse.simd_level())])
def test_machines_without_tiles(level):
    """The same tests at lower levels, where products are made without tiles."""
    command = [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", __file__, "-k", "not without_tiles"]
    done = subprocess.run(
        command, env={**os.environ, "PREFUSE_SIMD": level}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
