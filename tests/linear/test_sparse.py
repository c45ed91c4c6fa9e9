"""Sparse gradients: unbiased, with the variance that was promised, the same on however many threads."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import prefuse
from prefuse._backends import lists as backend
from prefuse._backends.rows import Rows, bits_of
from prefuse.linear import operators
from prefuse.linear.call import SMOOTHED
from prefuse.linear.sparse import Sparse
from tests.devices import integers, normal, uniform
from tests.linear.oracle import problem, statistics
from tests.linear.test_operators import arguments

EPS = 2.0**-5


def rows_of(logits, labels, **changes):
    given = {"temperature": 1.0, "scale": 1.0, "softcap": 0.0, **changes}
    return Rows(
        logits,
        labels,
        None,
        None,
        None,
        given["temperature"],
        given["scale"],
        given["softcap"],
        -100,
        bits_of(("logp", "lse")),
        10,
    )


def listed(logits, labels, eps=EPS, seed=0, step=0, numbers=None, **changes):
    """The lists as a dense [M, V]: 0 where nothing is listed, and at the labels; and what belongs to the labels."""
    table = torch.empty(2, *labels.shape, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)
    numbers = torch.arange(len(labels)) if numbers is None else numbers
    made = backend.make(rows_of(logits, labels, **changes), table, True, numbers, backend.Sampling(eps, seed, step))
    dense = torch.zeros(logits.shape, dtype=table.dtype)
    dense[torch.arange(len(labels)).repeat_interleave(made.lengths), made.classes] = made.values
    return dense, made.at_label


def gradients(given, wrt, upstream, names=("logp", "lse"), **options):
    made = prefuse.linear_token_stats(*(given[name] for name in ("hidden", "weight", "labels")), names, **options)
    loss = sum((value * grad).sum() for value, grad in zip(made.values(), upstream, strict=False))
    return torch.autograd.grad(loss, wrt), made


def leaves(given, *names):
    for name in names:
        given[name].requires_grad_()
    return [given[name] for name in names]


# -- what is listed ---------------------------------------------------------------------------------------------------


def test_a_probability_is_listed_as_it_is_or_as_eps_as_often_as_it_says():
    logits, labels = 2 * normal(6, 40, seed=1, dtype=torch.float64), torch.arange(6)
    p = logits.softmax(-1)
    found = torch.stack([listed(logits, labels, seed=seed)[0] for seed in range(2000)])
    own = torch.nn.functional.one_hot(labels, 40).bool()
    large = (p >= EPS) & ~own
    small = (p < EPS) & ~own
    torch.testing.assert_close(found[:, large], p[large].expand(2000, -1), rtol=1e-12, atol=0)
    assert (found[:, own] == 0).all()
    assert set(found[:, small].unique().tolist()) == {0.0, EPS}
    times = (found[:, small] > 0).double().sum(0)
    expected = 2000 * p[small] / EPS
    spread = (expected * (1 - p[small] / EPS)).sqrt()
    assert ((times - expected).abs() < 4.5 * spread).all()
    # independent of each other: the number of entries of a row is a sum of independent draws
    lengths = (found * small > 0).double().sum(-1)
    variance = (p / EPS * (1 - p / EPS) * small).sum(-1)
    torch.testing.assert_close(lengths.var(0), variance, rtol=0.2, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_rows_mass_is_one_in_expectation(dtype):
    logits, labels = (3 * normal(64, 5000, seed=2)).to(dtype), integers(5000, 64, seed=3)
    mass = 0
    for seed in range(64):
        dense, at_label = listed(logits, labels, eps=2.0**-9, seed=seed)
        mass = mass + dense.double().sum(-1) + at_label[1].double()
    p = logits.double().softmax(-1)
    spread = (p * (2.0**-9 - p)).clamp(min=0).sum(-1).sqrt() / 8
    assert ((mass / 64 - 1).abs() < 4 * spread + 1e-5).all()


def test_the_label_is_exact_however_confident():
    logits = torch.tensor([[15.0, 0.0, 1.0], [0.0, 15.0, 1.0]], dtype=torch.float32)
    _, at_label = listed(logits, torch.tensor([0, 0]))
    p = logits.double().softmax(-1)[:, 0]
    rest = logits.double().softmax(-1)[:, 1:].sum(-1)
    torch.testing.assert_close(at_label[1].double(), p, rtol=1e-6, atol=0)
    torch.testing.assert_close(at_label[0].double(), rest, rtol=1e-6, atol=0)


def test_a_probability_of_eps_is_always_listed():
    dense, _ = listed(torch.zeros(50, 4), torch.zeros(50, dtype=torch.int64), eps=0.25)
    assert (dense[:, 1:] == 0.25).all() and (dense[:, 0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_ties_below_eps_are_drawn_apart(dtype):
    """All classes equal: 1/eps entries a row in the mean, in different places in each row."""
    dense, _ = listed(torch.full((100, 3000), 5.0, dtype=dtype), torch.zeros(100, dtype=torch.int64), eps=0.01)
    lengths = (dense > 0).sum(-1).double()
    assert abs(lengths.mean() - 100) < 4 * math.sqrt(100 / 100)
    assert abs(lengths.var() - 97) < 60
    assert ((dense[0] > 0) & (dense[1] > 0)).sum() < 20


def test_what_cannot_happen_is_never_listed():
    logits = normal(30, 200, seed=4)
    logits[:, 50:] = -math.inf
    logits[7] = -math.inf
    for eps in (1.0, EPS, 2.0**-40):
        dense, at_label = listed(logits, torch.full((30,), 60), eps=eps)
        assert (dense[:, 50:] == 0).all() and (dense[7] == 0).all()
        assert (at_label[0, :7] == 1).all() and (at_label[:, 7] == 0).all() and (at_label[1] == 0).all()


def test_one_class_has_nothing_to_list():
    dense, at_label = listed(torch.tensor([[3.0]]), torch.tensor([0]))
    assert dense.tolist() == [[0.0]] and at_label.tolist() == [[0.0], [1.0]]


def test_a_nan_row_is_nan():
    logits = normal(2, 50, seed=5)
    logits[1, 3] = math.nan
    dense, at_label = listed(logits, torch.tensor([1, 1]))
    assert dense[0].isfinite().all() and dense[1].isnan().sum() == 49 and at_label[:, 1].isnan().all()


def test_the_transform_is_part_of_the_values():
    logits, labels = normal(5, 60, seed=6, dtype=torch.float64), torch.arange(5)
    options = {"temperature": 0.7, "scale": 1.5, "softcap": 2.0}
    dense, at_label = listed(logits, labels, eps=2.0**-40, **options)
    x = logits.clone().requires_grad_()
    z = 2.0 * torch.tanh(1.5 * x / 2.0) / 0.7
    (slope,) = torch.autograd.grad(z.sum(), x)
    expected = z.softmax(-1) * slope
    own = torch.nn.functional.one_hot(labels, 60).bool()
    torch.testing.assert_close(dense, expected.masked_fill(own, 0))
    torch.testing.assert_close(at_label[1], expected[own])
    torch.testing.assert_close(at_label[0], (slope - expected)[own])


def test_lists_depend_on_the_numbers_of_row_and_class_alone():
    logits, labels = 2 * normal(40, 9000, seed=7), integers(9000, 40, seed=8)
    whole = listed(logits, labels, eps=2.0**-9, seed=5, step=3)[0]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    moved = listed(logits[order], labels[order], eps=2.0**-9, seed=5, step=3, numbers=order)[0]
    assert torch.equal(moved, whole[order])
    for changed in ({"step": 4}, {"seed": 6}, {"numbers": torch.arange(1, 41)}):
        other = listed(logits, labels, **{"eps": 2.0**-9, "seed": 5, "step": 3, **changed})[0]
        assert (other != whole).any(-1).all()
    # a block of the classes, with the statistics of them all
    block, table = logits[:, 4000:], torch.stack([logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]] * 2)
    table[1] = logits.logsumexp(-1)
    rows = rows_of(block, labels)._replace(first_class=4000, classes=9000)
    made = backend.make(rows, table, False, torch.arange(40), backend.Sampling(2.0**-9, 5, 3))
    places = torch.stack([torch.arange(40).repeat_interleave(made.lengths), made.classes + 4000])
    assert torch.equal(places, (whole[:, 4000:] > 0).nonzero().T + torch.tensor([[0], [4000]]))


# -- gradients --------------------------------------------------------------------------------------------------------


TEMPERATURES = 0.5 + uniform(37, seed=20, dtype=torch.float64)
TRANSFORMS = {
    "plain": {},
    "scaled": {"temperature": 0.7, "scale": 1.3},
    "capped": {"temperature": TEMPERATURES, "softcap": 3.0},
}


def transformed(x, temperature=1.0, scale=1.0, softcap=0.0):
    z = scale * x
    z = softcap * torch.tanh(z / softcap) if softcap else z
    return z / (temperature[:, None] if isinstance(temperature, torch.Tensor) else temperature)


def reference_of(given):
    """Hidden states near the policy's."""
    states = given["hidden"].detach()
    return (0.8 * states + 0.3 * normal(*states.shape, seed=33, dtype=torch.float64)).to(states.dtype)


