"""Responses whose tokens lie on several processes give the loss and the gradients that they give on one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import prefuse
from tests.devices import integers, normal
from tests.distributed.processes import Processes

TOKENS, FEATURES, CLASSES = 16, 8, 29
STARTS = torch.tensor([0, 5, 9, 14, 16])
"""Of two pairs' responses, packed: chosen, rejected, chosen, rejected."""


def places(layout: str) -> Tensor:
    """The tokens of this process: a stretch (Ulysses), or one from either end (ring attention, for even load)."""
    rank, size = dist.get_rank(), dist.get_world_size()
    if layout == "stretch":
        return torch.arange(TOKENS).chunk(size)[rank]
    pieces = torch.arange(TOKENS).chunk(2 * size)
    return torch.cat([pieces[rank], pieces[2 * size - 1 - rank]])


def problem() -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight, and labels that are shifted within each response already."""
    labels = integers(CLASSES, TOKENS, seed=2)
    labels[STARTS[1:] - 1] = -100
    return normal(TOKENS, FEATURES, seed=0).double(), normal(CLASSES, FEATURES, seed=1).double(), labels


def loss_of(sums: Tensor, lengths: Tensor, average: bool) -> Tensor:
    sums = sums / lengths if average else sums
    reference = normal(4, seed=3).double()
    columns = {"chosen_logps": sums[::2], "rejected_logps": sums[1::2]}
    columns |= {"ref_chosen_logps": reference[::2], "ref_rejected_logps": reference[1::2]}
    return prefuse.objectives.dpo(beta=0.5)(**columns).loss


def check(layout: str, averaged: bool, average: bool) -> None:
    hidden, weight, labels = problem()
    whole, whole_weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    sums = prefuse.linear_sequence_logps(whole, whole_weight, labels, cu_seqlens=STARTS)
    lengths = prefuse.response_lengths(labels, cu_seqlens=STARTS)
    expected = loss_of(sums, lengths, average)
    d_hidden, d_weight = torch.autograd.grad(expected, (whole, whole_weight))

    mine = places(layout)
    own, own_weight = hidden[mine].requires_grad_(), weight.clone().requires_grad_()
    starts = torch.searchsorted(mine.contiguous(), STARTS) if layout == "stretch" else None
    if starts is not None:
        parts = prefuse.linear_sequence_logps(own, own_weight, labels[mine], cu_seqlens=starts)
        counts = prefuse.response_lengths(labels[mine], cu_seqlens=starts)
    else:
        of_response = torch.bucketize(mine, STARTS[1:], right=True)
        logps = prefuse.linear_token_logps(own, own_weight, labels[mine])
        parts = logps.new_zeros(4).index_add(0, of_response, logps)
        counts = torch.zeros(4, dtype=torch.long).index_add(0, of_response, (labels[mine] != -100).long())
    group: Any = dist.group.WORLD
    found_sums = prefuse.sum_over_group(parts, group, averaged=averaged)
    found = loss_of(found_sums, prefuse.sum_over_group(counts, group), average)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    first = found_sums.detach().clone()
    dist.broadcast(first, 0)
    assert torch.equal(first, found_sums)
    gradient, weight_gradient = torch.autograd.grad(found, (own, own_weight))
    dist.all_reduce(weight_gradient)
    scale = dist.get_world_size() if averaged else 1
    torch.testing.assert_close(weight_gradient / scale, d_weight, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(gradient / scale, d_hidden[mine], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("averaged", [True, False])
@pytest.mark.parametrize("layout", ["stretch", "both ends"])
def test_as_on_one_process(processes: Processes, layout: str, averaged: bool, average: bool) -> None:
    processes.run(check, layout, averaged, average)


def check_rounding() -> None:
    values = torch.tensor([1.0, 2.0**-9, 2.0**-9], dtype=torch.bfloat16).repeat(2)[dist.get_rank()]
    values = values.reshape(1, 1)
    everyone = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, values)
    found = prefuse.sum_over_group(values, dist.group.WORLD)  # type: ignore[arg-type]
    assert found.dtype == torch.bfloat16 and found.shape == (1, 1)
    assert torch.equal(found, torch.stack(everyone).double().sum(0).bfloat16())


def test_rounded_once(processes: Processes) -> None:
    processes.run(check_rounding)


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match="values: expected a tensor of real numbers, got float"):
        prefuse.sum_over_group(1.0, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"values: .*got torch.bool"):
        prefuse.sum_over_group(torch.ones(2, dtype=torch.bool), None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"group: expected a torch.distributed.ProcessGroup .* got None"):
        prefuse.sum_over_group(torch.ones(2), None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="group: expected"):
        prefuse.sum_over_group(torch.ones(2), 3)  # type: ignore[arg-type]
