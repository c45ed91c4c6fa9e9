"""The planner: which plan, how many GEMMs, how large the tiles, what it says of itself. No tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import prefuse
from prefuse.linear.costs import DEVICES
from prefuse.linear.estimate import estimate
from prefuse.linear.plans import NARROWEST_BLOCK, PLANS, Job, choose

LLAMA = Job(rows=8192, features=4096, classes=128256, itemsize=2, hidden=True)


def job(**changes):
    return Job(**{**LLAMA.__dict__, **changes})


@pytest.mark.parametrize(
    ("changes", "options", "name", "gemms"),
    [
        ({"hidden": False}, {}, "forward", 1),
        ({}, {}, "single-pass", 2),
        ({"statistics": ("logp", "lse")}, {}, "single-pass", 2),
        ({"statistics": ("logp", "entropy")}, {}, "single-pass", 3),
        ({"statistics": ("logp", "entropy", "kl")}, {}, "recompute", 3),
        ({"weight": True}, {}, "recompute", 4),
        ({"weight": True}, {"workspace_bytes": 4 << 30}, "keep", 3),
        ({"weight": True, "hidden": False}, {"workspace_bytes": 4 << 30}, "keep", 2),
        ({"weight": True, "statistics": ("logp", "lse")}, {"workspace_bytes": 4 << 30}, "recompute", 4),
        ({"weight": True, "groups": (512,) * 16}, {}, "grouped", 3),
        ({"weight": True, "groups": (512,) * 16, "apart": False}, {}, "recompute", 4),
        ({"weight": True, "groups": (4096,) * 2}, {}, "recompute", 4),
        ({"groups": (512,) * 16}, {}, "single-pass", 2),
        ({"groups": (512,) * 16, "statistics": ("logp", "entropy", "kl")}, {}, "grouped", 2),
    ],
)
def test_the_fewest_gemms_there_is_memory_for(changes, options, name, gemms):
    plan = choose(job(**changes), **options)
    assert (plan.name, plan.gemms) == (name, gemms)


@pytest.mark.parametrize(
    ("plan", "changes", "why"),
    [
        ("forward", {}, "requires? grad"),
        ("single-pass", {"weight": True}, "weight"),
        ("single-pass", {"statistics": ("logp", "entropy", "kl")}, "3 products"),
        ("keep", {"weight": True}, "workspace_bytes"),
        ("keep", {"weight": True, "statistics": ("logp", "lse")}, "one gradient per logit"),
        ("grouped", {"weight": True}, "not known"),
        ("grouped", {"weight": True, "groups": (512,) * 16, "apart": False}, "couples"),
        ("grouped", {"weight": True, "groups": (4096,) * 2}, "largest group has 4096 rows"),
        ("fused", {}, "expected one of"),
    ],
)
def test_what_is_not_possible_is_refused_with_the_reason(plan, changes, why):
    with pytest.raises(ValueError, match=f"plan: .*{why}"):
        choose(job(**changes), plan=plan)


@pytest.mark.parametrize("plan", PLANS)
def test_without_a_gradient_every_plan_is_forward(plan):
    assert choose(job(hidden=False), plan=plan).name == "forward"


@settings(max_examples=300, derandomize=True, deadline=None)
@given(
    rows=st.integers(0, 20000),
    features=st.integers(1, 8192),
    classes=st.integers(1, 300000),
    itemsize=st.sampled_from([2, 4, 8]),
    workspace=st.integers(1, 1 << 32),
    weight=st.booleans(),
    reference=st.booleans(),
    data=st.data(),
)
def test_tiles_fit_and_cover_everything(rows, features, classes, itemsize, workspace, weight, reference, data):
    groups = None
    if data.draw(st.booleans()):
        cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=20)))
        groups = tuple(b - a for a, b in zip([0, *cuts], [*cuts, rows], strict=True))
    made = Job(rows, features, classes, itemsize, ("logp",), True, weight, reference, groups)
    plan = choose(made, workspace)
    tile_rows, tile_classes = plan.tile
    assert tile_classes == classes and tile_rows * plan.tiles >= rows
    assert plan.tile_bytes == tile_rows * made.row_bytes
    assert plan.tile_bytes <= workspace or tile_rows == 1
    if plan.name == "grouped":
        assert plan.chunks[0] == 0 and plan.chunks[-1] == len(groups) and sorted(plan.chunks) == list(plan.chunks)
        assert len(plan.chunks) == plan.tiles + 1
    if plan.name == "recompute":
        block_rows, block_classes = plan.backward_tile
        assert 1 <= block_rows <= max(rows, 1) and 1 <= block_classes <= classes
        copies = 2 if reference else 1
        assert (
            block_rows * block_classes * copies * itemsize <= workspace
            or block_rows == 1
            or block_classes <= min(NARROWEST_BLOCK, classes)
        )


def test_sums_over_tiles_are_told():
    groups = (512,) * 16
    assert choose(job(weight=True, groups=groups)).sums_bytes == 128256 * 4096 * 4
    assert choose(job(weight=True, groups=groups), 4 << 30).sums_bytes == 0
    assert choose(job(weight=True, groups=groups, itemsize=4), 1 << 30).sums_bytes == 0
    text = str(choose(job(weight=True, groups=groups)))
    assert "1.96 GiB of float32 for the weight's gradient" in text


def test_it_says_what_it_does():
    plan = choose(job(weight=True))
    text = str(plan)
    assert "recompute" in text and "4 x 8.61 TFLOP" in text and "1.96 GiB of logits" in text
    assert "keep" in text and text.count("\n") >= 5
    assert plan._repr_html_().startswith("<table")


def test_explain_prints_and_runs_nothing(capsys):
    hidden = torch.empty(8, 1024, 4096, dtype=torch.bfloat16, device="meta", requires_grad=True)
    weight = torch.empty(128256, 4096, dtype=torch.bfloat16, device="meta")
    labels = torch.empty(8, 1024, dtype=torch.int64, device="meta")
    reference = torch.empty(8, 1024, device="meta")
    plan = prefuse.explain("dpo", hidden=hidden, weight=weight, labels=labels, reference=reference)
    printed = capsys.readouterr().out
    assert plan.name == "single-pass" and plan.gemms == 2 and printed == f"{plan}\n"
    trainable = weight.clone().requires_grad_()
    plan = prefuse.explain(
        "dpo", hidden=hidden, weight=trainable, labels=labels, reference=reference, workspace_bytes=1 << 30
    )
    assert plan.name == "grouped" and plan.gemms == 3
    with pytest.raises(TypeError, match="hidden: missing"):
        prefuse.explain(
            "dpo", logits=torch.empty(2, 3, 5), labels=torch.zeros(2, 3, dtype=torch.int64), reference=torch.zeros(2)
        )


def test_meta_tensors_have_a_plan_and_no_values():
    hidden = torch.empty(8, 1024, 4096, dtype=torch.bfloat16, device="meta", requires_grad=True)
    weight = torch.empty(128256, 4096, dtype=torch.bfloat16, device="meta")
    labels = torch.empty(8, 1024, dtype=torch.int64, device="meta")
    stats = prefuse.linear_token_stats(hidden, weight, labels, ("logp", "entropy"))
    assert stats.plan.gemms == 3 and stats.logp.is_meta and stats.logp.shape == (8, 1024)


def test_float32_logits_of_16_bit_matrices_take_twice_the_room():
    wide, plain = job(logit_bytes=4, device=DEVICES["h200"]), job(device=DEVICES["h200"])
    assert wide.row_bytes == 128256 * 4 + 3 * 4096 * 2
    assert choose(wide).tile == choose(plain).tile and choose(wide, 1 << 29).tile[0] < choose(plain, 1 << 29).tile[0]
    more, less = (estimate(choose(one), "h200") for one in (wide, plain))
    assert more.bare_seconds == less.bare_seconds and more.traffic_bytes == 3.5 * less.traffic_bytes