def predicted(given, upstream, eps, transform):
    """E|Σ over rows of the gradients' errors|² of hidden and weight, from p·(eps − p), likewise q·(eps − q) of the
    reference, and how often both are rounded up together."""
    hidden, weight = given["hidden"].detach().double(), given["weight"].detach().double()
    labels = given["labels"]
    x = (hidden @ weight.T + given["bias"].detach().double()).requires_grad_()
    z = transformed(x, **transform)
    (slope,) = torch.autograd.grad(z.sum(), x)
    log_p = z.detach().log_softmax(-1)
    others = reference_of(given).double() @ weight.T + given["bias"].detach().double()
    log_q = transformed(others, **transform).log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    entropy = -(p * log_p).sum(-1, keepdim=True)
    ratio = log_p - log_q
    kl = (p * ratio).sum(-1, keepdim=True)
    nothing = torch.zeros(len(labels), dtype=torch.float64)
    grads = [upstream.get(name, nothing)[:, None] for name in ("logp", "lse", "entropy", "kl", "rkl")]
    factor = grads[1] - grads[0] - grads[2] * (log_p + entropy) + grads[3] * (ratio - kl) + grads[4]
    variance, other = ((x * (eps - x)).clamp(min=0) for x in (p, q))
    common = torch.where((p < eps) & (q < eps), eps * torch.minimum(p, q) - p * q, 0)
    variance = factor**2 * variance + grads[4] ** 2 * other - 2 * factor * grads[4] * common
    variance[torch.arange(len(labels)), labels.clamp(min=0)] = 0
    variance = variance * (labels != -100)[:, None] * slope**2
    return (variance @ (weight**2).sum(-1)).sum(), (variance.T @ (hidden**2).sum(-1)).sum()


