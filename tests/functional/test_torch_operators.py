"""The operators as PyTorch sees them: schemas, fake kernels, autograd, compile, autocast, in-place gradients."""

import contextlib
import gc
import threading
import weakref

import pytest
import torch

from prefuse._backends.rows import bits_of, names_of
from prefuse._statistics import operators
from prefuse.functional import response_lengths, sequence_logps, token_logps, token_stats
from tests.devices import integers, normal

pytestmark = pytest.mark.usefixtures("device")

V = 37


def logits(*shape, seed=0, dtype=torch.float32):
    return normal(*shape, V, seed=seed).to(dtype)


def labels(*shape, seed=1):
    return integers(V, *shape, seed=seed)


def plain(x, y):
    return x.log_softmax(-1).gather(-1, y[..., None])[..., 0]


def operator_arguments(requires_grad, temperatures=False, reference=False, mask=False, dtype=torch.float32):
    return (
        logits(2, 3, dtype=dtype).requires_grad_(requires_grad),
        labels(2, 3),
        torch.tensor([[True, True, False]] * 2) if mask else None,
        logits(2, 3, seed=2) if reference else None,
        torch.full((2, 3), 0.7) if temperatures else None,
        1.0,
        1.0,
        0.0,
        -100,
        bits_of(["logp", "lse", "entropy", *(("ref_lse", "ref_logp", "kl") if reference else ())]),
        5,
        False,
    )


@pytest.mark.parametrize(
    "options",
    [
        {"requires_grad": False},
        {"requires_grad": True},
        {"requires_grad": True, "temperatures": True, "reference": True, "mask": True},
        {"requires_grad": True, "dtype": torch.float64},
        {"requires_grad": True, "dtype": torch.bfloat16},
    ],
    ids=str,
)
def test_opcheck_token_stats(options):
    torch.library.opcheck(operators.token_stats, operator_arguments(**options))


@pytest.mark.parametrize("operator", [operators.token_stats_backward, operators.token_stats_backward_])
def test_opcheck_backward(operator):
    arguments = operator_arguments(requires_grad=False, reference=True, temperatures=True, mask=True)
    saved = operators.token_stats(*arguments)
    torch.library.opcheck(operator, (torch.randn_like(saved), saved, *arguments[:-1]))


def test_opcheck_segments():
    offsets = torch.tensor([0, 2, 2, 5])
    torch.library.opcheck(operators.segment_sum, (torch.arange(5.0, requires_grad=True), offsets))
    torch.library.opcheck(operators.segment_expand, (torch.arange(3.0, requires_grad=True), offsets, 5))


def test_segments_and_their_second_derivative():
    offsets = torch.tensor([0, 2, 2, 5])
    values = torch.arange(5.0, dtype=torch.float64, requires_grad=True)
    assert operators.segment_sum(values, offsets).tolist() == [1, 0, 9]
    assert operators.segment_expand(torch.tensor([7.0, 8.0, 9.0]), offsets, 5).tolist() == [7, 7, 9, 9, 9]
    assert torch.autograd.gradcheck(lambda v: operators.segment_sum(v, offsets), values)
    assert torch.autograd.gradgradcheck(lambda v: operators.segment_sum(v, offsets).square(), values)


def objective_like(hidden, weight, y, mask, cu_seqlens, inplace):
    x = hidden @ weight
    stats = token_stats(x, y, ("logp", "entropy", "top1"), mask=mask, temperature=0.7, inplace=inplace)
    sequences = sequence_logps(1.0 * x, y, mask=mask, shift=True, average=True)
    packed = sequence_logps(2.0 * x.view(1, -1, V), y.view(1, -1), cu_seqlens=cu_seqlens, shift=True)
    lengths = response_lengths(y, mask=mask, shift=True)
    loss = stats.logp.sum() + 0.1 * stats["entropy"].sum() + sequences.sum() + packed.square().sum()
    return loss, stats.top1, lengths


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile_fullgraph(compiler, inplace):
    torch._dynamo.reset()
    compiled = torch.compile(objective_like, fullgraph=True, backend=compiler)
    hidden, weight = torch.randn(2, 6, 5), torch.randn(5, V)
    arguments = (labels(2, 6), torch.rand(2, 6) < 0.8, torch.tensor([0, 5, 5, 12]), inplace)
    results = []
    for function in (objective_like, compiled):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss, top1, lengths = function(h, w, *arguments)
        loss.backward()
        results.append((loss.detach(), top1, lengths, h.grad, w.grad))
    for eager, other in zip(*results, strict=True):
        torch.testing.assert_close(other, eager, rtol=1e-5, atol=1e-5)


def test_compile_with_dynamic_shapes():
    torch._dynamo.reset()
    compiled = torch.compile(token_logps, fullgraph=True, backend="aot_eager", dynamic=True)
    for count in (2, 3, 7):
        x, y = logits(count, 4).requires_grad_(), labels(count, 4)
        got = compiled(x, y)
        got.sum().backward()
        assert torch.equal(got, token_logps(x, y))
        torch.testing.assert_close(x.grad, torch.autograd.grad(plain(x, y).sum(), x)[0])


