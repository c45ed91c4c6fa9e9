"""TRL's log-probability functions beside the originals: values, dtypes and gradients on random batches."""

from __future__ import annotations

import pytest
import torch

from prefuse import token_logps
from prefuse.compat import trl as ours

from .checking import assert_as_good, assert_same, integers, library, normal

pytestmark = pytest.mark.usefixtures("device")

TOKENS, FEATURES, CLASSES = 11, 8, 29
TRANSFORMS = ({}, {"temperature": 0.7}, {"final_logit_softcapping": 2.0, "logit_scale": 0.5, "temperature": 1.3})
NAMES = ("hidden", "weight", "bias")


@pytest.fixture(scope="module")
def theirs():
    return library("trl.kernels.chunked_logprob")


@pytest.fixture(scope="module")
def utils():
    return library("trl.trainer.utils")


def head(bias=True, dtype=torch.float32, trained=NAMES, tokens=TOKENS):
    labels = integers(CLASSES, tokens, seed=4)
    made = {"hidden": normal(tokens, FEATURES, seed=1), "weight": normal(CLASSES, FEATURES, seed=2)}
    made["hidden"][::4] = 2 * made["weight"][labels[::4]]  # confident rows
    made["bias"] = normal(CLASSES, seed=3) if bias else None
    made = {
        name: None if value is None else value.to(dtype).requires_grad_(name in trained) for name, value in made.items()
    }
    return made, labels


def apply(package, made, labels, *, temperature=1.0, chunk_size=16, **options):
    function = package.ChunkedLogProbFunction.apply
    given = [options.get("final_logit_softcapping"), options.get("logit_scale", 1.0)]
    given += [options["outputs"]] if "outputs" in options else []
    return function(made["hidden"], made["weight"], made["bias"], labels, temperature, chunk_size, *given)


def outcome(outputs, made, through=("log_probs", "entropy")):
    """The outputs, and the gradients of a sum over those named."""
    named = dict(zip(("log_probs", *ours.OPTIONAL_OUTPUTS), outputs, strict=True))
    assert [name for name, value in named.items() if value is not None and value.requires_grad] in (
        [],
        ["log_probs"],
        ["log_probs", "entropy"],
    )
    total = sum((named[name] * torch.linspace(-1, 2, named[name].numel())).sum() for name in through)
    if total.requires_grad:
        total.backward()
    found = {name: value.detach() for name, value in named.items() if value is not None and value.dtype != torch.bool}
    if named["is_top1"] is not None:
        assert named["is_top1"].dtype == torch.bool
        found["is_top1"] = named["is_top1"].float()
    return found | {f"d{name}": value.grad for name, value in made.items() if value is not None and value.requires_grad}


def run(
    package,
    *,
    bias=True,
    dtype=torch.float32,
    trained=NAMES,
    tokens=TOKENS,
    wide=False,
    through=("log_probs", "entropy"),
    **options,
):
    made, labels = head(bias, dtype, trained, tokens)
    if wide:
        made = {
            name: None if value is None else value.detach().float().requires_grad_(name in trained)
            for name, value in made.items()
        }
    return outcome(apply(package, made, labels, **options), made, through)