@pytest.mark.parametrize(
    ("names", "transform", "dtype", "eps"),
    [
        (("logp", "lse"), "plain", torch.float32, EPS),
        (("logp", "lse"), "plain", torch.float64, EPS),
        (("entropy",), "plain", torch.float32, EPS),
        (("entropy",), "scaled", torch.float64, EPS),
        (("entropy",), "capped", torch.float64, EPS),
        (("logp", "lse", "entropy"), "scaled", torch.float32, 1.0),
        (("logp", "lse", "entropy"), "capped", torch.float64, EPS),
        (("kl",), "capped", torch.float64, EPS),
        (("rkl",), "scaled", torch.float64, EPS),
        (("logp", "entropy", "kl", "rkl"), "scaled", torch.float32, EPS),
    ],
)
def test_the_mean_over_seeds_converges_to_the_exact_gradient(names, transform, dtype, eps):
    given, options = problem(dtype=dtype), TRANSFORMS[transform]
    wrt = leaves(given, "hidden", "weight", "bias")
    upstream = {name: normal(37, seed=10 + i, dtype=torch.float64) for i, name in enumerate(names)}
    reference = {name: given[name].detach().double().requires_grad_() for name in ("hidden", "weight", "bias")}
    other = tuple(t.double() for t in (reference_of(given), given["weight"].detach(), given["bias"].detach()))
    values = statistics(
        reference["hidden"], reference["weight"], given["labels"], bias=reference["bias"], reference=other, **options
    )
    loss = sum((values[name] * grad).sum() for name, grad in upstream.items())
    exact = torch.autograd.grad(loss, list(reference.values()))
    options = {**options, "bias": given["bias"], "reference_hidden": reference_of(given)}
    found = [
        gradients(given, wrt, upstream.values(), names, sparse=Sparse(eps, seed=seed), **options)[0]
        for seed in range(256)
    ]
    expected = predicted(given, upstream, eps, TRANSFORMS[transform])
    for index in range(2):
        errors = torch.stack([each[index].double() - exact[index] for each in found])
        for count in (1, 4, 16, 64, 256):
            means = errors.reshape(256 // count, count, *errors.shape[1:]).mean(1)
            ratio = means.square().flatten(1).sum(1).mean() / (expected[index] / count)
            assert 0.6 < ratio < 1.6, (index, count, ratio)
    bias = torch.stack([each[2].double() - exact[2] for each in found])
    assert bias.mean(0).norm() < 2.5 * bias.norm(dim=1).mean() / 16


def test_rows_of_the_weight_that_no_token_calls_get_exactly_nothing():
    given = problem(classes=2000)
    (weight,) = leaves(given, "weight")
    (gradient,), made = gradients(given, [weight], [torch.ones(37)], ("logp",), sparse=0.5)
    called = (gradient != 0).any(-1).sum()
    assert 0 < called <= made.plan.listed + 37 < 1000


def test_what_every_class_gets_is_exact_whatever_is_rounded():
    given = problem()
    wrt = leaves(given, "hidden", "weight", "bias")
    upstream = [normal(37, seed=10 + i, dtype=torch.float64) for i in range(2)]
    options = {"bias": given["bias"], "temperature": 0.8}
    rounded = {**options, "sparse": Sparse(EPS, seed=4)}
    both, _ = gradients(given, wrt, upstream, ("logp", "mean_logit"), **rounded)
    alone, _ = gradients(given, wrt, upstream, ("logp",), **rounded)
    smoothed, _ = gradients(given, wrt, upstream, ("logp",), label_smoothing=0.3, **rounded)
    mean, _ = gradients(given, wrt, upstream[1:], ("mean_logit",), **options)
    spread, _ = gradients(given, wrt, [0.3 * upstream[0]], ("mean_logit",), **options)
    for i in range(3):
        torch.testing.assert_close(both[i] - alone[i], mean[i], rtol=1e-9, atol=1e-12)
        # d(logp) = 1[label] - p, of which smoothing takes a part, and d(lse) = p
        one_hot = torch.nn.functional.one_hot(given["labels"].clamp(min=0), 53) * (given["labels"] != -100)[:, None]
        at_labels = 0.3 / 0.8 * upstream[0][:, None] * one_hot
        label = (at_labels @ wrt[1], at_labels.T @ wrt[0], at_labels.sum(0))[i]
        torch.testing.assert_close(smoothed[i], alone[i] - label + spread[i], rtol=1e-9, atol=1e-12)


def whole_numbers(tokens=50, features=16, classes=5000):
    """Logits that every order of additions gives to the bit."""
    hidden = (integers(5, tokens, features, seed=40) - 2).float()
    weight = (integers(5, classes, features, seed=41) - 2).float() / 4
    return {"hidden": hidden, "weight": weight, "labels": integers(classes, tokens, seed=42)}


@pytest.mark.parametrize(
    "names", [("logp", "lse"), ("logp", "mean_logit"), ("logp", "entropy"), ("kl", "rkl")], ids="+".join
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bits_depend_on_neither_threads_nor_tiles(dtype, names):
    given = whole_numbers()
    given = {name: value.to(dtype) if value.is_floating_point() else value for name, value in given.items()}
    wrt = leaves(given, "hidden", "weight")
    upstream, reference = [normal(50, seed=43), normal(50, seed=44)], given["hidden"].detach().roll(1, 0)
    before = torch.get_num_threads()
    found = []
    try:
        for threads, workspace in ((1, 1 << 28), (2, 1 << 28), (3, 1 << 28), (1, 1 << 17), (3, 1 << 15)):
            torch.set_num_threads(threads)
            options = {"workspace_bytes": workspace, "reference_hidden": reference}
            made = gradients(given, wrt, upstream, names, sparse=Sparse(2.0**-8, seed=1), **options)
            found.append([*made[0], *made[1].values()])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def test_few_rows_are_shared_by_threads_to_the_same_bits():
    given = whole_numbers(tokens=3, classes=20_000)
    wrt = leaves(given, "hidden", "weight")
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            found.append(gradients(given, wrt, [torch.ones(3)], ("logp",), sparse=Sparse(2.0**-8, seed=1))[0])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("ordered", [True, False])
def test_rows_that_are_gathered_often_come_by_blocks_to_the_same_bits(dtype, ordered, monkeypatch):
    """Sums of many rows over few classes are kept in memory between blocks of the weight; one row by itself is not."""
    rows, listed, classes, features = 70, 300, 5000, 301
    weight = normal(classes, features, seed=1).to(dtype)
    reals = torch.float64 if dtype == torch.float64 else torch.float32
    places = torch.stack([torch.randperm(classes)[:listed] for _ in range(rows)])
    places = (places.sort(1).values if ordered else places).to(torch.int64)
    values, rest, at_label = (normal(*size, seed=2).to(reals) for size in ((rows, listed), (rows,), (rows,)))
    rest[3], at_label[5], labels = 0, 0, integers(classes, rows, seed=3)
    labels[7] = -1

    def product(few, out_dtype=dtype):
        offsets = torch.arange(few.stop - few.start + 1) * listed
        parts = [t[few].contiguous() for t in (places, values, rest, at_label, labels)]
        matrix = backend.Matrix(offsets, parts[0].flatten(), parts[1].flatten(), *parts[2:], classes)
        out = torch.empty(few.stop - few.start, features, dtype=out_dtype)
        matrix.by_row(weight, out)
        return out

    dense = torch.zeros(rows, classes, dtype=torch.float64).scatter_(
        1, places, rest[:, None].double() * values.double()
    )
    at = labels.clamp(min=0)
    dense[torch.arange(rows), at] += torch.where(labels < 0, 0, at_label.double())
    whole = product(slice(0, rows), reals)
    torch.testing.assert_close(whole.double(), dense @ weight.double(), rtol=1e-4, atol=1e-4)
    one_by_one = torch.cat([product(slice(row, row + 1)) for row in range(rows)])
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert torch.equal(product(slice(0, rows)), one_by_one)


def test_parts_of_a_batch_are_rounded_as_the_whole():
    given = whole_numbers()
    wrt = leaves(given, "hidden")
    (whole,), _ = gradients(given, wrt, [torch.ones(50)], ("logp",), sparse=Sparse(2.0**-8, seed=1))
    part = {name: value.detach()[30:] if name != "weight" else value for name, value in given.items()}
    wrt = leaves(part, "hidden")
    (alone,), _ = gradients(part, wrt, [torch.ones(20)], ("logp",), sparse=Sparse(2.0**-8, seed=1, first_row=30))
    assert torch.equal(alone, whole[30:])
    ignored = {**given, "labels": given["labels"].clone()}
    ignored["labels"][:30] = -100
    (rest,), _ = gradients(ignored, [given["hidden"]], [torch.ones(50)], ("logp",), sparse=Sparse(2.0**-8, seed=1))
    assert torch.equal(rest[30:], whole[30:]) and (rest[:30] == 0).all()


def test_without_a_seed_it_is_drawn_as_dropout_draws():
    given = whole_numbers()
    wrt = leaves(given, "hidden")

    def run():
        return gradients(given, wrt, [torch.ones(50)], ("logp",), sparse=2.0**-6)[0][0]

    with torch.random.fork_rng():
        torch.manual_seed(3)
        first, second = run(), run()
        torch.manual_seed(3)
        assert torch.equal(run(), first) and not torch.equal(second, first)


# -- as an operator ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"wants": (True, True, True), "stats": "logp,lse"},
        {"wants": (True, False, False), "live": False, "lora": True},
        {"wants": (False, True, False), "temperatures": True},
        {"wants": (True, True, True), "stats": SMOOTHED},
        {"wants": (True, True, True), "stats": "logp,entropy", "live": False},
        {"wants": (True, True, True), "stats": "kl,rkl", "reference": True},
    ],
    ids=["all", "hidden", "weight", "smoothed", "entropy", "reference"],
)
def test_opcheck(options):
    torch.library.opcheck(operators.linear_token_stats, arguments("lists", eps=0.1, **options))