class Seen(torch.utils._python_dispatch.TorchDispatchMode):
    """The names of the operators that are called."""

    def __enter__(self):
        self.names = []
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


ASKED = ("top1", "entropy", "logp", "mean_logit")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_eager_calls_have_the_bits_of_the_operators(dtype, inplace):
    """Where nothing watches, the dispatcher is left out."""
    results = []
    for watch in (contextlib.nullcontext(), Seen()):
        x = logits(2, 3, dtype=dtype).requires_grad_()
        with watch:
            stats = token_stats(x * 1.0, labels(2, 3), ASKED, inplace=inplace)
            assert [value.requires_grad for value in stats.values()] == [False, True, True, True]
            (stats.entropy.square().sum() + stats.mean_logit.sum()).backward()
        results.append([*(value.detach() for value in stats.values()), x.grad])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    backward = "prefuse.token_stats_backward_.default" if inplace else "prefuse.token_stats_backward.default"
    assert {"prefuse.token_stats.default", backward} <= set(watch.names)


def test_values_may_be_changed_in_place():
    x = logits(2, 3).requires_grad_()
    stats = token_stats(x, labels(2, 3), ("logp", "lse"))
    stats.logp.mul_(2.0)
    stats.lse.zero_()
    stats.logp.sum().backward()
    torch.testing.assert_close(x.grad, 2 * torch.autograd.grad(plain(x, labels(2, 3)).sum(), x)[0])


def test_the_profiler_sees_the_operators():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        token_logps(logits(2, 3), labels(2, 3))
    assert "prefuse::token_stats" in {event.key for event in profile.key_averages()}


def test_fake_and_meta_tensors():
    meta = token_stats(logits(2, 3).to("meta"), labels(2, 3).to("meta"), ("logp", "entropy"))
    assert (meta.logp.device.type, meta.logp.shape, meta.logp.dtype) == ("meta", (2, 3), torch.float32)
    with torch._subclasses.FakeTensorMode():
        fake = token_stats(torch.empty(2, 3, V, dtype=torch.float64), torch.empty(2, 3, dtype=torch.int64))
        assert fake.logp.shape == (2, 3)
        assert fake.logp.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_takes_logits_as_they_come(dtype, device):
    hidden, weight, y = torch.randn(4, 8), torch.randn(V, 8, requires_grad=True), labels(4)
    with torch.autocast(device.type, dtype=dtype):
        x = torch.nn.functional.linear(hidden, weight)
        assert x.dtype == dtype
        logps = token_logps(x, y)
        full = token_logps(x.float(), y)
    assert logps.dtype == torch.float32
    assert torch.equal(logps, full)
    logps.sum().backward()
    assert weight.grad.dtype == torch.float32
    assert weight.grad.isfinite().all()


def test_second_backward_is_right():
    x, y = logits(3, 4).requires_grad_(), labels(3, 4)
    got = token_stats(x, y, ("logp", "entropy"))
    loss = got.logp.sum() + got.entropy.square().sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(2 * loss, x)
    assert torch.equal(first, kept)
    torch.testing.assert_close(second, 2 * first)


def test_backward_through_one_statistic_of_several():
    x, y = logits(3, 4).requires_grad_(), labels(3, 4)
    got = token_stats(x, y, ("entropy", "logp", "lse"))
    (through_many,) = torch.autograd.grad(got.logp.sum(), x)
    (through_one,) = torch.autograd.grad(token_logps(x, y).sum(), x)
    assert torch.equal(through_many, through_one)


def test_double_backward_is_a_clear_error():
    x, y = logits(3).requires_grad_(), labels(3)
    (grad,) = torch.autograd.grad(token_logps(x, y).exp().sum(), x, create_graph=True)
    torch.testing.assert_close(grad, torch.autograd.grad(plain(x, y).exp().sum(), x)[0])
    with pytest.raises(RuntimeError, match=r"prefuse\.token_stats is differentiable once"):
        grad.sum().backward()


@pytest.mark.parametrize(
    "transform",
    [
        lambda f, x: torch.vmap(f)(x),
        lambda f, x: torch.func.grad(lambda x: f(x).sum())(x),
        lambda f, x: torch.func.jvp(f, (x,), (x,)),
        lambda f, x: torch.func.jacrev(f)(x),
    ],
)
def test_function_transforms_are_a_clear_error(transform):
    y = labels(1)[0]
    with pytest.raises(NotImplementedError, match=r"prefuse has no rules for torch\.func transforms"):
        transform(lambda x: token_logps(x, y.expand(x.shape[:-1])), logits(3))


def test_forward_mode_is_a_clear_error():
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(logits(3), logits(3))
        with pytest.raises(NotImplementedError, match="forward-mode"):
            token_logps(x, labels(3))


def test_operators_themselves_refuse_vmap():
    with pytest.raises(NotImplementedError, match=r"prefuse has no rules for torch\.func transforms"):
        torch.vmap(lambda v: operators.segment_sum(v, torch.tensor([0, 2])))(torch.ones(3, 2))


