"""Sparse gradients of CPU tensors by the way of a GPU: the emulator runs its kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from prefuse._backends import columns
from prefuse.linear import operands, sparse
from tests.emulator.backend import Emulated


@contextlib.contextmanager
def gathering_columns(tensor_cores: bool = True) -> Iterator[None]:
    """Within, sparse gradients of CPU tensors are made as on a GPU, with kernels' own products or without."""
    device = Emulated()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("find", "gather", "add", "to_input", "to_weight"):
            patch.setattr(columns, name, getattr(device, f"columns_{name}"))
        patch.setattr(columns, "has_tensor_cores", lambda _: tensor_cores)
        for module in (sparse, operands):
            patch.setattr(module, "by_columns", lambda _: True)
        yield