def test_compiles_whole():
    def loss(hidden, weight, labels):
        return prefuse.linear_token_logps(hidden * 2, weight, labels, sparse=Sparse(0.05, seed=2)).mean()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True)):
        given = problem(dtype=torch.float32)
        wrt = leaves(given, "hidden", "weight")
        value = function(*wrt, given["labels"])
        results.append((value.detach(), *torch.autograd.grad(value, wrt)))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled)


@pytest.mark.parametrize("trained", [("hidden",), ("hidden", "weight")])
def test_one_product_and_no_other(trained):
    given = problem(dtype=torch.float32)
    wrt = leaves(given, *trained)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        request = operators.Request(*arguments("lists", eps=0.1, wants=(True, len(wrt) > 1, False)))
        values, table, *kept = operators.linear_token_stats._init_fn(*request)
        operators.linear_token_stats_backward._init_fn(torch.ones_like(values), table, kept, *request)
    assert counter.get_total_flops() == 2 * request.live.shape[0] * 8 * 53


# -- around it --------------------------------------------------------------------------------------------------------


def test_statistics_beside_are_constants():
    given = problem()
    (hidden,) = leaves(given, "hidden")
    made = prefuse.linear_token_stats(
        hidden,
        given["weight"],
        given["labels"],
        ("logp", "entropy", "kl", "top1"),
        reference_hidden=given["hidden"].detach() * 0.9,
        differentiable=("logp",),
        sparse=EPS,
    )
    expected = statistics(
        hidden, given["weight"], given["labels"], reference=(given["hidden"].detach() * 0.9, given["weight"], None)
    )
    for name in made:
        torch.testing.assert_close(made[name].detach(), expected[name].detach())
        assert made[name].requires_grad == (name == "logp")


