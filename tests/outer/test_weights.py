"""References, averages, extrapolation, snapshots, merging: weights as data."""

import copy
import math
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from prefuse.outer import (
    Snapshot,
    extrapolate_logps,
    extrapolate_weights,
    fit_shares,
    frozen_copy,
    merge_weights,
    refresh_reference,
)


def net(seed, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(dtype)


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hard_refresh_is_an_exact_copy_into_the_same_tensors(dtype):
    policy, reference = net(0, dtype), frozen_copy(net(1, dtype))
    policy(torch.randn(8, 3, dtype=dtype))  # moves BatchNorm's buffers
    before = list(reference.parameters())
    refresh_reference(reference, policy)
    assert same(weights(reference), weights(policy))
    assert all(a is b for a, b in zip(before, reference.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in reference.parameters())


def test_a_soft_refresh_mixes_weights():
    policy, reference = net(0, torch.float64), net(1, torch.float64)
    expected = {
        name: 0.6 * p + 0.4 * r for (name, p), r in zip(policy.named_parameters(), reference.parameters(), strict=True)
    }
    refresh_reference(reference, policy, alpha=0.6)
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-14, atol=1e-14)


def test_no_share_changes_nothing():
    reference = net(1)
    before = weights(reference)
    refresh_reference(reference, net(0), alpha=0.0)
    assert same(before, weights(reference))


def test_a_float32_average_of_a_bfloat16_policy():
    policy, average = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16), nn.Linear(1, 1, bias=False)
    policy.weight.data.fill_(1.0)
    average.weight.data.zero_()
    for _ in range(10):
        refresh_reference(average, policy, alpha=0.001)
    assert average.weight.item() == pytest.approx(1 - 0.999**10, rel=1e-5)


def test_shares_of_one_over_t_give_the_mean_of_all_iterates():
    average, iterates = nn.Linear(2, 2).double(), [nn.Linear(2, 2).double() for _ in range(5)]
    for count, iterate in enumerate(iterates):
        refresh_reference(average, iterate, alpha=1 / (count + 1))
    torch.testing.assert_close(average.weight, torch.stack([iterate.weight for iterate in iterates]).mean(0))


def test_what_a_refresh_refuses():
    policy = net(0)
    with pytest.raises(ValueError, match="is the policy itself"):
        refresh_reference(policy, policy)
    with pytest.raises(ValueError, match=r"alpha: expected a number in \[0, 1\], got 1.5"):
        refresh_reference(net(1), policy, alpha=1.5)
    with pytest.raises(ValueError, match="policy: has no weight 'bias', which reference has"):
        refresh_reference(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    with pytest.raises(ValueError, match=r"policy: 'weight' has shape \(2, 3\), expected that of reference, \(2, 2\)"):
        refresh_reference(nn.Linear(2, 2), nn.Linear(3, 2))
    partitioned = nn.Linear(2, 2)
    partitioned.weight.ds_id = 0
    with pytest.raises(ValueError, match="ZeRO-3"):
        refresh_reference(nn.Linear(2, 2), partitioned)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_extrapolating_16_bit_weights_rounds_once(dtype):
    generator = torch.Generator().manual_seed(0)
    previous = torch.randn(500, generator=generator).to(dtype)
    current = (previous.double() + 0.01 * torch.randn(500, generator=generator, dtype=torch.float64)).to(dtype)
    found = extrapolate_weights({"w": current}, {"w": previous}, alpha=0.3)["w"]
    exact = current.double() + 0.3 * (current.double() - previous.double())
    assert torch.equal(found, exact.float().to(dtype))
    logps = extrapolate_logps(current, previous)
    wide = extrapolate_logps(current.double(), previous.double())
    torch.testing.assert_close(logps, wide.float(), rtol=1e-5, atol=1e-5)


def test_extrapolation_goes_past_the_newer_weights():
    current, previous = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([0.0, 4.0])}
    assert extrapolate_weights(current, previous, alpha=0.5)["w"].tolist() == [1.5, 1.0]
    assert same(extrapolate_weights(current, previous, alpha=0.0), current)
    with pytest.raises(ValueError, match="previous: has no weight 'w'"):
        extrapolate_weights(current, {})


