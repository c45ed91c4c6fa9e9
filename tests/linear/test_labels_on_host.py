"""Labels on the CPU beside hidden states of a device: what is scored is known without asking the device.

The device is "meta", which holds no data: whatever looked at it would raise.
"""

from __future__ import annotations

import pytest
import torch

import prefuse
from prefuse.linear import operands
from prefuse.losses import from_hidden
from tests.devices import normal

VOCABULARY = 50


def labels_of(rows=6, length=12):
    labels = torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(0))
    labels[:, :4] = -100
    labels[1, 6:] = -100
    return labels


def head(*lead, device="meta", trained=True):
    hidden, weight = normal(*lead, 16, seed=0), normal(VOCABULARY, 16, seed=1)
    return {"hidden": hidden.to(device).requires_grad_(), "weight": weight.to(device).requires_grad_(trained)}


LAYOUTS = {
    "padded": ({}, (6, 12)),
    "masked": ({"mask": torch.arange(12).expand(6, 12) % 5 != 0}, (6, 12)),
    "shifted": ({"shift": True}, (6, 12)),
    "packed": ({"cu_seqlens": torch.arange(0, 73, 12)}, (72,)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("trained", [False, True])
def test_the_plan_is_that_of_labels_on_the_device(layout, trained):
    options, lead = LAYOUTS[layout]
    given = {"labels": labels_of().reshape(lead), "reference": torch.zeros(6), **options}
    own = prefuse.explain("dpo", **given, **head(*lead, device="cpu", trained=trained))
    on_host = prefuse.explain(
        "dpo", **given | {"reference": torch.zeros(6, device="meta")}, **head(*lead, trained=trained)
    )
    assert own.job == on_host.job
    assert (own.name, own.tile, own.chunks) == (on_host.name, on_host.tile, on_host.chunks)
    assert own.job.rows < labels_of().numel()


@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_groups_by_ids(where):
    groups = torch.tensor([3, 3, 3, 7, 7, 9])
    given = {"labels": labels_of(), "reward": torch.zeros(6), "old_logps": torch.zeros(6, 12)}
    given["reference"] = torch.zeros(6, 12)
    own = prefuse.explain("grpo", **given, groups=groups, **head(6, 12, device="cpu"))
    columns = {name: value if name == "labels" else value.to("meta") for name, value in given.items()}
    if where == "meta":
        with pytest.raises((NotImplementedError, RuntimeError)):  # ids on the device are looked at there
            prefuse.explain("grpo", **columns, groups=groups.to("meta"), **head(6, 12))
    else:
        assert own.job == prefuse.explain("grpo", **columns, groups=groups, **head(6, 12)).job


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_rows_are_in_the_same_order(layout, monkeypatch):
    options, lead = LAYOUTS[layout]
    found = []
    by_group = from_hidden._by_group
    monkeypatch.setattr(from_hidden, "sent", lambda tensor, device: tensor)
    monkeypatch.setattr(from_hidden, "_by_group", lambda *arguments: found.append(by_group(*arguments)) or found[-1])
    for device in ("cpu", "meta"):
        given = {"labels": labels_of().reshape(lead), "reference": torch.zeros(6, device=device), **options}
        prefuse.explain("dpo", **given, **head(*lead, device=device))
    (index, groups), (on_host, groups_on_host) = found
    assert torch.equal(index, on_host) and groups == groups_on_host


@pytest.mark.parametrize("plan", ["single-pass", "keep", "recompute", None])
def test_values_are_those_of_labels_on_the_device(plan, monkeypatch):
    def run():
        given = head(6, 12, device="cpu", trained=plan != "single-pass")
        logps = prefuse.linear_token_logps(given["hidden"], given["weight"], labels_of(), plan=plan)
        logps.sum().backward()
        return logps.detach(), given["hidden"].grad

    made, known = [run()], operands._known_on_host
    monkeypatch.setattr(operands, "sent", lambda tensor, device: tensor)
    monkeypatch.setattr(operands, "_known_on_host", lambda *given: known(*given[:3], torch.device("meta")))
    made.append(run())
    for ours, theirs in zip(*made, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("average", [False, True])
def test_every_function_takes_them(average):
    given, labels = head(6, 12), labels_of()
    assert prefuse.linear_token_logps(**given, labels=labels).shape == (6, 12)
    assert prefuse.linear_sequence_logps(**given, labels=labels, average=average).is_meta
    packed = prefuse.linear_sequence_logps(
        **head(72), labels=labels.reshape(-1), cu_seqlens=torch.arange(0, 73, 12), average=average
    )
    assert packed.shape == (6,) and packed.is_meta


def test_their_values_are_looked_at():
    with pytest.raises(ValueError, match=r"labels: 50 at \[2, 5\], expected 0 <= label < 50"):
        labels = labels_of()
        labels[2, 5] = VOCABULARY
        prefuse.linear_token_logps(**head(6, 12), labels=labels)


def test_no_other_way_round():
    with pytest.raises(ValueError, match="labels: expected device cpu, like the other arguments, got meta"):
        prefuse.linear_token_logps(**head(6, 12, device="cpu"), labels=labels_of().to("meta"))
    with pytest.raises(ValueError, match="mask: expected device cpu"):
        prefuse.linear_token_logps(
            **head(6, 12), labels=labels_of(), mask=torch.ones(6, 12, dtype=torch.bool, device="meta")
        )


def test_not_while_a_graph_is_captured(monkeypatch):
    monkeypatch.setattr(operands, "is_capturing", lambda device: device.type == "meta")
    with pytest.raises(ValueError, match="labels: expected device meta while a CUDA graph is captured, got cpu"):
        prefuse.linear_token_logps(**head(6, 12), labels=labels_of())
