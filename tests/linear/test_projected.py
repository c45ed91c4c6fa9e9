"""Float32 logits of bfloat16 matrices that are never written: statistics without a gradient, and lists for one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.utils.dlpack import to_dlpack as capsule

import prefuse
import prefuse._prefuse as _prefuse
from prefuse._backends import lists as backend
from prefuse._backends import projected
from prefuse._backends.rows import Rows, bits_of
from tests.devices import integers, normal, uniform
from tests.linear.oracle import statistics

SIZES = [(1, 1, 1), (5, 7, 3), (33, 32, 31), (64, 64, 64), (70, 100, 5000), (40, 96, 4100), (3, 576, 2049)]


@pytest.fixture(autouse=True)
def everywhere(monkeypatch):
    """Machines for which it is not fast compute the same, if they are told to."""
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
    bias, temperature = normal(sizes[2], seed=4).bfloat16(), 0.5 + uniform(sizes[0], seed=5)
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


# -- lists ------------------------------------------------------------------------------------------------------------


def whole_numbers(rows, features, classes):
    """Logits that every order of additions gives to the bit."""
    hidden = (integers(5, rows, features, seed=1) - 2).bfloat16()
    weight = ((integers(5, classes, features, seed=2) - 2) / 4).bfloat16()
    return hidden, weight, integers(classes, rows, seed=3)


def listed(hidden, weight, labels, sampling, bias=None, temperature=1.0, scale=1.0):
    """Statistics and lists of float32 logits that are not written, and of such that are."""
    made = projected.Projected(hidden, weight, bias, labels, temperature, scale, -100)
    table, numbers = torch.empty(2, len(labels)), torch.arange(len(labels)) + 5
    lists = made.lists(table, numbers, sampling)
    logits = hidden.float() @ weight.float().t() + (0 if bias is None else bias.float())
    per_row = temperature if isinstance(temperature, torch.Tensor) else None
    bits = bits_of(("logp", "lse"))
    rows = Rows(
        logits, labels, None, None, per_row, 1.0 if per_row is not None else temperature, scale, 0.0, -100, bits, 10
    )
    written = torch.empty(2, len(labels))
    return (table, lists), (written, backend.make(rows, written, True, numbers, sampling))


def places(lists):
    rows = torch.arange(len(lists.lengths)).repeat_interleave(lists.lengths)
    return torch.stack([rows, lists.classes]).tolist()


@pytest.mark.parametrize("eps", [1.0, 2.0**-5, 2.0**-12, 2.0**-30], ids=str)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (5, 7, 3), (33, 32, 31), (70, 100, 5000), (40, 16, 4100)], ids=str)
def test_lists_are_those_of_the_same_logits(sizes, eps):
    hidden, weight, labels = whole_numbers(*sizes)
    labels[-1] = -100 if sizes[0] > 5 else labels[-1]
    bias, temperature = integers(4, sizes[2], seed=4).bfloat16(), 0.5 + uniform(sizes[0], seed=5)
    for options in ({}, {"bias": bias, "temperature": temperature, "scale": 2.0}, {"temperature": 4.0}):
        (table, found), (written, expected) = listed(hidden, weight, labels, backend.Sampling(eps, 3, 4), **options)
        torch.testing.assert_close(table, written, rtol=1e-6, atol=1e-5)
        assert places(found) == places(expected)
        torch.testing.assert_close(found.values, expected.values, rtol=1e-5, atol=0)
        torch.testing.assert_close(found.at_label, expected.at_label, rtol=1e-4, atol=1e-6)


def test_lists_depend_on_neither_threads_nor_other_rows(monkeypatch):
    hidden, weight, labels = problem(70, 100, 9000)
    sampling = backend.Sampling(2.0**-8, 1, 0)
    (table, whole), _ = listed(hidden, weight, labels, sampling)
    for threads in (2, 3, 8):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        (again, lists), _ = listed(hidden, weight, labels, sampling)
        assert torch.equal(again, table) and all(torch.equal(a, b) for a, b in zip(lists, whole, strict=True))
    for row in (0, 31, 32, 69):
        made = projected.Projected(hidden[row : row + 1], weight, None, labels[row : row + 1], 1.0, 1.0, -100)
        alone = made.lists(torch.empty(2, 1), torch.tensor([row + 5]), sampling)
        before = int(whole.lengths[:row].sum())
        own = slice(before, before + int(whole.lengths[row]))
        assert torch.equal(alone.classes, whole.classes[own]) and torch.equal(alone.values, whole.values[own])


def test_special_numbers_in_lists():
    hidden, weight, labels = problem(40, 20, 100)
    bias = torch.zeros(100).bfloat16()
    bias[::2] = float("-inf")
    (_, found), _ = listed(hidden, weight, labels, backend.Sampling(2.0**-30, 0, 0), bias=bias)
    assert len(found.classes) and bool((found.classes % 2 == 1).all())
    (_, none), _ = listed(
        hidden, weight, labels, backend.Sampling(1.0, 0, 0), bias=torch.full_like(bias, float("-inf"))
    )
    assert not none.lengths.any()
    hidden[7] = float("nan")
    (_, found), _ = listed(hidden, weight, labels, backend.Sampling(1.0, 0, 0))
    assert found.lengths[7] == 99 and found.values.isnan().sum() == 99 and bool(found.at_label[:, 7].isnan().all())


def test_the_mean_of_sparse_gradients_is_the_exact_one():
    """Over seeds as 1/√n, with the predicted variance; statistics have the digits of float32."""
    hidden, weight, labels = problem(50, 64, 600)
    wide, of_weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    exact = statistics(wide, of_weight, labels)["logp"]
    exact_gradients = torch.autograd.grad(exact.sum(), (wide, of_weight))
    hidden.requires_grad_()
    weight.requires_grad_()
    eps, sums = 2.0**-5, [0, 0]
    for seed in range(256):
        logps = prefuse.linear_token_logps(
            hidden, weight, labels, sparse=prefuse.Sparse(eps, seed=seed), logits_dtype=torch.float32
        )
        torch.testing.assert_close(logps.detach().double(), exact.detach(), rtol=1e-6, atol=3e-6)
        for i, gradient in enumerate(torch.autograd.grad(logps.sum(), (hidden, weight))):
            sums[i] = sums[i] + gradient.double()
    p = (hidden.detach().double() @ weight.detach().double().t()).softmax(-1)
    variance = (p * (eps - p)).clamp(min=0)
    variance[torch.arange(50), labels] = 0
    for i, factor, matrix in ((0, variance, weight), (1, variance.t(), hidden)):
        squared = (factor @ matrix.detach().double().square().sum(-1)).sum() / 256
        rounding = (exact_gradients[i].norm() * 2**-9) ** 2
        error = (sums[i] / 256 - exact_gradients[i]).square().sum()
        assert 0.5 * squared < error < 1.6 * squared + rounding, (i, error, squared, rounding)


def test_which_lists_it_makes(monkeypatch):
    """Of bfloat16 without an adapter or a soft cap, where float32 logits are asked for."""
    made, kernel = [], _prefuse.projected_lists

    def counted(*given):
        made.append(1)
        return kernel(*given)

    monkeypatch.setattr(_prefuse, "projected_lists", counted)
    hidden, weight, labels = problem(40, 20, 100)
    hidden.requires_grad_()
    lora = (normal(3, 20, seed=5).bfloat16(), normal(100, 3, seed=6).bfloat16(), 0.5)
    for calls, options in (
        (1, {}),
        (0, {"logits_dtype": None}),
        (0, {"softcap": 30.0}),
        (0, {"lora": lora}),
        (0, {"sparse": "auto"}),
        (0, {"sparse": None}),
    ):
        made.clear()
        logps = prefuse.linear_token_logps(
            hidden, weight, labels, **{"sparse": 2.0**-8, "logits_dtype": torch.float32, **options}
        )
        torch.autograd.grad(logps.sum(), hidden)
        assert len(made) == calls, options
    made.clear()
    given = stats(hidden, weight, labels, names=("logp", "entropy"), sparse=2.0**-8)
    torch.autograd.grad((given.logp + given.entropy).sum(), hidden)
    assert not made and given.plan.name == "lists"
    score = prefuse.preference_loss(
        "simpo",
        hidden=hidden.view(4, 10, 20),
        weight=weight,
        labels=labels.view(4, 10),
        sparse=2.0**-8,
        logits_dtype=torch.float32,
    )
    score.loss.backward()
    assert len(made) == 1 and score.plan.name == "lists"


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


LEVELS = ["portable", "avx2", "avx512", "avx512bf16", "amx"]


@pytest.mark.parametrize("level", [level for level in LEVELS if level != _prefuse.simd_level()])
def test_other_ways_to_multiply(level):
    """The same tests at other levels, where products are made otherwise."""
    command = [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", __file__, "-k", "not other_ways"]
    done = subprocess.run(
        command, env={**os.environ, "PREFUSE_SIMD": level}, capture_output=True, text=True, check=False
    )
    if "PREFUSE_SIMD: " in done.stdout + done.stderr:
        pytest.skip(f"this machine has no {level}")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
