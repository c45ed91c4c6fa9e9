"""`prefuse.integrations.nemo_rl` in processes of a group, beside a stand-in of NeMo-RL's function."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import prefuse
from tests.devices import integers, normal
from tests.distributed.processes import Processes, started
from tests.integrations.standins import install

PLACE, NAME = "nemo_rl.distributed.model_utils", "from_parallel_hidden_states_to_logprobs"
POSITIONS, ROWS, FEATURES, CLASSES = 8, 3, 16, 60


def theirs(
    tensor_parallel_hidden_states: Tensor,
    output_weight_layer: Tensor,
    runtime_gather_output: bool,
    target: Tensor,
    vocab_start_index: int,
    vocab_end_index: int,
    tp_group: Any,
    inference_only: bool = False,
    cp_group: Any = None,
    chunk_size: int | None = None,
) -> Tensor:
    raise AssertionError("not NeMo-RL's own")


@pytest.fixture(scope="module", params=[1, 2], ids="{} processes".format)
def processes(request: pytest.FixtureRequest) -> Iterator[Processes]:
    yield from started(request.param)


def part(whole: Tensor) -> Tensor:
    return whole.chunk(dist.get_world_size())[dist.get_rank()].clone()


def check(dtype: torch.dtype) -> None:
    """Beside float64 of the whole head: the token at t + 1 from position t, [B, S - 1]."""
    hidden, weight = normal(POSITIONS, ROWS, FEATURES, seed=3).to(dtype), normal(CLASSES, FEATURES, seed=4).to(dtype)
    tokens, up = integers(CLASSES, ROWS, POSITIONS, seed=5), normal(ROWS, POSITIONS - 1, seed=6)
    exact = [each.double().requires_grad_() for each in (hidden, weight)]
    log_p = (exact[0] @ exact[1].T).log_softmax(-1).transpose(0, 1)[:, :-1]
    right = log_p.gather(-1, tokens[:, 1:, None])[..., 0]
    gradients = torch.autograd.grad((right * up).sum(), exact)
    own, rows = part(hidden).requires_grad_(), part(weight).requires_grad_()
    first = dist.get_rank() * rows.shape[0]
    with pytest.MonkeyPatch.context() as monkeypatch:
        modules = install(monkeypatch, "nemo-rl", "0.6.0", {PLACE: {NAME: theirs}})
        with prefuse.integrations.nemo_rl.accelerate() as acceleration:
            assert acceleration.places == [f"{PLACE}.{NAME}"]
            function = getattr(modules[PLACE], NAME)
            given = (own, rows, False, tokens, first, first + rows.shape[0])
            found = function(*given, tp_group=dist.group.WORLD, chunk_size=3)
            assert not function(*given, dist.group.WORLD, True).requires_grad
            with pytest.raises(ValueError, match=f"vocab_start_index: expected {first}, this rank times its rows"):
                function(own, rows, False, tokens, first + 1, 0, dist.group.WORLD)
        assert getattr(modules[PLACE], NAME) is theirs
    found_gradients = torch.autograd.grad((found * up).sum(), (own, rows))
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-2}[dtype]
    expected = [right.detach(), *map(part, gradients)]
    for ours, each in zip((found, *found_gradients), expected, strict=True):
        assert ours.shape == each.shape
        assert (ours.double() - each).abs().max() <= tolerance * max(1.0, float(each.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_hidden_states(processes: Processes, dtype: torch.dtype) -> None:
    processes.run(check, dtype)


def test_another_function_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "nemo-rl", "0.6.0", {PLACE: {NAME: lambda hidden, weight: None}})
    with pytest.raises(RuntimeError, match=r"(?s)nemo-rl 0.6.0.*from_parallel_hidden_states_to_logprobs\(tensor"):
        prefuse.integrations.nemo_rl.accelerate()
