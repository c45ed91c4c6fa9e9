"""Compare an objective written in the language with the same thing written in PyTorch, value and gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.testing import assert_allclose

Columns = Mapping[str, Any]


def arrays(columns: Columns) -> dict[str, np.ndarray]:
    """Columns as float64 NumPy arrays; booleans and integers (labels, masks, groups) stay what they are."""
    found = {name: np.asarray(value) for name, value in columns.items()}
    return {name: value.astype(np.float64) if value.dtype.kind == "f" else value for name, value in found.items()}


def check_against(
    objective: Any,
    columns: Columns,
    reference: Callable[..., torch.Tensor],
    *,
    weights: np.ndarray | None = None,
    rtol: float = 1e-9,
    **parameters: Any,
) -> None:
    """Losses per item, their mean and the gradient to every float column must be the reference's.

    ``reference`` takes the columns as tensors and the hyper-parameters, and returns one loss per item (or a scalar for
    an objective of the whole batch).
    """
    given = arrays(columns)
    score = objective(**parameters)(**given) if parameters else objective(**given)
    tensors = {name: torch.tensor(value, requires_grad=value.dtype.kind == "f") for name, value in given.items()}
    losses = reference(**tensors, **parameters)
    losses.mean().backward()
    assert_allclose(score.losses, losses.detach().numpy(), rtol=rtol, atol=1e-10)
    assert_allclose(score.loss, float(losses.detach().mean()), rtol=rtol, atol=1e-10)
    for name, tensor in tensors.items():
        if tensor.grad is not None:
            assert_allclose(score.gradients[name], tensor.grad.numpy(), rtol=rtol, atol=1e-10, err_msg=name)
        elif tensor.requires_grad and name in score.gradients:
            assert_allclose(score.gradients[name], 0.0, atol=0.0, err_msg=name)


def check_numbers(
    objective: Any, columns: Columns, loss: float, gradients: Mapping[str, Any] | None = None, **parameters: Any
) -> None:
    """Worked numbers, printed with six decimals."""
    given = arrays(columns)
    score = objective(**parameters)(**given) if parameters else objective(**given)
    assert_allclose(score.loss, loss, rtol=3e-7, atol=1e-6)
    for name, expected in (gradients or {}).items():
        assert_allclose(score.gradients[name], expected, rtol=3e-7, atol=1e-6, err_msg=name)


def ragged_mask(lengths: list[int], width: int) -> np.ndarray:
    return np.arange(width)[None, :] < np.asarray(lengths)[:, None]


def by_group(groups: torch.Tensor) -> list[torch.Tensor]:
    """Indices of the responses of each group, groups by ascending id."""
    return [torch.nonzero(groups == group).flatten() for group in groups.unique(sorted=True)]