def test_without_a_gradient_it_is_not_looked_at():
    given = problem()
    made = prefuse.linear_token_stats(given["hidden"], given["weight"], given["labels"], sparse=EPS)
    assert made.plan.name == "forward"
    given["hidden"].requires_grad_()
    with torch.no_grad():
        made = prefuse.linear_token_stats(given["hidden"], given["weight"], given["labels"], "entropy", sparse=EPS)
    assert made.plan.name == "forward"


def test_nothing_scored():
    given = problem()
    given["labels"][:] = -100
    wrt = leaves(given, "hidden", "weight", "bias")
    found, made = gradients(given, wrt, [torch.ones(37)], ("logp",), bias=given["bias"], sparse=EPS)
    assert all((gradient == 0).all() for gradient in found) and made.plan.listed == 0


def test_strides_do_not_matter():
    given = problem()
    wide = torch.zeros(37, 20, dtype=torch.float64)
    wide[:, ::2][:, :8] = given["hidden"]
    strided = {**given, "hidden": wide[:, ::2][:, :8], "weight": given["weight"].t().contiguous().t()}
    upstream = [normal(37, seed=10, dtype=torch.float64)]
    options = {"names": ("logp",), "sparse": Sparse(EPS, seed=2)}
    plain, _ = gradients(given, leaves(given, "hidden", "weight"), upstream, **options)
    found, _ = gradients(strided, leaves(strided, "hidden", "weight"), upstream, **options)
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other)


