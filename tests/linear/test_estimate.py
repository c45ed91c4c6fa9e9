"""Arithmetic about plans on named devices: waves, traffic, time over the bare GEMMs; and the tiles it chooses."""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace

import pytest
import torch

import prefuse
from prefuse.linear import operands
from prefuse.linear.costs import (
    DEVICES,
    GEMM_SHARE,
    MEMORY_SHARE,
    SMALL_KERNELS,
    SMALL_SECONDS,
    Gemm,
    device_of,
    gemm_seconds,
)
from prefuse.linear.estimate import estimate
from prefuse.linear.plans import DEVICE_WORKSPACE_BYTES, WORKSPACE_BYTES, Job, choose

WIDE = {"rows": 8192, "features": 4096, "classes": 128_256, "itemsize": 2, "hidden": True}
H200 = DEVICES["h200"]
PAIRS = (512,) * 16


def test_a_plan_in_one_piece_has_no_more_than_the_bare_waves():
    plan = choose(Job(rows=1024, features=4096, classes=32_000, itemsize=2, hidden=True), 1 << 30)
    found = estimate(plan, "h200")
    assert plan.name == "single-pass" and plan.tiles == 1
    # 8 x 125 blocks of logits in 8 waves, 8 x 16 of the gradient in one.
    assert found.waves == found.bare_waves == 9
    assert found.traffic_bytes == 2 * 1024 * 32_000 * 2
    beside = found.traffic_bytes / (MEMORY_SHARE * 4.8e12) + SMALL_SECONDS * SMALL_KERNELS["single-pass"]
    assert found.seconds == pytest.approx(found.bare_seconds + beside)


def test_a_gemm_takes_its_waves_or_its_traffic():
    full = Gemm(128 * 132, 256, 4096)
    assert gemm_seconds(full, 2, H200) == pytest.approx(2 * 128 * 256 * 132 * 4096 / (GEMM_SHARE * 989e12))
    assert gemm_seconds(full._replace(rows=128), 2, H200) == gemm_seconds(full, 2, H200)
    added = Gemm(128_256, 4096, 128, added=True)
    moved = 2 * 128 * (128_256 + 4096) + 8 * 128_256 * 4096
    assert gemm_seconds(added, 2, H200) == pytest.approx(moved / (MEMORY_SHARE * 4.8e12))
    assert gemm_seconds(full, 4, H200) > 10 * gemm_seconds(full, 2, H200)