class TestChunkedLogProbFunction:
    @pytest.mark.parametrize("through", [("log_probs",), ("entropy",), ("log_probs", "entropy")], ids=str)
    @pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
    def test_float32(self, theirs, transform, through):
        results = [run(package, through=through, **transform) for package in (ours, theirs)]
        assert_same(*results)

    @pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
    def test_bfloat16(self, theirs, transform):
        exact = run(theirs, dtype=torch.bfloat16, wide=True, **transform)
        assert_as_good(*(run(p, dtype=torch.bfloat16, **transform) for p in (ours, theirs)), exact)

    def test_without_bias(self, theirs):
        assert_same(run(ours, bias=False), run(theirs, bias=False))

    @pytest.mark.parametrize("trained", [("hidden",), ("weight",), ("hidden", "bias"), ()], ids=str)
    def test_gradients_go_where_they_are_wanted(self, theirs, trained):
        results = run(ours, trained=trained)
        assert {name for name in results if name.startswith("d")} == {f"d{name}" for name in trained}
        assert_same(results, run(theirs, trained=trained))

    @pytest.mark.parametrize("outputs", [(), ("entropy",), ("log_probs", "is_top1"), ours.OPTIONAL_OUTPUTS], ids=str)
    def test_only_what_is_asked_for(self, theirs, outputs):
        results = [run(package, outputs=outputs, through=("log_probs",)) for package in (ours, theirs)]
        assert_same(*results)

    def test_no_tokens(self, theirs):
        results = run(ours, tokens=0)
        assert results["log_probs"].shape == (0,) and not results["dweight"].any()
        assert_same(results, run(theirs, tokens=0))

    @pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
    def test_autocast(self, theirs, device, weights):
        def call(package):
            made, labels = head()
            made["weight"] = made["weight"].detach().to(weights).requires_grad_()
            with torch.autocast(device.type, dtype=torch.bfloat16):
                outputs = apply(package, made, labels)
            return outcome(outputs, made)

        results = call(ours)
        assert results["dhidden"].dtype == torch.float32 and results["dweight"].dtype == weights
        assert_as_good(results, call(theirs), run(theirs))

    def test_a_weight_of_another_dtype(self, theirs):
        def call(package):
            made, labels = head()
            made["hidden"] = made["hidden"].detach().bfloat16().requires_grad_()
            return outcome(apply(package, made, labels), made)

        assert_as_good(call(ours), call(theirs), run(theirs))

    def test_ties_count_for_the_first(self, theirs):
        made, labels = head()
        made["weight"].data[1] = made["weight"].data[3]
        made["bias"].data[1] = made["bias"].data[3] = 100.0
        labels[:2] = torch.tensor([1, 3])
        for package in (ours, theirs):
            assert apply(package, made, labels)[4][:2].tolist() == [True, False]

    def test_no_grad(self):
        made, labels = head()
        with torch.no_grad():
            outputs = apply(ours, made, labels)
        assert not any(value.requires_grad for value in outputs)

    def test_second_backward_adds_the_same_again(self):
        once = run(ours)
        made, labels = head()
        log_probs, entropy, *_ = apply(ours, made, labels)
        weights = torch.linspace(-1, 2, TOKENS)
        total = (log_probs * weights).sum() + (entropy * weights).sum()
        total.backward(retain_graph=True)
        total.backward()
        for name, value in made.items():
            torch.testing.assert_close(value.grad, 2 * once[f"d{name}"])

    def test_an_entropy_that_is_only_looked_at_costs_no_product(self, monkeypatch):
        plans, real = [], ours.linear_token_stats

        def recorded(*arguments, **options):
            result = real(*arguments, **options)
            plans.append(result.plan)
            return result

        monkeypatch.setattr(ours, "linear_token_stats", recorded)
        run(ours, trained=("hidden",), through=("log_probs",))
        assert [plan.gemms for plan in plans] == [2]
        run(ours, trained=("hidden",), through=("log_probs", "entropy"))
        assert [plan.gemms for plan in plans] == [2, 2, 2]

    def test_chunk_size_bounds_the_memory(self, monkeypatch):
        made, labels = head(tokens=3000)
        asked, real = [], ours.linear_token_stats
        monkeypatch.setattr(
            ours, "linear_token_stats", lambda *a, **k: asked.append(k["workspace_bytes"]) or real(*a, **k)
        )
        small, large = (apply(ours, made, labels, chunk_size=size, outputs=()) for size in (1, 4096))
        assert asked == [4096 * 4, 4096 * 4096 * 4]
        torch.testing.assert_close(small[0], large[0])

    def test_compiles_whole(self):
        made, labels = head()
        compiled = torch.compile(
            lambda *tensors: ours.ChunkedLogProbFunction.apply(*tensors, 1.0, 16)[:2],
            fullgraph=True,
            backend="aot_eager",
        )
        log_probs, entropy = compiled(made["hidden"], made["weight"], made["bias"], labels)
        (log_probs.sum() + entropy.sum()).backward()
        expected, _ = head()
        log_probs, entropy, *_ = apply(ours, expected, labels)
        (log_probs.sum() + entropy.sum()).backward()
        for name, value in made.items():
            torch.testing.assert_close(value.grad, expected[name].grad)

    def test_errors(self, device):
        made, labels = head()
        with pytest.raises(ValueError, match=r"outputs: expected some of entropy, .*, got 'kl'"):
            apply(ours, made, labels, outputs=("kl",))
        with pytest.raises(ValueError, match="chunk_size: expected at least 1, got 0"):
            apply(ours, made, labels, chunk_size=0)
        with pytest.raises(ValueError, match="temperature"):
            apply(ours, made, labels, temperature=0.0)
        if device.type == "cpu":
            labels[2] = -100
            with pytest.raises(ValueError, match=r"labels: -100 at \[2\], expected 0 <= label < 29"):
                apply(ours, made, labels)