def test_the_plan_says_lists():
    given = problem(dtype=torch.bfloat16)
    leaves(given, "hidden", "weight")
    made = prefuse.linear_token_stats(given["hidden"], given["weight"], given["labels"], sparse=EPS)
    rows = int((given["labels"] != -100).sum())
    assert (made.plan.name, made.plan.gemms) == ("lists", 1)
    assert made.plan.kept_bytes == 12 * made.plan.listed and 0 < made.plan.listed < 32 * rows
    assert f"{made.plan.listed / rows:.0f} entries a row, in place of 2 GEMMs" in str(made.plan)


@pytest.mark.parametrize("packed", [False, True])
def test_the_loss_of_preferences(packed):
    given = problem(tokens=36)
    hidden, labels = given["hidden"].reshape(4, 9, 8), given["labels"].reshape(4, 9)
    reference = -normal(4, seed=50, dtype=torch.float64).abs()
    options = {"labels": labels, "weight": given["weight"], "bias": given["bias"], "reference": reference}
    if packed:
        hidden, options["labels"] = hidden.reshape(36, 8), labels.reshape(36)
        options["cu_seqlens"] = torch.arange(5) * 9
    hidden = hidden.detach().requires_grad_()
    given["weight"].requires_grad_()
    wrt = (hidden, given["weight"])
    dense = prefuse.preference_loss("dpo", hidden=hidden, **options)
    exact = torch.autograd.grad(dense.loss, wrt)
    tiny = prefuse.preference_loss("dpo", hidden=hidden, sparse=2.0**-40, **options)
    for one, other in zip(torch.autograd.grad(tiny.loss, wrt), exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
    mean = [torch.zeros_like(tensor) for tensor in wrt]
    errors = 0.0
    for seed in range(64):
        score = prefuse.preference_loss("dpo", hidden=hidden, sparse=Sparse(EPS, seed), **options)
        assert score.plan.name == "lists" and score.loss == tiny.loss
        found = torch.autograd.grad(score.loss, wrt)
        errors += float((found[0] - exact[0]).norm())
        for total, gradient in zip(mean, found, strict=True):
            total += gradient / 64
    assert (mean[0] - exact[0]).norm() < 1.5 * errors / 64 / 8


def test_explain_tells_without_running(capsys):
    hidden = torch.empty(8, 1024, 4096, dtype=torch.bfloat16, device="meta", requires_grad=True)
    weight = torch.empty(128256, 4096, dtype=torch.bfloat16, device="meta")
    labels = torch.empty(8, 1024, dtype=torch.int64, device="meta")
    plan = prefuse.explain("simpo", hidden=hidden, weight=weight, labels=labels, sparse=2.0**-12)
    assert (plan.name, plan.gemms) == ("lists", 1)
    assert "at most 4096 entries a row in the mean, in place of 1 GEMM" in capsys.readouterr().out
    made = prefuse.linear_token_stats(hidden, weight, labels, sparse=2.0**-12)
    assert made.plan.name == "lists" and made.logp.is_meta


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"sparse": 0.0}, ValueError, "sparse: expected 2\\^-40 <= eps <= 1, got 0.0"),
        ({"sparse": 1.5}, ValueError, "sparse: expected 2\\^-40 <= eps <= 1, got 1.5"),
        ({"sparse": math.nan}, ValueError, "sparse: expected 2\\^-40 <= eps <= 1, got nan"),
        ({"sparse": "yes"}, TypeError, 'sparse: expected a number, a Sparse, "auto", or None, got str'),
        ({"sparse": True}, TypeError, 'sparse: expected a number, a Sparse, "auto", or None, got bool'),
        (
            {"sparse": EPS, "stats": "mean_logit", "softcap": 3.0},
            ValueError,
            "softcap: expected None with sparse and a gradient through mean_logit, got 3.0",
        ),
        (
            {"sparse": EPS, "label_smoothing": 0.1, "softcap": 3.0},
            ValueError,
            "softcap: expected None with sparse and label_smoothing, got 3.0",
        ),
        (
            {"sparse": EPS, "stats": "rkl", "softcap": 3.0},
            ValueError,
            "softcap: expected None with sparse and a gradient through rkl, got 3.0",
        ),
        ({"sparse": EPS, "plan": "keep"}, ValueError, "plan: 'keep' is not possible here: .*dense.*sparse="),
        ({"plan": "lists"}, ValueError, "plan: 'lists' is not possible here: .*sparse="),
    ],
)
def test_what_lists_do_not_carry_is_refused(options, kind, message):
    given = problem()
    given["hidden"].requires_grad_()
    if options.get("stats") == "rkl":
        options = {**options, "reference_hidden": reference_of(given)}
    with pytest.raises(kind, match=message):
        prefuse.linear_token_stats(given["hidden"], given["weight"], given["labels"], **options)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"seed": -1}, ValueError, "sparse: expected 0 <= seed < 2\\^62, got -1"),
        ({"seed": 1 << 62}, ValueError, "sparse: expected 0 <= seed"),
        ({"seed": 0.5}, TypeError, "sparse: seed"),
        ({"step": -1}, ValueError, "sparse: expected 0 <= step"),
        ({"first_row": None}, TypeError, "sparse: first_row"),
    ],
)
def test_seeds_are_checked(options, kind, message):
    with pytest.raises(kind, match=message):
        Sparse(EPS, **options)


