"""Arithmetic about plans on named devices: waves, traffic, time over the bare GEMMs."""

from __future__ import annotations

import pytest

from prefuse.linear.estimate import DEVICES, estimate
from prefuse.linear.plans import Job, choose

WIDE = {"rows": 8192, "features": 4096, "classes": 128_256, "itemsize": 2, "hidden": True}


def test_a_plan_in_one_piece_has_no_more_than_the_bare_waves():
    plan = choose(Job(rows=1024, features=4096, classes=32_000, itemsize=2, hidden=True), 1 << 30)
    found = estimate(plan, "h200")
    assert plan.name == "single-pass" and plan.tiles == 1
    # 8 x 125 blocks of logits in 8 waves, 8 x 16 of the gradient in one.
    assert found.waves == found.bare_waves == 9
    assert found.traffic_bytes == 2 * 1024 * 32_000 * 2
    assert found.over_bare == pytest.approx(1 + found.traffic_bytes / 4.8e12 / found.bare_seconds)


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
    assert 1 < found.over_bare < 1.5


def test_a_trained_weight_is_added_up_in_float32():
    pairs = (512,) * 16
    few, many = (choose(Job(**WIDE, weight=True, groups=pairs), size) for size in (1 << 30, 256 << 20))
    assert few.name == many.name == "grouped" and few.tiles < many.tiles
    assert estimate(many, "h200").traffic_bytes > estimate(few, "h200").traffic_bytes
    assert estimate(many, "h200").over_bare > estimate(few, "h200").over_bare > 1


@pytest.mark.parametrize("machine", DEVICES)
@pytest.mark.parametrize("name", ["forward", "recompute", "keep"])
def test_every_device_and_plan(machine, name):
    wants = {"hidden": False} if name == "forward" else {"weight": True}
    found = estimate(choose(Job(**(WIDE | wants)), 4 << 30, None if name == "forward" else name), machine)
    assert found.over_bare >= 1 and found.waves >= found.bare_waves > 0
    assert "nothing was measured" in repr(found) and machine in found._repr_html_()


def test_an_unknown_device_is_refused():
    with pytest.raises(ValueError, match=r"device: expected one of a100, h100, h200, b200, rtx4090, got 'v100'"):
        estimate(choose(Job(**WIDE)), "v100")