class TestInplace:
    """The gradient over the logits' memory, and every way to notice too late."""

    def test_gradient_is_right_and_lies_in_the_logits(self):
        weight, hidden, y = torch.randn(5, V, requires_grad=True), torch.randn(3, 5), labels(3)
        seen = []
        x = hidden @ weight
        x.register_hook(lambda grad: seen.append((grad.data_ptr(), grad.clone())))
        version = x._version
        (token_logps(x, y, inplace=True) * torch.tensor([1.0, -2.0, 0.5])).sum().backward()
        (expected,) = torch.autograd.grad((plain(hidden @ weight, y) * torch.tensor([1.0, -2.0, 0.5])).sum(), weight)
        torch.testing.assert_close(weight.grad, expected)
        assert x._version > version
        assert seen[0][0] == x.data_ptr()
        assert torch.equal(x.detach(), seen[0][1])

    def test_second_backward_is_an_error(self):
        x = 1.0 * logits(3).requires_grad_()
        loss = token_logps(x, labels(3), inplace=True).sum()
        loss.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    def test_another_reader_of_the_logits_is_told(self):
        leaf = logits(3).requires_grad_()
        x = leaf.tanh()  # its backward reads x
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            token_logps(x, labels(3), inplace=True).sum().backward()

    def test_two_losses_of_the_same_logits_are_told(self):
        x = 1.0 * logits(3).requires_grad_()
        loss = token_logps(x, labels(3), inplace=True).sum() + token_logps(x, labels(3), inplace=True).sum()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    def test_gradient_that_is_added_to_another_is_right(self):
        """The logits get a second gradient, from an operation that did not save them."""
        leaf, y = logits(3).requires_grad_(), labels(3)
        x = 2.0 * leaf
        (token_logps(x, y, inplace=True).sum() + (3.0 * x).sum()).backward()
        torch.testing.assert_close(leaf.grad, torch.autograd.grad(plain(2.0 * leaf, y).sum() + 6 * leaf.sum(), leaf)[0])

    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_leaf_after_compilation_for_another(self, backend):
        """Compiled code is not recompiled for a leaf; the operator notices as it runs."""
        torch._dynamo.reset()
        y = labels(3)
        compiled = torch.compile(lambda x: token_logps(x, y, inplace=True).sum(), fullgraph=True, backend=backend)
        leaf = logits(3).requires_grad_()
        compiled(1.0 * leaf).backward()
        with pytest.raises(ValueError, match="inplace: logits are a leaf"):
            compiled(leaf)

    def test_nothing_happens_without_a_gradient(self):
        x = logits(3)
        assert torch.equal(token_logps(x, labels(3), inplace=True), token_logps(x, labels(3)))
        with torch.no_grad():
            leaf = logits(3).requires_grad_()
            assert torch.equal(token_logps(leaf, labels(3), inplace=True), token_logps(x, labels(3)))


def test_no_gradient_means_nothing_saved_and_nothing_more_computed():
    x, y = logits(3), labels(3)
    calls = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            calls.append((str(function), args))
            return function(*args, **(kwargs or {}))

    with Spy():
        token_logps(x, y)
        token_logps(x.clone().requires_grad_(), y)
    asked = [names_of(args[9]) for name, args in calls if name.startswith("prefuse.token_stats")]
    assert asked == [("logp",), ("logp", "lse")]


def test_saved_for_backward_is_the_logits_and_numbers_per_row():
    x, y = logits(300).requires_grad_(), labels(300)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        token_stats(x, y, ("logp", "entropy", "top1"))
    others = [t for t in saved if t.data_ptr() != x.data_ptr()]
    assert len(others) == len(saved) - 1
    assert sum(t.numel() for t in others) <= 6 * 300


def test_logits_are_released_after_backward():
    x = 1.0 * logits(3).requires_grad_()
    alive = weakref.ref(x)
    loss = token_logps(x, labels(3)).sum()
    del x
    loss.backward()
    gc.collect()
    assert alive() is None


def test_works_from_several_threads_at_once():
    x, y = logits(64), labels(64)
    expected, results = token_logps(x, y), []
    workers = [threading.Thread(target=lambda: results.append(token_logps(x, y))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 4
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.cpu
def test_set_num_threads_is_honoured():
    x, y = logits(64), labels(64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = token_logps(x, y)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, token_logps(x, y))


def test_checkpointed_backward():
    """Activation checkpointing recomputes the logits; the in-place gradient goes into the recomputed ones."""
    weight, hidden, y = torch.randn(5, V, requires_grad=True), torch.randn(3, 5), labels(3)

    def step(weight):
        return token_logps(hidden @ weight, y, inplace=True).sum()

    torch.utils.checkpoint.checkpoint(step, weight, use_reentrant=False).backward()
    torch.testing.assert_close(weight.grad, torch.autograd.grad(plain(hidden @ weight, y).sum(), weight)[0])