def test_an_objective_that_differentiates_entropy():
    given = problem(tokens=36)
    hidden = given["hidden"].reshape(4, 9, 8).detach().requires_grad_()
    options = {name: -torch.ones(4, 9, dtype=torch.float64) for name in ("old_logps", "advantage")}
    options |= {"weight": given["weight"], "labels": given["labels"].reshape(4, 9), "entropy_weight": 0.1}
    found = []
    for sparse in (None, 2.0**-40):
        score = prefuse.preference_loss("ppo", hidden=hidden, sparse=sparse, **options)
        found += torch.autograd.grad(score.loss, hidden)
    assert score.plan.name == "lists"
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-10)


def test_an_entropy_takes_the_list_that_is_there():
    given = problem(dtype=torch.float32)
    wrt = leaves(given, "hidden")
    upstream, options = [normal(37, seed=10 + i) for i in range(2)], {"sparse": Sparse(EPS, seed=5)}
    both, made = gradients(given, wrt, upstream, ("logp", "entropy"), **options)
    logp, plain = gradients(given, wrt, upstream[:1], ("logp",), **options)
    entropy, _ = gradients(given, wrt, upstream[1:], ("entropy",), **options)
    torch.testing.assert_close(both[0], logp[0] + entropy[0])
    assert made.plan.listed == plain.plan.listed
    # a logarithm beside class and value, for the entropy's gradient alone
    assert (plain.plan.kept_bytes, made.plan.kept_bytes) == (12 * plain.plan.listed, 16 * plain.plan.listed)
    looked_at = prefuse.linear_token_stats(
        wrt[0], given["weight"], given["labels"], ("logp", "entropy"), differentiable=("logp",), **options
    )
    assert looked_at.plan.kept_bytes == plain.plan.kept_bytes


def test_probabilities_that_are_the_references_are_rounded_alike():
    given = problem(dtype=torch.float32)
    (hidden,) = leaves(given, "hidden")
    options = {"reference_hidden": hidden.detach().clone(), "sparse": Sparse(EPS, seed=5)}
    (gradient,), made = gradients(given, [hidden], [normal(37, seed=10)], ("rkl",), **options)
    _, plain = gradients(given, [hidden], [normal(37, seed=10)], ("logp",), sparse=options["sparse"])
    assert (gradient == 0).all() and made.plan.listed == 2 * plain.plan.listed


def test_beside_logits_it_means_nothing():
    with pytest.raises(TypeError, match="sparse: given without hidden"):
        prefuse.preference_loss(
            "simpo", logits=torch.zeros(2, 3, 5), labels=torch.zeros(2, 3, dtype=torch.int64), sparse=EPS
        )
