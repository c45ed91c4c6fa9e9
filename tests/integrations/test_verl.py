"""`prefuse.integrations.verl` beside a stand-in of verl's modules and float64."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import prefuse
from prefuse.integrations.verl import (
    entropy_from_logits,
    fused_linear_for_ppo,
    logprobs_from_logits,
    sum_pi_squared_from_logits,
)
from tests.devices import integers, normal
from tests.integrations.standins import Modules, install, is_real, modules_of

FUNCTIONS = "verl.utils.torch_functional"
FUSED = "verl.utils.experimental.torch_functional"
NAMES = (
    "logprobs_from_logits",
    "entropy_from_logits",
    "entropy_from_logits_with_chunking",
    "calculate_sum_pi_squared_from_logits",
)


def theirs_logprobs(logits: Tensor, labels: Tensor, inplace_backward: bool = True) -> Tensor:
    return logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]


def theirs_entropy(logits: Tensor) -> Tensor:
    p = logits.softmax(-1)
    return logits.logsumexp(-1) - (p * logits).sum(-1)


def theirs_chunked_entropy(logits: Tensor, chunk_size: int = 2048) -> Tensor:
    return theirs_entropy(logits.float())


def theirs_sum_pi_squared(logits: Tensor) -> Tensor:
    return (2 * logits).logsumexp(-1).sub(2 * logits.logsumexp(-1)).exp()


class FusedLinearForPPO(torch.nn.Module):
    chunk_size = 512

    def forward(self, hidden_states: Any, vocab_weights: Any, input_ids: Any, temperature: Any = 1.0) -> Any:
        logits = hidden_states @ vocab_weights.t() / temperature
        return theirs_logprobs(logits.float(), input_ids), theirs_entropy(logits.float()).to(logits.dtype)


THEIRS = dict(zip(NAMES, (theirs_logprobs, theirs_entropy, theirs_chunked_entropy, theirs_sum_pi_squared), strict=True))
HOLDER = "verl.trainer.ppo.prefix_grouper_utils"
"""A module that imports `logprobs_from_logits` by name."""


@pytest.fixture
def verl(monkeypatch: pytest.MonkeyPatch) -> Modules:
    if is_real("verl"):
        for path, module in modules_of({"prefix_grouper": {"PrefixGrouper": None}}).items():  # what the holder imports
            monkeypatch.setitem(sys.modules, path, module)
        return {path: importlib.import_module(path) for path in (FUNCTIONS, FUSED, HOLDER)}
    contents: dict[str, dict[str, Any]] = {
        FUNCTIONS: {**THEIRS, "FLAH_ATTN_CROSS_ENTROPY_LOSS_AVAILABLE": False},
        FUSED: {"FusedLinearForPPO": FusedLinearForPPO},
        HOLDER: {"logprobs_from_logits": theirs_logprobs},
    }
    return install(monkeypatch, "verl", "0.9.1", contents)


def exact(hidden: Tensor, weight: Tensor, labels: Tensor, temperature: Any, up: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Log-probabilities, entropies and the gradients of both in float64; 0 where a label is −100."""
    hidden, weight = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    if isinstance(temperature, Tensor) and temperature.ndim:
        temperature = temperature.double()[..., None]
    log_p = (hidden @ weight.T / temperature).log_softmax(-1)
    scored = labels != -100
    logps = log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0].where(scored, 0)
    entropy = -(log_p.exp() * log_p).sum(-1).where(scored, 0)
    ((logps * up[0]).sum() + (entropy * up[1]).sum()).backward()
    assert hidden.grad is not None and weight.grad is not None
    return [logps.detach(), entropy.detach(), hidden.grad, weight.grad]


TEMPERATURES = {
    "number": 0.7,
    "tensor": torch.tensor(1.3),
    "by sample": torch.tensor([0.5, 1.0, 2.0, 0.9]),
    "by token": torch.linspace(0.5, 2.0, 4 * 9).reshape(4, 9),
}


