"""Small batches of plain CPU tensors: the short way gives what the general way gives."""

import numpy as np
import pytest
import torch
from sample_objectives import dpo, pair_columns, regression, simpo

from prefuse import _prefuse
from prefuse.language import log_sigmoid, pair_objective
from prefuse.scoring import execution

equal = torch.testing.assert_close


@pair_objective
def moved(pair):
    return -log_sigmoid(pair.chosen.logp - pair.rejected.logp - pair.batch["delta"])


def numpy_of(columns):
    """The same columns as NumPy arrays, which go the general way."""
    return {name: value.detach().numpy() for name, value in columns.items()}


def check_against_numpy(objective, columns):
    score, wanted = objective.value_and_grad(**columns), objective.value_and_grad(**numpy_of(columns))
    exactly = {"rtol": 0, "atol": 0, "equal_nan": True}
    equal(score.loss, torch.from_numpy(wanted.loss), **exactly)
    equal(score.losses, torch.from_numpy(wanted.losses), **exactly)
    for name, gradient in score.gradients.items():
        equal(gradient, torch.from_numpy(wanted.gradients[name]), **exactly)
    for role, reward in score.rewards.items():
        equal(reward, torch.from_numpy(wanted.rewards[role]), **exactly)
    assert str(score.metrics) == str(wanted.metrics)
    return score


def bound(columns):
    """What the short way makes of a call; None where it leaves it to the general way."""
    return execution.score_plain(dpo._plan(columns), columns, dpo._numbers, "mean")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0, 1, 2, 64])
def test_the_short_way_gives_the_same_bits(size, dtype):
    columns = pair_columns(size, dtype=dtype)
    assert bound(columns) is not None
    score = check_against_numpy(dpo, columns)
    assert list(score.gradients) == ["chosen_logps", "rejected_logps"]
    check_against_numpy(dpo, pair_columns(size, dtype=dtype, grad=False))
    recorded = dpo(**columns)
    equal(recorded.loss.detach(), score.loss, rtol=0, atol=0, equal_nan=True)
    equal(recorded.losses.detach(), score.losses, rtol=0, atol=0)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_short_way_is_taken(reduction, grad, monkeypatch):
    def other(*arguments):
        raise AssertionError("the general way")

    for name in ("_score_other", "_differentiate_other"):
        monkeypatch.setattr(execution, name, other)
    score = dpo(**pair_columns(dtype=torch.float32, grad=grad), reduction=reduction)
    assert score.loss.requires_grad == score.losses.requires_grad == grad
    dpo.value_and_grad(**pair_columns(dtype=torch.float32, grad=grad))


def test_strided_and_expanded_columns():
    columns = pair_columns(dtype=torch.float32, grad=False)
    wide = {name: torch.stack([value, value + 1], 1)[:, 0] for name, value in columns.items()}
    wide["ref_chosen_logps"] = torch.tensor([-3.0]).expand(6)
    assert bound(wide) is not None
    score = check_against_numpy(dpo, wide)
    assert all(gradient.is_contiguous() for gradient in score.gradients.values())


def test_lengths_and_labels_go_the_short_way():
    columns = pair_columns(dtype=torch.float32, grad=False)
    columns["ref_chosen_logps"] = columns["ref_chosen_logps"].long()
    assert bound(columns) is not None
    same = {name: value.double() for name, value in columns.items()}
    equal(dpo(**columns).loss.double(), dpo(**same).loss, rtol=1e-6, atol=0)
    assert bound({name: value.long() for name, value in columns.items()}) is None


@pytest.mark.parametrize(
    "other",
    [
        lambda column: column.double(),
        lambda column: column.bfloat16(),
        lambda column: column.int(),
        lambda column: column.as_subclass(type("Mine", (torch.Tensor,), {})),
    ],
)
def test_mixed_dtypes_and_subclasses_go_the_general_way(other):
    columns = pair_columns(dtype=torch.float32, grad=False)
    columns["ref_chosen_logps"] = other(columns["ref_chosen_logps"])
    assert bound(columns) is None
    same = {name: torch.Tensor(value).double() for name, value in columns.items()}
    equal(dpo(**columns).loss.double(), dpo(**same).loss, rtol=1e-6, atol=0)


def test_shapes_that_do_not_fit_are_named():
    columns = pair_columns(dtype=torch.float32)
    with pytest.raises(ValueError, match=r"rejected_logps: expected one value per pair, shape \[6\], got shape \[5\]"):
        dpo(**{**columns, "rejected_logps": columns["rejected_logps"][:5]})
    with pytest.raises(ValueError, match=r"chosen_logps: expected one value per pair.*\[6, 1\]"):
        dpo.value_and_grad(**{**columns, "chosen_logps": columns["chosen_logps"][:, None]})
    with pytest.raises(ValueError, match="ref_chosen_logps"):
        dpo.value_and_grad(**{**columns, "ref_chosen_logps": torch.tensor(-1.0)})