LEADS = ((7,), (3, 4), (2, 2, 3))


def logits(*lead, dtype=torch.float32):
    made = 3 * normal(*lead, CLASSES, seed=5)
    made[..., 2] += 8 * (torch.arange(lead[-1]) % 3 == 0)  # confident rows, whose class 2 has nearly all of the mass
    return made.to(dtype)


def pulled(function, values, index, **options):
    """What it gives for `values`, with the gradient of a sum over it."""
    leaf = values.detach().clone().requires_grad_()
    found = function(leaf, index, **options)
    found = found if isinstance(found, tuple) else (found,)
    total = sum((value * normal(*value.shape, seed=6)).sum() for value in found if value.requires_grad)
    total.backward()
    return {**{f"[{i}]": value.detach() for i, value in enumerate(found)}, "dlogits": leaf.grad}


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("masked", [False, True], ids=["every row", "masked"])
class TestSelectiveLogSoftmax:
    def given(self, shape, masked, temperature):
        mask = {"row_mask": integers(2, *shape, seed=8)} if masked else {}
        return mask | {"temperature": temperature}

    @pytest.mark.parametrize("several", [(), (1,), (4,)], ids=["one label", "1 label", "4 labels"])
    @pytest.mark.parametrize("lead", LEADS, ids=str)
    def test_float32(self, utils, lead, several, masked, temperature):
        index = integers(CLASSES, *lead, *several, seed=7)
        if several == (4,):
            index[..., 0], index[..., 1] = 2, index[..., 3]  # a confident one, and one twice
        options = self.given(index.shape, masked, temperature)
        functions = (ours.selective_log_softmax, utils.selective_log_softmax)
        assert_same(*(pulled(function, logits(*lead), index, **options) for function in functions))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("several", [(), (3,)], ids=["one label", "3 labels"])
    def test_16_bit_logits(self, device, utils, several, dtype, masked, temperature):
        """On the CPU the bits that TRL gives, the gradient that of float64; on a GPU TRL's kernel gives float32."""
        index = integers(CLASSES, 3, 4, *several, seed=7)
        if several:
            index[..., 0] = 2
        options = self.given(index.shape, masked, temperature)
        values = logits(3, 4, dtype=dtype)
        results = pulled(ours.selective_log_softmax, values, index, **options)
        exact = pulled(utils.selective_log_softmax, values.double(), index, **options)
        expected = dtype if device.type == "cpu" else torch.float32
        assert results["[0]"].dtype == expected and results["dlogits"].dtype == dtype
        # The upstream gradient goes through the results' dtype, the rest is rounded once.
        torch.testing.assert_close(results["dlogits"].double(), exact["dlogits"], rtol=2**-7, atol=1e-3)
        if device.type == "cpu":
            assert torch.equal(results["[0]"], utils.selective_log_softmax(values, index, **options))
        else:
            torch.testing.assert_close(results["[0]"], exact["[0]"].float())
        if not several:
            logps, entropy = ours.selective_log_softmax_and_entropy(values, index, **options)
            assert entropy.dtype == expected and torch.equal(logps, results["[0]"])
            with torch.no_grad():
                kept = token_logps(values, index)
            assert kept.dtype == torch.float32

    @pytest.mark.parametrize("lead", LEADS, ids=str)
    @pytest.mark.parametrize("entropy_requires_grad", [True, False])
    def test_with_the_entropy(self, utils, lead, entropy_requires_grad, masked, temperature):
        index = integers(CLASSES, *lead, seed=7)
        options = self.given(lead, masked, temperature) | {"entropy_requires_grad": entropy_requires_grad}
        functions = (ours.selective_log_softmax_and_entropy, utils.selective_log_softmax_and_entropy)
        assert_same(*(pulled(function, logits(*lead), index, **options) for function in functions))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("classes", [1, 2, 31, 1000, 50257])
