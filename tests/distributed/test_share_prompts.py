"""Shared prompts under DDP and FSDP2: gradients as of one process with whole rows, though ranks share unequally."""

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

PAIRS, PROMPT, RESPONSE = 4, 20, 5


def batch(own: bool) -> Tensor:
    """Rows of pairs; the second half has prompts of their own, so that half of the processes share nothing."""
    generator = torch.Generator().manual_seed(3)
    prompts = torch.randint(3, VOCABULARY, (PAIRS, PROMPT), generator=generator).repeat(2, 1)
    tokens = torch.cat([prompts, torch.randint(3, VOCABULARY, (2 * PAIRS, RESPONSE), generator=generator)], 1)
    tokens[-PAIRS // 2 :, 0] = VOCABULARY - 1
    if not own:
        return tokens
    count = PAIRS // dist.get_world_size()
    part = slice(dist.get_rank() * count, (dist.get_rank() + 1) * count)
    return torch.cat([role[part] for role in tokens.chunk(2)])


def step(model: nn.Module, tokens: Tensor, share: bool) -> float:
    """The share of tokens that was not computed."""
    labels = tokens.clone()
    labels[:, :PROMPT] = -100
    head = prefuse.head(model, share_prompts=share)
    head.preference_loss("simpo", labels=labels, inputs={"input_ids": tokens}).loss.backward()
    return head.tokens.spared


def same(model: nn.Module, family: str, rtol: float = 1e-4) -> None:
    alone = causal_lm(family)
    step(alone, batch(own=False), share=False)
    spared = step(model, batch(own=True), share=True)
    assert (spared > 0.3) == (2 * dist.get_rank() < dist.get_world_size())
    expected = {name: p.grad for name, p in alone.named_parameters()}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
        right = expected[name.removeprefix("module.")]
        atol = rtol * float(right.abs().max())
        torch.testing.assert_close(gradient, right, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def with_ddp() -> None:
    same(DistributedDataParallel(causal_lm("qwen3-tied")), "qwen3-tied")


def test_ddp(processes):
    processes.run(with_ddp)


def with_fsdp(family: str, checkpointing: bool, mixed: bool) -> None:
    model = causal_lm(family).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    policy = (
        {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)} if mixed else {}
    )
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, **policy)
    fully_shard(model, mesh=mesh, **policy)
    same(model, family, rtol=0.05 if mixed else 1e-4)


@pytest.mark.parametrize(
    ("family", "checkpointing", "mixed"), [("llama", False, False), ("gemma2", True, False), ("llama", False, True)]
)
def test_fsdp(processes, family, checkpointing, mixed):
    processes.run(with_fsdp, family, checkpointing, mixed)


def with_first_fsdp() -> None:
    model = causal_lm("llama")
    layers = ModuleWrapPolicy({type(model.model.layers[0])})
    model = FullyShardedDataParallel(model, auto_wrap_policy=layers, device_id=torch.device("cpu"))
    step(model, batch(own=True), share=True)
    alone = causal_lm("llama")
    step(alone, batch(own=False), share=False)
    expected = torch.nn.utils.get_total_norm([p.grad for p in alone.parameters()])
    torch.testing.assert_close(model.clip_grad_norm_(1e9), expected)


def test_fsdp_of_the_first_kind(processes):
    processes.run(with_first_fsdp)