@pytest.mark.parametrize("shape", [(), (1,)])
def test_numbers_of_the_batch(shape):
    columns = {name: value for name, value in pair_columns(grad=False).items() if not name.startswith("ref")}
    columns["delta"] = torch.full(shape, 0.5, dtype=torch.float64, requires_grad=True)
    gradient = check_against_numpy(moved, columns).gradients["delta"]
    assert gradient.shape == shape
    moved(**columns).loss.backward()
    equal(columns["delta"].grad, gradient)


def test_points_and_lengths():
    generator = torch.Generator().manual_seed(1)
    logps, ref_logps, score = (torch.randn(7, generator=generator) for _ in range(3))
    value = regression.value_and_grad(logps=logps, ref_logps=ref_logps, score=score)
    wanted = regression.value_and_grad(logps=logps.numpy(), ref_logps=ref_logps.numpy(), score=score.numpy())
    equal(value.loss, torch.from_numpy(wanted.loss), rtol=0, atol=0)
    equal(value.rewards, torch.from_numpy(wanted.rewards), rtol=0, atol=0)
    columns = {name: column for name, column in pair_columns(dtype=torch.float32).items() if "ref" not in name}
    check_against_numpy(simpo, columns | {f"{role}_lengths": logps[:6].abs() * 9 for role in ("chosen", "rejected")})


def test_results_do_not_share_memory():
    columns = pair_columns(dtype=torch.float32)
    score, again = dpo.value_and_grad(**columns), dpo.value_and_grad(**columns)
    results = [score.loss, score.losses, *score.rewards.values(), *score.gradients.values()]
    wanted = [again.loss, again.losses, *again.rewards.values(), *again.gradients.values()]
    for changed in range(len(results)):
        kept = results[changed].clone()
        results[changed].fill_(-7)
        for position, (result, value) in enumerate(zip(results, wanted, strict=True)):
            if position != changed:
                equal(result, value, rtol=0, atol=0)
        results[changed].copy_(kept)
    assert score.metrics == again.metrics
    assert not any(gradient.requires_grad for gradient in score.gradients.values())


def test_recorded_results_can_be_changed_in_place():
    columns = pair_columns(dtype=torch.float32)
    leaf = columns["chosen_logps"]
    wanted = torch.autograd.grad(dpo(**columns).loss, leaf)[0]
    score = dpo(**columns)
    losses = score.losses.detach().clone()
    score.loss.div_(4)
    equal(score.losses.detach(), losses)
    score.losses.mul_(2)
    equal(torch.autograd.grad(score.loss, leaf, retain_graph=True)[0], wanted / 4)
    equal(torch.autograd.grad(score.losses.mean(), leaf)[0], wanted * 2)


def test_columns_changed_before_backward_are_noticed():
    columns = pair_columns(dtype=torch.float32)
    columns["chosen_logps"] = columns["chosen_logps"] * 1
    losses = dpo(**columns).losses
    columns["chosen_logps"].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.sum().backward()


def test_gradients_are_given_away_only_once():
    """A backward pass gives the gradients that were made with the loss away, unless there may be another one."""
    columns = pair_columns(dtype=torch.float32)
    leaf, other = columns["chosen_logps"], columns["rejected_logps"]
    wanted, elsewhere = (value.clone() for value in torch.autograd.grad(dpo(**columns).loss, (leaf, other)))
    loss = dpo(**columns).loss
    leaf.register_hook(lambda gradient: gradient.mul_(2))
    for times in (2, 4):
        loss.backward(retain_graph=True)
        equal(leaf.grad, wanted * times, rtol=0, atol=0)
    equal(torch.autograd.grad(loss, other, torch.tensor(0.25), retain_graph=True)[0], elsewhere / 4, rtol=0, atol=0)
    leaf.grad = None
    loss.backward()
    equal(leaf.grad, wanted * 2, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_gradients_of_many_losses_at_once():
    columns = pair_columns(dtype=torch.float32)
    leaf, factors = columns["chosen_logps"], torch.tensor([1.0, 0.5, -3.0])
    (wanted,) = torch.autograd.grad(dpo(**columns).loss, leaf)
    (batched,) = torch.autograd.grad(dpo(**columns).loss, leaf, factors, is_grads_batched=True)
    equal(batched, factors[:, None] * wanted)


def test_gradients_of_one_tensor_in_two_columns():
    columns = pair_columns(dtype=torch.float64)
    leaf, same = columns["chosen_logps"], columns["chosen_logps"].detach().clone().requires_grad_()
    apart = torch.autograd.grad(dpo(**columns | {"ref_rejected_logps": same}).loss, (leaf, same))
    (both,) = torch.autograd.grad(dpo(**columns | {"ref_rejected_logps": leaf}).loss, leaf)
    equal(both, apart[0] + apart[1], rtol=0, atol=0)
    assert both.count_nonzero()


def test_gradients_through_hooks_of_saved_tensors():
    columns, kept = pair_columns(dtype=torch.float32), []
    leaf = columns["chosen_logps"]
    (wanted,) = torch.autograd.grad(dpo(**columns).loss, leaf)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or len(kept) - 1, kept.__getitem__
    ):
        loss = dpo(**columns).loss
    equal(torch.autograd.grad(loss, leaf)[0], wanted, rtol=0, atol=0)
    assert kept