@pytest.mark.parametrize("kind", TEMPERATURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_hidden_states_as_in_float64(kind: str, dtype: torch.dtype) -> None:
    hidden, weight = normal(4, 9, 16, seed=0).to(dtype), normal(37, 16, seed=1).to(dtype)
    labels = integers(37, 4, 9, seed=2)
    labels[0, :3] = -100
    temperature = TEMPERATURES[kind]
    of_tokens = temperature[:, None] if kind == "by sample" else temperature  # type: ignore[index]
    up = normal(4, 9, seed=3), normal(4, 9, seed=4)
    own, head = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logps, entropy = fused_linear_for_ppo(own, head, labels, temperature)
    assert (logps.dtype, entropy.dtype, logps.shape, entropy.shape) == (torch.float32, dtype, (4, 9), (4, 9))
    ((logps * up[0]).sum() + (entropy * up[1]).sum()).backward()
    assert own.grad is not None and head.grad is not None
    rounding = (16 if dtype == torch.float32 else 4) * torch.finfo(dtype).eps
    right = exact(hidden, weight, labels, of_tokens, up)
    for ours, expected in zip((logps, entropy, own.grad, head.grad), right, strict=True):
        assert (ours.double() - expected).abs().max() <= rounding * expected.abs().max()


def test_a_temperature_by_sample_is_not_one_by_position() -> None:
    """Where there are as many samples as positions, too."""
    hidden, weight, labels = normal(5, 5, 8, seed=0), normal(11, 8, seed=1), integers(11, 5, 5, seed=2)
    temperature = torch.tensor([0.3, 0.6, 1.0, 2.0, 4.0])
    found, _ = fused_linear_for_ppo(hidden, weight, labels, temperature)
    rows = [fused_linear_for_ppo(hidden[i], weight, labels[i], float(temperature[i]))[0] for i in range(5)]
    torch.testing.assert_close(found, torch.stack(rows))


def test_packed_hidden_states() -> None:
    hidden, weight, labels = normal(12, 8, seed=0), normal(11, 8, seed=1), integers(11, 12, seed=2).int()
    found = fused_linear_for_ppo(hidden, weight, labels, 0.5)
    inside = fused_linear_for_ppo(hidden[None], weight, labels[None], 0.5)
    for a, b in zip(found, inside, strict=True):
        torch.testing.assert_close(a, b[0], rtol=0, atol=0)


@pytest.mark.parametrize("overwrites", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_logits_as_in_float64(dtype: torch.dtype, overwrites: bool) -> None:
    logits = (normal(3, 7, 41, seed=0) * 8).to(dtype).requires_grad_()
    labels = integers(41, 3, 7, seed=1)
    found = logprobs_from_logits(logits * 1, labels, overwrites=overwrites)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    right = logits.detach().double().requires_grad_()
    logps = theirs_logprobs(right, labels)
    (expected,) = torch.autograd.grad(logps.sum(), right)
    torch.testing.assert_close(found.double(), logps, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(gradient, expected.to(dtype))


def test_logits_that_are_a_leaf_are_never_overwritten() -> None:
    logits, labels = normal(7, 41, seed=0).requires_grad_(), integers(41, 7, seed=1)
    kept = logits.detach().clone()
    logprobs_from_logits(logits, labels, inplace_backward=True, overwrites=True).sum().backward()
    assert torch.equal(logits, kept)


def test_entropy_and_sum_of_squares() -> None:
    logits = (normal(3, 7, 41, seed=0) * 4).bfloat16()
    right = logits.double()
    assert entropy_from_logits(logits).dtype == sum_pi_squared_from_logits(logits).dtype == torch.bfloat16
    single = logits.float().requires_grad_()
    entropy = entropy_from_logits(single)
    torch.testing.assert_close(entropy.double(), theirs_entropy(right), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(sum_pi_squared_from_logits(single).double(), theirs_sum_pi_squared(right))
    (gradient,) = torch.autograd.grad(entropy.sum(), single)
    right.requires_grad_()
    (expected,) = torch.autograd.grad(theirs_entropy(right).sum(), right)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_class_that_cannot_be_takes_no_part_in_the_entropy() -> None:
    logits = torch.tensor([[0.0, 0.0, -torch.inf]])
    torch.testing.assert_close(entropy_from_logits(logits), torch.tensor([2.0]).log())
    assert theirs_entropy(logits).isnan().all()


def test_accelerate_and_back(verl: Modules) -> None:
    before = {name: vars(verl[FUNCTIONS])[name] for name in NAMES}
    head = verl[FUSED].FusedLinearForPPO()
    hidden, weight = normal(2, 5, 8, seed=0), normal(11, 8, seed=1)
    labels = integers(11, 2, 5, seed=2)
    theirs = head(hidden, weight, labels, 0.7)
    labels_with_gap = labels.clone()
    labels_with_gap[0, 0] = -100

    acceleration = prefuse.integrations.verl.accelerate()
    assert len(acceleration.places) == 5 and any("triton" in place for place in acceleration.left)
    ours = head.forward(hidden_states=hidden, vocab_weights=weight, input_ids=labels_with_gap, temperature=0.7)
    assert ours[0][0, 0] == ours[1][0, 0] == 0
    for a, b in zip(theirs, ours, strict=True):
        torch.testing.assert_close(a.flatten()[1:], b.flatten()[1:])
    logits = hidden @ weight.T
    expected = theirs_logprobs(logits, labels)
    for function in (verl[HOLDER].logprobs_from_logits, verl[FUNCTIONS].logprobs_from_logits):
        assert function is not before["logprobs_from_logits"]
        torch.testing.assert_close(function(logits=logits, labels=labels, inplace_backward=False), expected)
    torch.testing.assert_close(
        verl[FUNCTIONS].entropy_from_logits_with_chunking(logits[0].bfloat16(), chunk_size=3),
        theirs_entropy(logits[0].bfloat16().float()),
    )
    imported_later = verl[FUNCTIONS].entropy_from_logits
    again = prefuse.integrations.verl.accelerate()
    acceleration.remove()
    assert verl[HOLDER].logprobs_from_logits is not before["logprobs_from_logits"]
    again.remove()
    assert {name: vars(verl[FUNCTIONS])[name] for name in NAMES} == before
    assert verl[HOLDER].logprobs_from_logits is before["logprobs_from_logits"]
    assert imported_later(torch.tensor([[0.0, -torch.inf]])).isnan().all()  # verl's own again
    with pytest.raises((RuntimeError, IndexError)):
        head(hidden, weight, labels_with_gap, 0.7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sharpness", [0.3, 3.0])
def test_no_less_exact_than_verl(verl: Modules, dtype: torch.dtype, sharpness: float) -> None:
    hidden, weight = normal(64, 48, seed=0).to(dtype), (sharpness * normal(301, 48, seed=1)).to(dtype)
    labels, up = integers(301, 64, seed=2), (normal(64, seed=3), normal(64, seed=4))
    right = exact(hidden, weight, labels, 0.7, up)

    def errors() -> list[float]:
        own, head = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        logps, entropy = verl[FUSED].FusedLinearForPPO()(own, head, labels, 0.7)
        assert (logps.dtype, entropy.dtype) == (torch.float32, dtype)
        ((logps * up[0]).sum() + (entropy * up[1]).sum()).backward()
        found = (logps, entropy, own.grad, head.grad)
        return [float((f.detach().double() - r).norm() / r.norm()) for f, r in zip(found, right, strict=True)]

    theirs = errors()
    with prefuse.integrations.verl.accelerate():
        ours = errors()
    slack = torch.finfo(torch.float32).eps  # 2 %: both round the same logits to 16 bits, and luck decides
    assert all(a <= 1.02 * b + slack for a, b in zip(ours, theirs, strict=True)), (ours, theirs)


def test_sum_of_squares_keeps_its_gradient(verl: Modules) -> None:
    logits = normal(3, 11, seed=0).requires_grad_()
    with prefuse.integrations.verl.accelerate():
        function = verl[FUNCTIONS].calculate_sum_pi_squared_from_logits
        (found,) = torch.autograd.grad(function(logits).sum(), logits)
    (expected,) = torch.autograd.grad(theirs_sum_pi_squared(logits).sum(), logits)
    torch.testing.assert_close(found, expected)


def test_a_module_to_import_in_workers(verl: Modules) -> None:
    before = verl[FUNCTIONS].entropy_from_logits
    sys.modules.pop("prefuse.integrations.on_import.verl", None)
    module = importlib.import_module("prefuse.integrations.on_import.verl")
    assert verl[FUNCTIONS].entropy_from_logits is not before
    module.ACCELERATION.remove()
    assert verl[FUNCTIONS].entropy_from_logits is before


def test_without_verl(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(ImportError, match=r"prefuse.integrations.verl: verl is not installed; tried with 0\.9\.1"):
        prefuse.integrations.verl.accelerate()


@pytest.mark.parametrize("name", [*NAMES, "FusedLinearForPPO"])
def test_another_verl_is_refused_and_left_alone(verl: Modules, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(verl[FUSED if name == "FusedLinearForPPO" else FUNCTIONS], name)
    before = {path: dict(vars(module)) for path, module in verl.items()}
    with pytest.raises(RuntimeError, match=f"(?s)tried with verl 0.9.1.*{name}.*Nothing was changed"):
        prefuse.integrations.verl.accelerate()
    assert {path: dict(vars(module)) for path, module in verl.items()} == before
