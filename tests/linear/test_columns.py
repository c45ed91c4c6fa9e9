"""Sparse gradients as a GPU makes them, by the emulator: exact where all is gathered, the strip's mean elsewhere."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import prefuse
from prefuse._backends import columns as backend
from prefuse._backends import projected
from prefuse.linear import columns, operands, operators, plans
from prefuse.linear.call import SMOOTHED
from prefuse.linear.costs import DEVICES
from tests.devices import integers, normal
from tests.linear.gathering import gathering_columns
from tests.linear.oracle import problem, statistics
from tests.linear.test_operators import arguments
from tests.linear.test_sparse import gradients, leaves

pytestmark = pytest.mark.needs("compiler")

NEXT_TO_NOTHING = 2.0**-40


@pytest.fixture(autouse=True)
def on_an_emulated_gpu():
    with gathering_columns():
        yield


def strips_of(monkeypatch, rows, most=1.0):
    """Strips of so many rows, none of which takes all columns before it has more than `most` of them."""
    for name in ("STRIP", "LONG_STRIP"):
        monkeypatch.setattr(columns, name, rows)
    monkeypatch.setattr(columns, "ALIGNED", 1)
    monkeypatch.setattr(columns, "MOST", most)


@pytest.mark.parametrize("eps", [NEXT_TO_NOTHING, 2.0**-5])
def test_of_float32_logits(eps, monkeypatch):
    """Of 16-bit matrices as they are: probabilities are made in float32, and rounded for the products alone."""
    strips_of(monkeypatch, 16)
    monkeypatch.setattr(operands, "makes_wide_tiles", lambda device: True)
    monkeypatch.setattr(projected, "AVAILABLE", False)  # a CPU's own kernel
    given = problem(tokens=60, features=77, classes=400, dtype=torch.float64)
    narrow = {name: value.to(torch.bfloat16) if value.is_floating_point() else value for name, value in given.items()}
    exact = {name: value.double() if value.is_floating_point() else value for name, value in narrow.items()}
    upstream = [normal(60, seed=11)]
    results = []
    for of, options in ((narrow, {"logits_dtype": torch.float32}), (exact, {})):
        wrt = leaves(of, "hidden", "weight", "bias")
        results.append(gradients(of, wrt, upstream, ("logp",), bias=of["bias"], sparse=eps, **options))
    (found, made), (expected, right) = results
    torch.testing.assert_close(made.logp.double(), right.logp, rtol=1e-5, atol=1e-4)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.bfloat16 and (one.double() - other).norm() < 8e-3 * other.norm()


def approximated(given, eps, strip_rows):
    """Probabilities of the scored rows as they are used, in float64, from their definition: [N, V], 0 elsewhere."""
    p = (given["hidden"].detach().double() @ given["weight"].detach().double().T).softmax(-1)
    scored = given["labels"] != -100
    own = torch.nn.functional.one_hot(given["labels"].clamp(min=0), p.shape[1]).bool()
    rest = p.masked_fill(own, 0)[scored]
    for strip in rest.split(strip_rows):
        small = ~(strip >= eps).any(0)
        tail = strip[:, small]
        if tail.sum() > 0:
            strip[:, small] = tail.sum(1, keepdim=True) * tail.sum(0) / tail.sum()
    found = torch.zeros_like(p)
    found[scored] = rest + p[scored] * own[scored]  # a label's column may be left to the mean, as any
    return found


@pytest.mark.parametrize("strip_rows", [4, 16, 64])
def test_what_is_not_gathered_is_the_strips_mean(strip_rows, monkeypatch):
    strips_of(monkeypatch, strip_rows)
    given, eps = problem(classes=300), 2.0**-6
    wrt = leaves(given, "hidden", "weight")
    upstream = normal(37, seed=10, dtype=torch.float64)
    found, made = gradients(given, wrt, [upstream], ("logp",), sparse=eps)
    assert 0 < made.plan.listed < 37 * 300 / 2
    rows = columns.strip_rows(int((given["labels"] != -100).sum()), strip_rows)
    scored = given["labels"] != -100
    p = approximated(given, eps, rows)
    pulled = torch.nn.functional.one_hot(given["labels"].clamp(min=0), 300) - p
    pulled = torch.where(scored[:, None], upstream[:, None] * pulled, 0)
    torch.testing.assert_close(found[0], pulled @ given["weight"].detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[1], pulled.T @ given["hidden"].detach(), rtol=1e-9, atol=1e-9)


def test_no_bias_adds_up_where_rows_weigh_alike(monkeypatch):
    """The sum over the rows of a strip is exact, however much is left to the mean, and so is each row's mass."""
    strips_of(monkeypatch, 64)
    given = problem(tokens=64, features=16, classes=3000)
    given["hidden"] *= 0.3
    wrt = leaves(given, "hidden", "weight")
    (exact, _), _ = gradients(given, wrt, [torch.ones(64)], ("logp",))
    (found, weight), made = gradients(given, wrt, [torch.ones(64)], ("logp",), sparse=2.0**-5)
    assert made.plan.listed < 0.1 * 64 * 3000
    assert (found - exact).norm() > 1e-3 * exact.norm()
    torch.testing.assert_close(found.sum(0), exact.sum(0), rtol=1e-9, atol=1e-9)
    # the rows of the weight's gradient, summed over classes, are (1 - Σ p)·hidden: 0
    assert weight.sum(0).abs().max() < 1e-9


