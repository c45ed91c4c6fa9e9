"""`sparse="auto"`: lists where they are short and exact enough, dense gradients elsewhere."""

from __future__ import annotations

import functools

import pytest
import torch

import prefuse
from prefuse.bench import head
from prefuse.linear import automatic

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def somewhat_longer(monkeypatch):
    """Lists of 8 rows differ with the rounding of a GEMM; what is tested does not stand on the edge."""
    monkeypatch.setattr(automatic, "LONGEST", dict.fromkeys(automatic.LONGEST, 1 / 45))


@functools.cache
def like_a_model():
    """2 048 tokens, 49 152 classes."""
    return head.like_a_model(2, 512, 24, 49152)


def run(batch, stats=("logp",), sparse="auto", **options):
    hidden = batch.hidden.detach().flatten(0, 1).requires_grad_()
    labels = batch.labels.flatten()
    made = prefuse.linear_token_stats(hidden, batch.weight, labels, stats, sparse=sparse, **options)
    (gradient,) = torch.autograd.grad(sum(value.sum() for value in made.values() if value.requires_grad), hidden)
    return made.plan, gradient


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 1.25, "scale": 1.25}, {"label_smoothing": 0.1}],
    ids=["plain", "scaled", "smoothed"],
)
def test_a_trained_models_rows_are_listed(options):
    torch.manual_seed(1)
    plan, gradient = run(like_a_model(), **options)
    assert plan.name == "lists" and 2**-14 <= plan.job.eps <= 2**-11
    assert plan.listed / plan.job.rows < 49152 / 45
    exact = run(like_a_model(), sparse=None, **options)[1].double()
    assert (gradient - exact).norm() / exact.norm() < 1.2 * 2**-8


def test_its_estimate_is_the_error():
    batch = like_a_model()
    hidden = batch.hidden.detach().flatten(0, 1)[:256]
    labels = batch.labels.flatten()[:256]
    found, exact = [], None
    for eps in (None, 2.0**-10):
        leaf = hidden.clone().float().requires_grad_()
        sparse = None if eps is None else prefuse.Sparse(eps, seed=5)
        logps = prefuse.linear_token_logps(leaf, batch.weight.float(), labels, sparse=sparse)
        (gradient,) = torch.autograd.grad(logps.sum(), leaf)
        exact = gradient if eps is None else exact
        found.append(gradient)
    true = float((found[1] - exact).norm() / exact.norm())
    call = request_of(hidden.float(), batch.weight.float(), labels)
    part = call.part(0, 256)
    rows = call.tile(part, call.buffer(256))
    sampling = automatic.Sampling(2.0**-10, 0, 0)
    lists = automatic.backend.make(rows, call.new_table(256), True, torch.arange(256), sampling)
    assert true / 1.3 < automatic._error(call, part, lists, 2.0**-10) < 1.5 * true


def request_of(hidden, weight, labels):
    from prefuse._backends.rows import bits_of
    from prefuse.linear import operators

    zeros = (None, None, 1.0, 1.0, 0.0, -100)
    given = (
        [hidden],
        [weight],
        None,
        [],
        labels,
        *zeros,
        bits_of(("logp", "lse")),
        0,
        10,
        0.0,
        "forward",
        256,
        0,
        0,
        [False] * 3,
    )
    return operators.Request(
        *given, False, "", 0, len(weight), False, 0.0, -1, 0, 0, False, False, torch.arange(len(labels))
    ).call()


@pytest.mark.parametrize("case", ["flat", "float32", "few rows", "few classes", "entropy", "soft cap", "ZeRO-3"])
def test_everything_else_is_dense(case, monkeypatch):
    batch, options = like_a_model(), {}
    if case == "flat":
        batch = head.inputs(2, 512, 24, 49152)
    if case == "float32":
        batch = head.Batch(batch.hidden.detach().float(), batch.weight.float(), batch.labels)
    if case == "few rows":
        batch = head.Batch(batch.hidden[:, :100], batch.weight, batch.labels[:, :100])
    if case == "few classes":
        batch = head.inputs(2, 512, 24, 9000)
    if case == "entropy":
        options = {"stats": ("logp", "entropy")}
    if case == "soft cap":
        options = {"softcap": 30.0}
    if case == "ZeRO-3":
        monkeypatch.setattr(automatic, "is_zero3", lambda _: True)
    if case != "flat":
        monkeypatch.setattr(automatic, "_look", lambda *_: pytest.fail("looked at rows for nothing"))
    plan, _ = run(batch, **options)
    assert plan.name == "single-pass"


def test_the_loss_of_preferences_takes_it():
    batch = like_a_model()
    score = prefuse.preference_loss(
        "simpo", hidden=batch.hidden, weight=batch.weight, labels=batch.labels, sparse="auto"
    )
    assert score.plan.name == "lists"
    with torch.no_grad():
        score = prefuse.preference_loss(
            "simpo", hidden=batch.hidden, weight=batch.weight, labels=batch.labels, sparse="auto"
        )
    assert score.plan.name == "forward"


def test_where_nothing_can_be_looked_at_it_is_dense():
    hidden = torch.empty(4, 1024, 64, dtype=torch.bfloat16, device="meta", requires_grad=True)
    weight = torch.empty(49152, 64, dtype=torch.bfloat16, device="meta")
    labels = torch.empty(4, 1024, dtype=torch.int64, device="meta")
    assert prefuse.linear_token_stats(hidden, weight, labels, sparse="auto").plan.name == "single-pass"
