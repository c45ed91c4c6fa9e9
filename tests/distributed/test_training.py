"""DDP and FSDP2: gradients of a small model are those of one process with the whole batch."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel

import prefuse
from tests.devices import integers, normal

CLASSES, FEATURES, PAIRS, TOKENS = 29, 6, 8, 5
F64 = torch.float64
GATHER = torch.ops.c10d_functional.all_gather_into_tensor
REDUCE = torch.ops.c10d_functional.reduce_scatter_tensor
PLANS = {"grouped": {}, "recompute": {"plan": "recompute"}, "keep": {"plan": "keep"}}


class Model(nn.Module):
    """Embedding, one layer, head; the loss inside its forward where `objective` is given."""

    def __init__(self, tied: bool, frozen: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(CLASSES, FEATURES, dtype=F64)
        self.layer = nn.Linear(FEATURES, FEATURES, dtype=F64)
        self.lm_head = nn.Linear(FEATURES, CLASSES, bias=False, dtype=F64)
        if tied:
            self.lm_head.weight = self.embed.weight
        with torch.no_grad():
            for seed, parameter in enumerate(self.parameters()):
                parameter.copy_(normal(*parameter.shape, seed=seed, dtype=F64))
        self.lm_head.weight.requires_grad_(not frozen)

    def forward(self, tokens: Tensor, **loss_inside: object) -> Tensor:
        hidden = torch.tanh(self.layer(self.embed(tokens)))
        return loss_of(hidden, self.lm_head.weight, tokens, **loss_inside) if loss_inside else hidden


def loss_of(hidden: Tensor, weight: Tensor, tokens: Tensor, objective: str = "simpo", **options: object) -> Tensor:
    return prefuse.preference_loss(objective, hidden=hidden, weight=weight, labels=tokens, shift=True, **options).loss


def batch(own: bool) -> Tensor:
    """Tokens of pairs, role after role; those of this process where they are its `own`."""
    tokens = integers(CLASSES, 2 * PAIRS, TOKENS, seed=7)
    if not own:
        return tokens
    count = PAIRS // dist.get_world_size()
    part = slice(dist.get_rank() * count, (dist.get_rank() + 1) * count)
    return torch.cat([role[part] for role in tokens.chunk(2)])


def expected(tied: bool, frozen: bool, objective: str) -> dict[str, Tensor]:
    """Gradients of one process with the whole batch."""
    model = Model(tied, frozen)
    model(batch(own=False), objective=objective).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def same_gradients(model: nn.Module, wanted: dict[str, Tensor]) -> None:
    got = {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert got.keys() == wanted.keys()
    for name, gradient in got.items():
        whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
        torch.testing.assert_close(whole, wanted[name], rtol=0, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def with_ddp(tied: bool, frozen: bool, inside: bool, objective: str, options: dict[str, object]) -> None:
    model = Model(tied, frozen)
    hooked: list[str] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p, n=name: hooked.append(n))
    wrapped = DistributedDataParallel(model)
    tokens = batch(own=True)
    options = options | {"objective": objective}
    if objective == "orpo":
        options["data_group"] = dist.group.WORLD
    loss = wrapped(tokens, **options) if inside else loss_of(wrapped(tokens), model.lm_head.weight, tokens, **options)
    loss.backward()
    assert sorted(hooked) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    same_gradients(wrapped, expected(tied, frozen, objective))


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("plan", PLANS)
def test_ddp(processes, plan, tied, inside):
    processes.run(with_ddp, tied, False, inside, "simpo", PLANS[plan])


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
def test_ddp_with_a_frozen_head(processes, inside):
    processes.run(with_ddp, False, True, inside, "simpo", {"plan": "single-pass"})


def test_ddp_with_the_batch_of_all(processes):
    processes.run(with_ddp, True, False, True, "orpo", {})


def with_fsdp(
    tied: bool, frozen: bool, where: str, objective: str, options: dict[str, object], replicas: bool = False
) -> None:
    model = Model(tied, frozen)
    shape = (2, dist.get_world_size() // 2) if replicas else (dist.get_world_size(),)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
    fully_shard(model.layer, mesh=mesh)
    if where == "head of its own":
        fully_shard(model.lm_head, mesh=mesh)
    fully_shard(model, mesh=mesh)
    tokens = batch(own=True)
    options = options | {"objective": objective}
    if objective == "orpo":
        options["data_group"] = dist.group.WORLD
    if where == "inside":
        model(tokens, **options).backward()
    else:
        hidden = model(tokens)
        if where == "resharded":
            model.reshard()
        weight = model.lm_head.weight
        assert isinstance(weight, DTensor) == (where != "outside")
        with CommDebugMode() as forward:
            loss = loss_of(hidden, weight, tokens, **options)
        cut_up = int(isinstance(weight, DTensor) and shape[-1] > 1)
        assert forward.get_comm_counts()[GATHER] == cut_up
        with CommDebugMode() as backward:  # FSDP's own collectives go by other names
            loss.backward()
        assert backward.get_comm_counts()[GATHER] == 0
        assert backward.get_comm_counts()[REDUCE] == (0 if frozen else cut_up)
    same_gradients(model, expected(tied, frozen, objective))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(
    ("where", "tied"),
    [
        ("inside", False),
        ("inside", True),
        ("outside", False),
        ("outside", True),
        ("resharded", False),
        ("resharded", True),
        ("head of its own", False),
    ],
)
def test_fsdp(processes, where, tied, plan):
    processes.run(with_fsdp, tied, False, where, "simpo", PLANS[plan])


@pytest.mark.parametrize("where", ["inside", "outside", "head of its own"])
def test_fsdp_with_a_frozen_head(processes, where):
    processes.run(with_fsdp, False, True, where, "simpo", {"plan": "single-pass"})


def test_fsdp_with_the_batch_of_all(processes):
    processes.run(with_fsdp, False, False, "head of its own", "orpo", {})


@pytest.mark.parametrize("where", ["inside", "head of its own"])
def test_fsdp_with_replicas(processes, where):
    """Sharded over some of the processes, replicated over the others."""
    processes.run(with_fsdp, False, False, where, "simpo", {}, replicas=True)
