"""Random batches for two implementations of one signature, and how close their results must be.

In float32 both round differently from the same numbers: they agree to a small multiple of eps of a tensor's largest
number. In bfloat16 the original is also run in float32 on the same numbers, and ours may be off by what the original's
bfloat16 is, or a few roundings.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.devices import integers, normal

RESPONSES, TOKENS, FEATURES, CLASSES = 4, 5, 8, 23
TRAINED = ("_input", "weight", "bias")


def library(module: str) -> Any:
    """A library's module; tests are skipped where it is not installed."""
    return pytest.importorskip(module, exc_type=ImportError)


def head(bias: bool = True, dtype: torch.dtype = torch.float32, trained: tuple[str, ...] = TRAINED) -> dict[str, Any]:
    """Hidden states, weight and bias; confident rows among them, since small gradients are rounded worst there."""
    weight = normal(CLASSES, FEATURES, seed=2)
    states = normal(RESPONSES, TOKENS, FEATURES, seed=1)
    labels = targets()
    states[1, 2] = 2 * weight[labels[1, 2]]
    made = {"_input": states, "weight": weight, "bias": normal(CLASSES, seed=3) if bias else None}
    return {
        name: None if value is None else value.to(dtype).requires_grad_(name in trained) for name, value in made.items()
    }


def reference(bias: bool = True, dtype: torch.dtype = torch.float32) -> dict[str, Tensor | None]:
    """A reference model close to the policy of `head`."""
    policy = head(bias=True)
    made = {
        "ref_input": policy["_input"].detach() + 0.1 * normal(RESPONSES, TOKENS, FEATURES, seed=4),
        "ref_weight": policy["weight"].detach() + 0.1 * normal(CLASSES, FEATURES, seed=5),
        "ref_bias": normal(CLASSES, seed=6) if bias else None,
    }
    return {name: None if value is None else value.to(dtype) for name, value in made.items()}


def targets() -> Tensor:
    """Labels, prompts and padding ignored."""
    labels = integers(CLASSES, RESPONSES, TOKENS, seed=7)
    labels[0, :2] = labels[1, 4:] = labels[2, 3:] = -100
    return labels


def outcome(made: Any, tensors: Mapping[str, Tensor | None], upstream: float = 1.0) -> dict[str, Tensor]:
    """What a call returned, by position, and the gradients of its loss times `upstream`."""
    loss, beside = made
    assert not any(value.requires_grad for value in beside)
    (loss * upstream).backward()
    named = {"loss": loss.detach(), **{f"[{i}]": value for i, value in enumerate(beside)}}
    return named | {
        f"d{name}": value.grad for name, value in tensors.items() if value is not None and value.requires_grad
    }


def assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], roundings: int = 256) -> None:
    """In float32: the same names, dtypes and shapes, and numbers equal up to so many roundings of the largest."""
    assert list(ours) == list(theirs)
    for name, expected in theirs.items():
        got = ours[name]
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape), name
        scale = max(1e-2, float(expected.abs().max()) if expected.numel() else 0.0)
        torch.testing.assert_close(
            got, expected, rtol=0, atol=roundings * 2**-24 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def assert_as_good(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> None:
    """In bfloat16: no further from the original in float32 than twice what the original in bfloat16 is."""
    assert list(ours) == list(theirs) == list(exact)
    for name, expected in exact.items():
        assert (ours[name].dtype, ours[name].shape) == (theirs[name].dtype, theirs[name].shape), name
        allowed = 2 * float((theirs[name] - expected).abs().max()) + 2**-7 * float(expected.abs().max())
        assert float((ours[name] - expected).abs().max()) <= allowed, name


def signature(function: Callable[..., Any], leave_out: int = 0) -> list[tuple[str, Any]]:
    """Names and defaults of a function's parameters, in their order, but for the first ones."""
    parameters = list(inspect.signature(function).parameters.values())[leave_out:]
    return [(parameter.name, parameter.default) for parameter in parameters]