@pytest.mark.parametrize("lead", [(1,), (37,), (2, 0), (3, 17), (2, 3, 5)], ids=str)
def test_16_bit_logits_give_the_bits_of_log_softmax(device, lead, classes, dtype, monkeypatch):
    if device.type != "cpu":
        pytest.skip("TRL's kernel gives float32 there")
    monkeypatch.setattr(ours, "LOG_SOFTMAX_BYTES", 4 * classes * dtype.itemsize)  # four rows at a time
    for step in (1, -1):  # -1: strided, like the logits of a batch that is cut or turned
        values = (4 * normal(*lead[::step], classes, seed=5)).to(dtype)
        values = values if step == 1 else values.permute(*reversed(range(len(lead))), len(lead))
        index = integers(classes, *lead, 3, seed=7)
        whole = values.log_softmax(-1)
        assert torch.equal(ours.selective_log_softmax(values, index), whole.gather(-1, index))
        one = ours.selective_log_softmax(values.requires_grad_(), index[..., 0].int())
        assert torch.equal(one, whole.gather(-1, index[..., :1]).squeeze(-1)) and one.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("several", [(), (3,)], ids=["one label", "3 labels"])
def test_the_gradient_of_16_bit_logits_is_rounded_once(dtype, several):
    """Torch's backward takes e to the power of a rounded log-probability: here the error is that of one rounding."""
    values, index = (2 * normal(6, 300, seed=5)).to(dtype), integers(300, 6, *several, seed=7)
    upstream = normal(*index.shape, seed=6).to(dtype)
    gradients = []
    for of in (values, values.double()):
        leaf = of.clone().requires_grad_()
        if of is values:
            found = ours.selective_log_softmax(leaf, index)
        else:
            found = leaf.log_softmax(-1).gather(-1, index if several else index.unsqueeze(-1)).reshape(index.shape)
        (gradient,) = torch.autograd.grad(found, leaf, upstream.to(found.dtype))
        gradients.append(gradient.double())
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    torch.testing.assert_close(*gradients, rtol=0.51 * torch.finfo(dtype).eps, atol=max(smallest, 1e-7))


def test_16_bit_log_probabilities_compile_whole():
    values, index = logits(3, 4, dtype=torch.bfloat16).requires_grad_(), integers(CLASSES, 3, 4, seed=7)
    compiled = torch.compile(ours.selective_log_softmax, fullgraph=True, backend="aot_eager")
    found = [
        torch.autograd.grad(function(values, index).sum(), values)
        for function in (compiled, ours.selective_log_softmax)
    ]
    torch.testing.assert_close(*found)


def test_what_stands_in_masked_rows_is_not_read():
    index = torch.tensor([[1, -100], [2, 3]])
    mask = torch.tensor([[1, 0], [1, 1]])
    values = logits(2, 2)
    values[0, 1] = torch.nan
    for function in (ours.selective_log_softmax, ours.selective_log_softmax_and_entropy):
        results = pulled(function, values, index, row_mask=mask)
        assert all(value.isfinite().all() for value in results.values())
        assert results["[0]"][0, 1] == 0 and not results["dlogits"][0, 1].any()


def test_a_temperature_is_refused_in_the_words_of_trl(utils):
    for package in (ours, utils):
        for function in (package.selective_log_softmax, package.selective_log_softmax_and_entropy):
            with pytest.raises(ValueError, match="temperature must be positive"):
                function(logits(2), torch.tensor([0, 1]), temperature=0.0)


def test_labels_that_are_no_classes(device):
    if device.type == "cpu":
        with pytest.raises(ValueError, match=r"labels: -100 at \[0\], expected 0 <= label < 29"):
            ours.selective_log_softmax(logits(2), torch.tensor([-100, 1]))
        with pytest.raises(ValueError, match="index: expected 0 <= label < 29"):
            ours.selective_log_softmax(logits(2), torch.tensor([[0, 29], [1, 1]]))
    with pytest.raises(ValueError, match=r"index: expected shape \(2, 'K'\), got \(3, 1\)"):
        ours.selective_log_softmax(logits(2), torch.zeros(3, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"row_mask: expected the shape of index, \(2, 1\), got \(2,\)"):
        ours.selective_log_softmax(logits(2), torch.zeros(2, 1, dtype=torch.int64), row_mask=torch.ones(2))


def test_entropy_of_tied_embeddings(theirs):
    """Hidden states that depend on the weight: its gradient comes by both ways once."""
    found = []
    for package in (theirs, ours):
        weight = normal(CLASSES, FEATURES, seed=2).requires_grad_()
        hidden = torch.tanh(weight[integers(CLASSES, TOKENS, seed=7)])
        entropy = package.ChunkedLogProbFunction.apply(
            hidden, weight, None, integers(CLASSES, TOKENS, seed=4), 1.0, 16
        )[1]
        entropy.sum().backward()
        found.append(weight.grad)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