def test_tiles_that_do_not_fill_a_wave_cost_waves():
    plan = choose(Job(**WIDE))
    found = estimate(plan, "h200")
    rows = plan.tile[0]
    last = 8192 - (plan.tiles - 1) * rows

    def waves(rows):
        of_rows = -(-rows // 128)
        return -(-of_rows * 501 // 132) + -(-of_rows * 16 // 132)

    assert found.waves == (plan.tiles - 1) * waves(rows) + waves(last)
    assert found.bare_waves == -(-64 * 501 // 132) + -(-64 * 16 // 132)


@pytest.mark.parametrize(("wants", "most"), [({}, 1.06), ({"weight": True, "groups": PAIRS}, 1.12)])
def test_on_an_h200_tiles_cost_little_over_the_bare_gemms(wants, most):
    job = Job(**WIDE, **wants, device=H200)
    plan, before = choose(job), choose(dataclasses.replace(job, device=None))
    assert estimate(plan, "h200").over_bare <= most < estimate(before, "h200").over_bare
    assert plan.tile_bytes <= DEVICE_WORKSPACE_BYTES and plan.tile[0] == 2048


@pytest.mark.parametrize("machine", DEVICES)
@pytest.mark.parametrize("features", [896, 2048, 4096, 8192])
@pytest.mark.parametrize("rows", [1, 100, 3000, 5000, 8192, 40_001])
def test_tiles_of_a_device_are_whole_blocks_and_even(machine, features, rows):
    job = Job(rows, features, 151_936, 2, hidden=True, device=DEVICES[machine])
    for workspace in (None, WORKSPACE_BYTES):
        plan = choose(job, workspace)
        assert plan.tile_bytes <= (workspace or DEVICE_WORKSPACE_BYTES)
        assert plan.tiles == 1 or plan.tile[0] % 128 == 0
        last = rows - (plan.tiles - 1) * plan.tile[0]
        assert 0 < last <= plan.tile[0] and (plan.tiles == 1 or 2 * last >= plan.tile[0])


def test_a_trained_weight_s_tiles_may_take_a_quarter_of_its_sum():
    job = Job(8192, 8192, 128_256, 2, hidden=True, weight=True, groups=PAIRS, device=H200)
    plan = choose(job)
    assert plan.name == "grouped" and plan.tile_bytes <= plan.sums_bytes // 4 > DEVICE_WORKSPACE_BYTES
    assert choose(job, WORKSPACE_BYTES).tile_bytes <= WORKSPACE_BYTES
    assert all(sum(PAIRS[a:b]) % 1024 == 0 for a, b in itertools.pairwise(plan.chunks))
    assert plan.chunks[0] == 0 and plan.chunks[-1] == len(PAIRS)


def test_a_trained_weight_is_added_up_in_float32():
    few, many = (choose(Job(**WIDE, weight=True, groups=PAIRS), size) for size in (1 << 30, 256 << 20))
    assert few.name == many.name == "grouped" and few.tiles < many.tiles
    assert estimate(many, "h200").over_bare > estimate(few, "h200").over_bare > 1


@pytest.mark.parametrize("machine", DEVICES)
@pytest.mark.parametrize("name", ["forward", "recompute", "keep"])
def test_every_device_and_plan(machine, name):
    wants = {"hidden": False} if name == "forward" else {"weight": True}
    found = estimate(choose(Job(**(WIDE | wants)), 4 << 30, None if name == "forward" else name), machine)
    assert found.over_bare >= 1 and found.waves >= found.bare_waves > 0
    assert "arithmetic, not a measurement" in repr(found) and machine in found._repr_html_()


def test_an_unknown_device_is_refused():
    message = r"device: expected one of a100, h100, h200, b200, rtx4090, got 'v100'"
    with pytest.raises(ValueError, match=message):
        estimate(choose(Job(**WIDE)), "v100")
    with pytest.raises(ValueError, match=message):
        prefuse.explain("dpo", device="v100", hidden=None)


def test_explain_for_a_device_without_one(capsys):
    hidden = torch.empty(16, 512, 4096, dtype=torch.bfloat16, device="meta", requires_grad=True)
    weight = torch.empty(128256, 4096, dtype=torch.bfloat16, device="meta")
    given = {"hidden": hidden, "labels": torch.empty(16, 512, dtype=torch.int64, device="meta")}
    given["reference"] = torch.empty(16, device="meta")
    plan = prefuse.explain("dpo", weight=weight, device="h200", **given)
    assert plan.estimate is not None and plan.estimate.over_bare <= 1.06 and plan.tiles == 4
    assert capsys.readouterr().out == f"{plan}\n" and "h200: arithmetic, not a measurement" in str(plan)
    trained = prefuse.explain("dpo", weight=weight.clone().requires_grad_(), device="h200", **given)
    assert trained.name == "grouped" and trained.estimate is not None and trained.estimate.over_bare <= 1.12
    assert prefuse.explain("dpo", weight=weight, **given).estimate is None


def test_devices_are_known_by_what_drivers_call_them(monkeypatch):
    assert device_of("NVIDIA H200", 132) == H200
    assert device_of("NVIDIA GeForce RTX 4090", 128) == DEVICES["rtx4090"]
    assert device_of("NVIDIA A100-SXM4-80GB", 108) == DEVICES["a100"]
    part = device_of("NVIDIA H200 MIG 1g.18gb", 16)
    assert part.multiprocessors == 16 and part.flops == pytest.approx(989e12 * 16 / 132)
    found = SimpleNamespace(name="NVIDIA H200", multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)
    assert operands._figures(torch.device("cuda:0")) == H200
    assert operands._figures(torch.device("cpu")) is None
