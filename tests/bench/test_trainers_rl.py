"""The ways of OpenRLHF and verl that are measured give what prefuse's give, as does the script."""

from __future__ import annotations

import pytest
import torch

from prefuse.bench import trainers_rl


@pytest.mark.parametrize("name", [name for name, path in trainers_rl.PATHS.items() if path.against])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_numbers(name: str, dtype: str) -> None:
    against = trainers_rl.PATHS[name].against
    assert against is not None
    found = trainers_rl.step(name, 24, 16, 101, dtype)()
    right = trainers_rl.step(against, 24, 16, 101, dtype)()
    for ours, theirs in zip(found, right, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        distance = (ours.float() - theirs.float()).norm()
        assert distance <= (1e-5 if dtype == "float32" else 0.02) * theirs.float().norm()


def test_every_framework_has_both_ways() -> None:
    own = {path.framework for path in trainers_rl.PATHS.values() if path.against is None}
    assert own == {path.framework for path in trainers_rl.PATHS.values() if path.against} == {"OpenRLHF", "verl"}
    assert all(torch.isfinite(trainers_rl.step(name, 8, 4, 11)()[0]) for name in trainers_rl.PATHS)
