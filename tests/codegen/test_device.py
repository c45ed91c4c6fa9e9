"""Scoring on a device, the device emulated: layouts, gradients, and that nothing waits for the device."""

from unittest import mock

import pytest
import sample_objectives
import test_operators
import torch
import worlds
from torch.utils._python_dispatch import TorchDispatchMode

from prefuse import objectives
from prefuse.language import group_objective, pair_objective, softplus, square
from tests.codegen import emulated

pytestmark = pytest.mark.needs("compiler")


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "packed"])
@pytest.mark.parametrize("case", ["reset", "softmax", "group meets token", "two reductions"])
def test_tokens(case, padded):
    with emulated.device():
        worlds.compare(test_operators.CASES[case], padded=padded)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_pairs(dtype):
    columns = sample_objectives.pair_columns(dtype=dtype)
    expected = sample_objectives.dpo(**columns)
    expected.loss.backward()
    other = {name: column.detach().clone().requires_grad_(column.requires_grad) for name, column in columns.items()}
    with emulated.device() as runs:
        score = sample_objectives.dpo(**other)
        score.loss.backward()
        both = sample_objectives.dpo.value_and_grad(**other)
    assert runs == [1, 1]
    assert score.metrics == pytest.approx(expected.metrics)
    torch.testing.assert_close(score.losses, expected.losses)
    torch.testing.assert_close(score.rewards, expected.rewards)
    for name, gradient in both.gradients.items():
        torch.testing.assert_close(other[name].grad, columns[name].grad)
        torch.testing.assert_close(gradient, columns[name].grad)


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_gradients_of_losses(reduction):
    columns = sample_objectives.pair_columns()
    weights = torch.linspace(0.5, 1.5, 6, dtype=torch.float64)

    def gradients():
        score = sample_objectives.plain_dpo(**columns, reduction=reduction)
        total = (score.losses * weights).sum() + (score.loss if reduction == "sum" else 0.0)
        return torch.autograd.grad(total, [column for column in columns.values() if column.requires_grad])

    expected = gradients()
    with emulated.device():
        for mine, theirs in zip(gradients(), expected, strict=True):
            torch.testing.assert_close(mine, theirs)


@pair_objective
def from_tokens(pair, *, beta=0.5):
    margin = (pair.chosen.token.logp * pair.chosen.token["weight"]).sum() - pair.rejected.token.logp.mean()
    return softplus(-beta * margin)


@group_objective
def centred(group):
    response = group.response
    advantage = response["reward"] - response["reward"].mean("group")
    i, j = group.pairs()
    return -(advantage * response.logp).sum("group") + square(i(response.logp) - j(response.logp)).mean("group")


def _pairs_of_tokens():
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(3, 5, generator=generator) < 0.6
    values = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    return {
        "chosen_token_logps": values[0].requires_grad_(),
        "chosen_token_weight": torch.rand(3, 5, generator=generator, dtype=torch.float64),
        "chosen_mask": mask,
        "rejected_token_logps": torch.randn(9, generator=generator, dtype=torch.float64).requires_grad_(),
        "rejected_cu_seqlens": torch.tensor([0, 2, 2, 9]),
    }


def _rectangle():
    generator = torch.Generator().manual_seed(1)
    return {
        "logps": torch.randn(4, 3, generator=generator, dtype=torch.float64).requires_grad_(),
        "reward": torch.randn(4, 3, generator=generator, dtype=torch.float64),
    }


class _NeverWaits(TorchDispatchMode):
    """Refuses what has to know a value."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique")

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        assert not any(waiting in name for waiting in self.WAITING), f"{name} waits for the device"
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize(
    ("objective", "columns"), [(from_tokens, _pairs_of_tokens), (centred, _rectangle)], ids=["tokens", "groups"]
)
def test_nothing_waits_for_the_device(objective, columns):
    expected_columns, given = columns(), columns()
    expected = objective(**expected_columns)
    expected.loss.backward()
    refuse = mock.Mock(side_effect=AssertionError("waits for the device"))
    refused = [mock.patch.object(torch.Tensor, name, refuse) for name in ("numpy", "tolist", "item", "cpu")]
    with emulated.device(), refused[0], refused[1], refused[2], refused[3], _NeverWaits():
        score = objective(**given)
        score.loss.backward()
    torch.testing.assert_close(score.loss, expected.loss)
    torch.testing.assert_close(score.losses, expected.losses)
    for name, column in expected_columns.items():
        if column.requires_grad:
            torch.testing.assert_close(given[name].grad, column.grad)


def test_wrong_shapes_are_refused():
    columns = _pairs_of_tokens()
    with emulated.device():
        with pytest.raises(ValueError, match=r"chosen_mask: expected shape \[3, T\]"):
            from_tokens(**{**columns, "chosen_mask": columns["chosen_mask"][..., None]})
        with pytest.raises(ValueError, match=r"rejected_cu_seqlens: expected integers of shape \[4\]"):
            from_tokens(**{**columns, "rejected_cu_seqlens": torch.tensor([0, 9])})
        with pytest.raises(ValueError, match="rejected_logps"):
            objectives.dpo(**{**sample_objectives.pair_columns(), "rejected_logps": torch.zeros(5)})


def test_debugging_looks_at_offsets(monkeypatch):
    monkeypatch.setenv("PREFUSE_DEBUG", "1")
    columns = {**_pairs_of_tokens(), "rejected_cu_seqlens": torch.tensor([0, 5, 2, 9])}
    with emulated.device(), pytest.raises(ValueError, match="never decrease"):
        from_tokens(**columns)