def test_extrapolation_in_weights_and_in_distributions_agree_where_logits_are_the_weights():
    torch.manual_seed(0)
    current, previous = torch.randn(2, 5), torch.randn(2, 5)
    linear = extrapolate_weights({"w": current}, {"w": previous}, alpha=0.3)["w"]
    torch.testing.assert_close(extrapolate_logps(current, previous, alpha=0.3), linear.log_softmax(-1))
    with pytest.raises(ValueError, match="previous"):
        extrapolate_logps(current, previous[:1])


@pytest.mark.parametrize("optimiser", [torch.optim.AdamW, torch.optim.RMSprop])
def test_a_snapshot_is_gone_back_to_with_the_optimiser_any_number_of_times(optimiser):
    policy = net(0)
    optimizer = optimiser(policy.parameters(), lr=0.1)

    def step(seed):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        policy(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()
        return weights(policy)

    step(0)
    snapshot, start = Snapshot(policy, optimizer), weights(policy)
    ends = []
    for _ in range(3):
        ends.append(step(1))
        optimizer.param_groups[0]["lr"] = 0.5
        step(2)
        snapshot.restore()
        assert same(weights(policy), start)
    assert not same(ends[0], start)
    assert same(ends[0], ends[1])
    assert same(ends[0], ends[2])


def test_a_snapshot_before_the_first_step_has_an_empty_optimiser():
    policy = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(policy.parameters())
    snapshot = Snapshot(policy, optimizer)
    policy(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    snapshot.restore()
    assert not optimizer.state_dict()["state"]


def test_merging():
    one, other = (
        {"w": torch.tensor([1.0, 0.0]), "n": torch.tensor(3)},
        {"w": torch.tensor([0.0, 1.0]), "n": torch.tensor(4)},
    )
    merged = merge_weights([one, other], [0.25, 0.75])
    assert merged["w"].tolist() == [0.25, 0.75]
    assert merged["n"] == 3
    with pytest.raises(ValueError, match="add up to 1"):
        merge_weights([one, other], [0.5, 0.6])
    with pytest.raises(ValueError, match="one for each of 2"):
        merge_weights([one, other], [1.0])


def test_shares_fitted_to_a_replay_memory_find_the_best_point_of_the_grid():
    corners = [{"w": row} for row in torch.eye(3)]
    target = torch.tensor([0.2, 0.5, 0.3])
    calls = []

    def loss(merged):
        calls.append(1)
        return (merged["w"] - target).square().sum().item()

    assert fit_shares(corners, loss, resolution=10) == pytest.approx(target.tolist())
    assert len(calls) == math.comb(12, 2)


def test_frozen_copies_stay_behind():
    policy = net(0)
    reference = frozen_copy(policy)
    with torch.no_grad():
        policy[0].weight.add_(1.0)
    assert not torch.equal(reference[0].weight, policy[0].weight)
    assert not reference.training
    assert copy.deepcopy(policy).training


def test_nothing_is_imported_before_it_is_asked_for():
    code = (
        "import sys, prefuse; assert 'prefuse.outer' not in sys.modules;"
        "import prefuse.outer; assert not {'transformers', 'trl', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_thousand_small_steps_arrive(dtype):
    """In 16 bits they would end at 1.0 (bfloat16) and 1.51 (float16)."""
    pytest.importorskip("transformers")
    from prefuse.outer.callbacks import WeightAverage

    policy = nn.Linear(4, 1, bias=False).to(dtype)
    nn.init.constant_(policy.weight, 1.0)
    callback = WeightAverage(decay=0.999)
    callback.on_train_begin(None, None, None, model=policy)
    nn.init.constant_(policy.weight, 2.0)
    for _ in range(1000):
        callback.on_step_end(None, None, None, model=policy)
    assert callback.average.weight.dtype == torch.float32 and policy.weight.dtype == dtype
    torch.testing.assert_close(callback.average.weight, torch.full((1, 4), 2 - 0.999**1000), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_small_steps_of_16_bit_references_are_warned_of(dtype):
    policy = nn.Linear(2, 2).to(dtype)
    with pytest.warns(UserWarning, match="alpha: 0.001 is below 2\\^-8 and the reference has 16-bit weights"):
        refresh_reference(copy.deepcopy(policy), policy, alpha=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refresh_reference(copy.deepcopy(policy).float(), policy, alpha=1e-3)
        refresh_reference(copy.deepcopy(policy), policy, alpha=0.5)