@pytest.mark.parametrize(
    ("tensor", "one"),
    [
        (torch.tensor(1.0), True),
        (torch.tensor(1.0, dtype=torch.float64), True),
        (torch.tensor(1.0).expand(1)[0], True),
        (torch.tensor(0.5), False),
        (torch.tensor(torch.nan), False),
        (torch.ones(1), False),
        (torch.ones(3), False),
        (torch.ones((), device="meta"), False),
    ],
)
def test_the_number_one(tensor, one):
    assert _prefuse.is_one(tensor) is one


@pytest.mark.parametrize("asked", ["before", "after"])
@pytest.mark.parametrize("changed", ["chosen_logps", "ref_chosen_logps"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_know_what_was_scored(asked, changed, dtype):
    columns = {name: value.detach().to(dtype) for name, value in pair_columns().items()}
    leaf = columns["rejected_logps"].requires_grad_()
    score = dpo(**columns)
    values = score.losses if asked == "before" else None
    with torch.no_grad():
        columns[changed].add_(1)
        losses = score.losses
    assert losses.requires_grad and (values is None or values is losses)
    assert score.loss.item() == pytest.approx(losses.mean().item())
    score.loss.backward()  # its gradient was made with it
    assert torch.equal(leaf.grad, torch.autograd.grad(dpo(**columns | {changed: columns[changed] - 1}).loss, leaf)[0])
    with pytest.raises(RuntimeError, match=f"{changed}: changed in place after dpo had scored it"):
        losses.sum().backward()


def test_losses_of_columns_made_for_inference():
    columns = pair_columns(dtype=torch.float32)
    with torch.inference_mode():
        columns["ref_chosen_logps"] = columns["ref_chosen_logps"].clone()
    leaf = columns["chosen_logps"]
    wanted = torch.autograd.grad(dpo(**columns).loss, leaf)[0]
    equal(torch.autograd.grad(dpo(**columns).losses.mean(), leaf)[0], wanted)


def test_defaults_of_torch_do_not_matter():
    columns = pair_columns(dtype=torch.float32)
    wanted = dpo.value_and_grad(**columns)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            score = dpo.value_and_grad(**columns)
    finally:
        torch.set_default_dtype(torch.float32)
    equal(score.loss, wanted.loss, rtol=0, atol=0)
    equal(score.losses, wanted.losses, rtol=0, atol=0)


def doubling():
    graph = _prefuse.Graph("double", {"item": "batch"})
    x = graph.column("x", "item")
    double = graph.binary("mul", x, graph.constant(2.0))
    return graph.compile([double, graph.reduce("sum", x, "batch"), x])


def capsule(array):
    return array.__dlpack__()


def test_capsules_of_any_exporter():
    program = doubling()
    x, out = np.arange(3.0), np.empty(7)
    program.run([capsule(x)], [], [3], [capsule(out)], 1)
    assert out.tolist() == [0, 2, 4, 3, 0, 1, 2]
    program.run([capsule(x[::-1])], [], [3], [capsule(out[:3]), capsule(out[3:])], 1)
    assert out.tolist() == [4, 2, 0, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("columns", "outputs", "message"),
    [
        ([np.zeros((3, 1))], [np.empty(7)], r"columns\[0\]: expected at most one dimension, got 2"),
        ([np.zeros(3, np.int8)], [np.empty(7)], r"columns\[0\]: expected f16, bf16, .* type 0 of 8 bits"),
        ([np.zeros(3)], [np.empty(6)], "output 2: expected room for 3 values .* got 2"),
        ([np.zeros(3)], [np.empty(2), np.empty(5)], "output 0: expected room for 3 values .* got 2"),
        ([np.zeros(3)], [np.empty(7), np.empty(2)], "outputs: 2 values are not filled"),
        ([np.zeros(3)], [np.empty(7, np.int64)], r"outputs\[0\]: expected dtype f32 or f64, got i64"),
        ([np.zeros(3)], [], "output 0: expected room for 3 values .* got 0"),
    ],
)
def test_capsules_that_do_not_fit_are_refused(columns, outputs, message):
    with pytest.raises(ValueError, match=message):
        doubling().run(list(map(capsule, columns)), [], [3], list(map(capsule, outputs)), 1)


def test_consumed_capsules_are_refused():
    used = torch.zeros(3).__dlpack__()
    torch.from_dlpack(used)
    with pytest.raises(ValueError, match=r"columns\[0\]: expected a DLPack capsule that nobody has consumed"):
        doubling().run([used], [], [3], [capsule(np.empty(7))], 1)
