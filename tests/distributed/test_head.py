"""`prefuse.head` of a transformers model under DDP and FSDP2: gradients are those of one process with the batch."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import prefuse
from tests.integration.models import VOCABULARY, causal_lm

pytest.importorskip("transformers")

PAIRS, LENGTH = 4, 7


def batch(own: bool) -> Tensor:
    tokens = torch.randint(3, VOCABULARY, (2 * PAIRS, LENGTH), generator=torch.Generator().manual_seed(3))
    if not own:
        return tokens
    count = PAIRS // dist.get_world_size()
    part = slice(dist.get_rank() * count, (dist.get_rank() + 1) * count)
    return torch.cat([role[part] for role in tokens.chunk(2)])


def step(model: nn.Module, tokens: Tensor, objective: str = "simpo") -> Tensor:
    score = prefuse.head(model).preference_loss(objective, labels=tokens, inputs={"input_ids": tokens})
    score.loss.backward()
    assert score.metrics["rewards/accuracies"] >= 0
    return score.loss


def same_gradients(model: nn.Module, family: str, rtol: float = 1e-4) -> None:
    alone = causal_lm(family)
    step(alone, batch(own=False))
    expected = {name: p.grad for name, p in alone.named_parameters()}
    found = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(
            whole, expected[name], rtol=rtol, atol=rtol * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def with_ddp(family: str, options: dict[str, bool]) -> None:
    model = DistributedDataParallel(causal_lm(family), **options)
    for _ in range(2):  # a static graph shows itself in the second
        model.zero_grad()
        step(model, batch(own=True))
    same_gradients(model, family)


@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}, {"static_graph": True}], ids=str)
def test_ddp(processes, options):
    processes.run(with_ddp, "qwen3-tied", options)


FSDP = [("llama", False), ("llama", True), ("qwen3-tied", False), ("modernbert", False), ("modernbert", True)]


def with_fsdp(family: str, own_head: bool) -> None:
    model = causal_lm(family)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (*model.model.layers, *([model.get_output_embeddings()] if own_head else ())):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    step(model, batch(own=True))
    same_gradients(model, family)


@pytest.mark.parametrize(("family", "own_head"), FSDP)
def test_fsdp(processes, family, own_head):
    processes.run(with_fsdp, family, own_head)


def with_first_fsdp(original: bool) -> None:
    model = causal_lm("llama")
    layers = ModuleWrapPolicy({type(model.model.layers[0])})
    model = FullyShardedDataParallel(
        model, auto_wrap_policy=layers, use_orig_params=original, device_id=torch.device("cpu")
    )
    step(model, batch(own=True))
    alone = causal_lm("llama")
    step(alone, batch(own=False))
    expected = torch.nn.utils.get_total_norm([p.grad for p in alone.parameters()])
    torch.testing.assert_close(model.clip_grad_norm_(1e9), expected)


@pytest.mark.parametrize("original", [False, True])
def test_fsdp_of_the_first_kind(processes, original):
    processes.run(with_first_fsdp, original)


def with_mixed_precision(own_head: bool) -> None:
    model = causal_lm("llama")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    policy = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32}
    for layer in (*model.model.layers, *([model.lm_head] if own_head else ())):
        fully_shard(layer, mesh=mesh, mp_policy=MixedPrecisionPolicy(**policy))
    fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(**policy, output_dtype=torch.float32))
    step(model, batch(own=True))
    same_gradients(model, "llama", rtol=0.05)


@pytest.mark.parametrize("own_head", [False, True])
def test_fsdp_with_mixed_precision(processes, own_head):
    processes.run(with_mixed_precision, own_head)