def test_the_error_is_that_of_the_columns_left_out(monkeypatch):
    """Smaller with eps, and far below that of leaving them out altogether."""
    strips_of(monkeypatch, 64)
    given = problem(tokens=64, features=16, classes=3000)
    given["hidden"] *= 0.7
    given["weight"] += 1  # what rows of a head have in common
    (hidden,) = leaves(given, "hidden")
    (exact,), _ = gradients(given, [hidden], [torch.ones(64)], ("logp",))
    errors = []
    for eps in (2.0**-4, 2.0**-7, 2.0**-10):
        (found,), _ = gradients(given, [hidden], [torch.ones(64)], ("logp",), sparse=eps)
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[0] > 2 * errors[1] > 6 * errors[2] > 0
    p = (hidden.detach() @ given["weight"].T).softmax(-1)
    p[:, (p >= 2.0**-7).any(0)] = 0
    dropped = (p @ given["weight"]).norm() / exact.norm()
    assert errors[1] < 0.4 * dropped


def test_a_strip_with_many_columns_takes_all(monkeypatch):
    strips_of(monkeypatch, 16, most=0.2)
    given = problem()
    wrt = leaves(given, "hidden", "weight")
    upstream = [normal(37, seed=10, dtype=torch.float64)]
    dense, _ = gradients(given, wrt, upstream, ("logp",))
    found, made = gradients(given, wrt, upstream, ("logp",), sparse=2.0**-8)
    scored = int((given["labels"] != -100).sum())
    assert made.plan.listed >= scored * 53
    for one, other in zip(found, dense, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("classes", [64, 100, 128])
def test_lists_that_would_be_filled_up_to_the_whole_vocabulary(classes, monkeypatch):
    monkeypatch.setattr(columns, "MOST", 1.0)
    given = problem(classes=classes)
    wrt = leaves(given, "hidden", "weight")
    upstream = [normal(37, seed=10, dtype=torch.float64)]
    dense, _ = gradients(given, wrt, upstream, ("logp",))
    for eps in (2.0**-3, 2.0**-9, NEXT_TO_NOTHING):
        found, made = gradients(given, wrt, upstream, ("logp",), sparse=eps)
        whole = made.plan.listed >= classes * int((given["labels"] != -100).sum())
        for one, other in zip(found, dense, strict=True):
            assert (one - other).norm() < (1e-9 if whole else 0.2) * other.norm()
    assert whole


# -- products of 16 bits ----------------------------------------------------------------------------------------------

HALVES = [torch.bfloat16, torch.float16]


def pulled_back(given, wrt, monkeypatch, tensor_cores, strip, **options):
    """The gradients, with products by the kernels or by PyTorch, and how often kernels made one."""
    made = {"to_input": 0, "to_weight": 0}

    def counting(name, kernel):
        def call(*arguments):
            made[name] += 1
            kernel(*arguments)

        return call

    with gathering_columns(tensor_cores), monkeypatch.context() as patch:
        for name in made:
            patch.setattr(backend, name, counting(name, getattr(backend, name)))
        for name in ("STRIP", "LONG_STRIP"):
            patch.setattr(columns, name, strip)
        patch.setattr(columns, "ALIGNED", 8)
        upstream = [normal(given["hidden"].shape[0], seed=11)]
        found, result = gradients(given, wrt, upstream, ("logp",), **options)
    return found, result, made


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("most", [0.0, 1.0], ids=["all columns", "some"])
@pytest.mark.parametrize("name", ["plain", "bias and smoothing", "adapter", "frozen"])
def test_kernels_multiply_as_pytorch_does(name, dtype, most, monkeypatch):
    """Three strips, the last one shorter; to the rounding of what is added up in another order."""
    monkeypatch.setattr(columns, "MOST", most)
    given = problem(tokens=150, features=40, classes=300, dtype=dtype)
    given["hidden"] *= 0.3
    wanted, options = ["hidden", "weight"], {"sparse": 2.0**-7}
    if name == "bias and smoothing":
        wanted.append("bias")
        options |= {"bias": given["bias"], "label_smoothing": 0.2}
    if name == "frozen":
        wanted.remove("weight")
    wrt = leaves(given, *wanted)
    if name == "adapter":
        pair = [normal(8, 40, seed=20, dtype=torch.float64).to(dtype), normal(300, 8, seed=21).to(dtype)]
        wrt += [matrix.requires_grad_() for matrix in pair]
        options["lora"] = (*pair, 0.5)
    found, result, made = pulled_back(given, wrt, monkeypatch, True, 64, **options)
    expected, other, none = pulled_back(given, wrt, monkeypatch, False, 64, **options)
    assert made["to_input"] >= 1 and (made["to_weight"] >= 3) == (name != "frozen") and not any(none.values())
    assert result.plan.listed == other.plan.listed
    for one, two in zip(found, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, two, rtol=2 * torch.finfo(dtype).eps, atol=1e-3 * float(two.abs().max()))


def test_a_weight_whose_rows_begin_anywhere(monkeypatch):
    given = problem(tokens=60, features=40, classes=300, dtype=torch.bfloat16)
    wide = torch.zeros(300, 43, dtype=torch.bfloat16)
    wide[:, 3:] = given["weight"]
    results = []
    for weight in (given["weight"], wide[:, 3:]):
        given["weight"] = weight
        wrt = leaves(given, "hidden", "weight")
        found, _, made = pulled_back(given, wrt, monkeypatch, True, 64, sparse=2.0**-7)
        assert made["to_input"] and made["to_weight"]
        results.append(found)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("options", [{"features": 12}, {"features": 40, "dtype": torch.float32}])
def test_other_matrices_are_pytorch_s(options, monkeypatch):
    given = problem(tokens=60, classes=300, **{"dtype": torch.bfloat16, **options})
    _, _, made = pulled_back(given, leaves(given, "hidden", "weight"), monkeypatch, True, 64, sparse=2.0**-7)
    assert not any(made.values())


def test_lists_are_filled_up_to_what_gemms_like(monkeypatch):
    monkeypatch.setattr(columns, "LONG_STRIP", 10)
    monkeypatch.setattr(columns, "MOST", 1.0)
    given = problem(classes=900)
    wrt = leaves(given, "hidden", "weight")
    upstream = [normal(37, seed=10, dtype=torch.float64)]
    found, made = gradients(given, wrt, upstream, ("logp",), sparse=2.0**-5)
    assert made.plan.listed % columns.ALIGNED == 0
    strips_of(monkeypatch, 64)
    monkeypatch.setattr(columns, "strip_rows", lambda rows, most: min(rows, 64))
    other, _ = gradients(given, wrt, upstream, ("logp",), sparse=2.0**-5)
    for one, two in zip(found, other, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rows", [1, 1023, 1024, 1025, 2000, 5000])
def test_strips_of_a_tile_are_even(rows):
    size = columns.strip_rows(rows, columns.LONG_STRIP)
    assert 1 <= size <= min(rows, columns.LONG_STRIP)
    count = -(-rows // size)
    assert count == -(-rows // columns.LONG_STRIP) and (count == 1 or size % 64 == 0)


# -- hostile rows -----------------------------------------------------------------------------------------------------


def test_a_row_of_nan_has_a_gradient_of_nan_and_no_other_row():
    given = problem()
    given["hidden"][3] = math.nan
    (hidden,) = leaves(given, "hidden")
    (found,), _ = gradients(given, [hidden], [torch.ones(37)], ("logp",), sparse=2.0**-6)
    assert found[3].isnan().all()
    assert found[torch.arange(37) != 3].isfinite().all()
    upstream = torch.ones(37)
    upstream[3] = 0
    (found,), _ = gradients(given, [hidden], [upstream], ("logp",), sparse=2.0**-6)
    assert (found[3] == 0).all() and found.isfinite().all()


def test_nothing_but_minus_infinity():
    given = problem()
    given["bias"][:] = -math.inf
    wrt = leaves(given, "hidden")
    (found,), _ = gradients(given, wrt, [torch.ones(37)], ("logp",), bias=given["bias"], sparse=2.0**-6)
    assert (found == 0).all()


def test_no_row_is_scored():
    given = problem()
    given["labels"][:] = -100
    wrt = leaves(given, "hidden", "weight", "bias")
    found, made = gradients(given, wrt, [torch.ones(37)], ("logp",), bias=given["bias"], sparse=2.0**-6)
    assert all((gradient == 0).all() for gradient in found) and made.plan.listed == 0


@pytest.mark.parametrize("classes", [1, 2])
def test_few_classes(classes):
    given = problem(classes=classes)
    wrt = leaves(given, "hidden", "weight")
    upstream = [normal(37, seed=10, dtype=torch.float64)]
    dense, _ = gradients(given, wrt, upstream, ("logp",))
    found, _ = gradients(given, wrt, upstream, ("logp",), sparse=0.25)
    for one, other in zip(found, dense, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


# -- around it --------------------------------------------------------------------------------------------------------


def test_a_preference_loss():
    given = problem(tokens=40)
    given["labels"] = integers(53, 4, 10, seed=3)
    given["hidden"] = given["hidden"].view(4, 10, 8)
    wrt = leaves(given, "hidden", "weight")
    dense = prefuse.preference_loss("simpo", hidden=wrt[0], weight=wrt[1], labels=given["labels"])
    score = prefuse.preference_loss(
        "simpo", hidden=wrt[0], weight=wrt[1], labels=given["labels"], sparse=NEXT_TO_NOTHING
    )
    assert score.plan.name == "columns"
    expected = torch.autograd.grad(dense.loss, wrt)
    for one, other in zip(torch.autograd.grad(score.loss, wrt), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_the_plan_says_what_it_does():
    given = problem(classes=300)
    wrt = leaves(given, "hidden", "weight")
    _, made = gradients(given, wrt, [torch.ones(37)], ("logp",), sparse=2.0**-3)
    said = repr(made.plan)
    assert "columns" in said and "% of all, in place of 2 GEMMs" in said
    assert made.plan.kept_bytes == made.plan.listed * 8


@pytest.mark.parametrize("name", ["entropy", "kl", "rkl"])
def test_statistics_that_columns_do_not_carry(name):
    given = problem()
    options = {"reference_hidden": given["hidden"].clone()} if name != "entropy" else {}
    leaves(given, "hidden")
    message = f"sparse: expected gradients through logp, lse, mean_logit alone on cpu, got one through {name}, "
    with pytest.raises(ValueError, match=message):
        prefuse.linear_token_stats(
            given["hidden"], given["weight"], given["labels"], ("logp", name), sparse=0.01, **options
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"softcap": 3.0}, "softcap: expected None with sparse"),
        ({"softcap": 3.0, "label_smoothing": 0.1}, "softcap: expected None with sparse"),
        ({"plan": "lists"}, 'it is for hidden states elsewhere.*name "columns"'),
        ({"plan": "keep"}, 'its gradients are dense.*name "columns"'),
    ],
)
def test_what_columns_do_not_carry(options, message):
    given = problem()
    leaves(given, "hidden")
    with pytest.raises(ValueError, match=message):
        prefuse.linear_token_logps(given["hidden"], given["weight"], given["labels"], sparse=0.01, **options)


def test_tiles_have_whole_strips():
    job = plans.Job(8192, 4096, 128256, 2, hidden=True, eps=2.0**-12, on_gpu=True, device=DEVICES["h200"])
    chosen = plans.choose(job)
    assert (chosen.name, chosen.tile, chosen.tiles) == ("columns", (2048, 128256), 4)
    assert plans.choose(dataclasses.replace(job, rows=2000)).tile == (2000, 128256)
    assert plans.choose(job, 1 << 27).tile[0] < 512  # no room for a strip


def test_columns_are_for_sparse_alone():
    job = plans.Job(10, 8, 53, 4, hidden=True, on_gpu=True)
    with pytest.raises(ValueError, match="ask for them by sparse="):
        plans.choose(job, plan="columns")


@pytest.mark.parametrize(
    "options",
    [
        {"wants": (True, True, True), "stats": "logp,lse"},
        {"wants": (True, False, False), "live": False, "lora": True},
        {"wants": (False, True, False), "temperatures": True},
        {"wants": (True, True, True), "stats": SMOOTHED},
    ],
    ids=["all", "hidden", "weight", "smoothed"],
)
def test_opcheck(options):
    torch.library.opcheck(operators.linear_token_stats, arguments("columns", eps=0.1, **options))


def test_statistics_of_the_oracle_are_the_same():
    given = problem()
    leaves(given, "hidden")
    made = prefuse.linear_token_stats(given["hidden"], given["weight"], given["labels"], ("logp", "lse"), sparse=0.01)
    for name, expected in statistics(given["hidden"].detach(), given["weight"], given["labels"]).items():
        if name in made:
            torch.testing.assert_close(made[name].detach(), expected)
