"""Logits of 16-bit hidden states in float32: `logits_dtype`."""

from __future__ import annotations

import pytest
import torch

import prefuse
from prefuse.linear import operands
from tests.devices import integers, normal
from tests.linear.oracle import problem, statistics

HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture(params=[False, True], ids=["converted", "tiles"])
def tiles(request, monkeypatch):
    """Whether matrices are converted, or tiles of float32 logits are made of them as they are, as on a GPU."""
    monkeypatch.setattr(operands, "makes_wide_tiles", lambda device: request.param)
    return request.param


def narrow(given, dtype):
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in given.items()}


@pytest.mark.parametrize("dtype", HALVES)
def test_a_sequences_log_probability_has_float32s_error(dtype, tiles):
    """471 tokens, logits of up to 40: what 16-bit logits are off by is tenths of a nat."""
    hidden, weight = normal(471, 64, seed=1).to(dtype), (normal(3000, 64, seed=2)).to(dtype)
    labels = integers(3000, 471, seed=3)
    exact = statistics(hidden.double(), weight.double(), labels)["logp"].sum()
    rounded = prefuse.linear_token_logps(hidden, weight, labels).double().sum()
    found = prefuse.linear_token_logps(hidden, weight, labels, logits_dtype=torch.float32).double().sum()
    assert abs(found - exact) < 2e-3 < abs(rounded - exact)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("options", [{}, {"plan": "recompute"}, {"plan": "keep"}, {"sparse": 2.0**-40}], ids=str)
def test_statistics_and_gradients(dtype, options, tiles):
    given = narrow(problem(), dtype)
    lora = (normal(3, 8, seed=30).to(dtype), normal(53, 3, seed=31).to(dtype), 0.5)
    wrt = [given["hidden"], given["weight"], given["bias"], lora[0], lora[1]]
    exact = [tensor.double().requires_grad_() for tensor in wrt]
    merged = exact[1] + 0.5 * exact[4] @ exact[3]
    values = statistics(exact[0], merged, given["labels"], bias=exact[2], temperature=0.7)
    expected = torch.autograd.grad((values["logp"] * 0.1).sum(), exact)
    for tensor in wrt:
        tensor.requires_grad_()
    made = prefuse.linear_token_stats(
        given["hidden"],
        given["weight"],
        given["labels"],
        bias=given["bias"],
        lora=lora,
        temperature=0.7,
        logits_dtype=torch.float32,
        **options,
    )
    torch.testing.assert_close(made.logp.double(), values["logp"], rtol=1e-5, atol=2e-3)
    found = torch.autograd.grad((made.logp * 0.1).sum(), wrt)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        # rounded to 16 bits once, and the adapter's inner gradient twice more
        assert (one.double() - other).norm() < 2 * torch.finfo(dtype).eps * other.norm()


@pytest.mark.parametrize("own_weight", [False, True])
def test_the_reference_too(own_weight, tiles):
    given = narrow(problem(), torch.bfloat16)
    states = (0.9 * given["hidden"].float()).bfloat16()
    weight = (0.8 * given["weight"].float()).bfloat16() if own_weight else None
    other = given["weight"] if weight is None else weight
    values = statistics(
        given["hidden"].double(),
        given["weight"].double(),
        given["labels"],
        reference=(states.double(), other.double(), None),
    )
    made = prefuse.linear_token_stats(
        given["hidden"],
        given["weight"],
        given["labels"],
        ("logp", "ref_logp", "kl"),
        reference_hidden=states,
        reference_weight=weight,
        logits_dtype=torch.float32,
    )
    for name in made:
        torch.testing.assert_close(made[name].double(), values[name], rtol=1e-5, atol=1e-5)


def test_the_loss_of_preferences(tiles):
    given = narrow(problem(tokens=36), torch.bfloat16)
    options = {"weight": given["weight"], "labels": given["labels"].reshape(4, 9)}
    hidden = given["hidden"].reshape(4, 9, 8)
    exact = prefuse.preference_loss(
        "simpo", hidden=hidden.double(), **{**options, "weight": given["weight"].double()}
    ).loss
    found = prefuse.preference_loss("simpo", hidden=hidden, logits_dtype=torch.float32, **options).loss
    assert abs(found - exact) < 1e-5 * exact.abs()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("plan", [None, "single-pass", "grouped", "keep", "recompute"])
@pytest.mark.parametrize("workspace_bytes", [None, 12000], ids=["one tile", "many tiles"])
def test_gradients_of_tiles_are_no_farther_off_than_those_of_16_bit_logits(dtype, plan, workspace_bytes, monkeypatch):
    monkeypatch.setattr(operands, "makes_wide_tiles", lambda device: True)
    given = narrow(problem(tokens=36), dtype)
    trained = ("hidden",) if plan == "single-pass" else ("hidden", "weight", "bias")
    if plan == "keep" and workspace_bytes:
        workspace_bytes = 1 << 20

    def gradients(of, **options):
        leaves = {name: of[name].detach().requires_grad_(name in trained) for name in ("hidden", "weight", "bias")}
        shaped = {**leaves, "hidden": leaves["hidden"].reshape(4, 9, 8), "labels": given["labels"].reshape(4, 9)}
        loss = prefuse.preference_loss("simpo", **shaped, plan=plan, workspace_bytes=workspace_bytes, **options).loss
        return torch.autograd.grad(loss, [leaves[name] for name in trained])

    exact = gradients({name: value.double() if value.is_floating_point() else value for name, value in given.items()})
    plain, wide = gradients(given), gradients(given, logits_dtype=torch.float32)
    for one, other, right in zip(wide, plain, exact, strict=True):
        assert one.dtype == dtype
        error, before = ((found.double() - right).norm() / right.norm() for found in (one, other))
        assert error < 1.05 * before + torch.finfo(dtype).eps


@pytest.mark.parametrize(
    ("dtype", "logits_dtype"),
    [(torch.bfloat16, torch.float16), (torch.float64, torch.float32), (torch.float32, torch.bfloat16)],
)
def test_other_dtypes_are_refused(dtype, logits_dtype):
    given = narrow(problem(), dtype)
    with pytest.raises(ValueError, match=f"logits_dtype: expected None, .* got {logits_dtype}"):
        prefuse.linear_token_stats(given["hidden"], given["weight"], given["labels"], logits_dtype=logits_dtype)


def test_float32_stays_as_it_is():
    given = narrow(problem(), torch.float32)
    plain = prefuse.linear_token_logps(given["hidden"], given["weight"], given["labels"])
    wide = prefuse.linear_token_logps(given["hidden"], given["weight"], given["labels"], logits_dtype=torch.float32)
    assert torch.equal(plain, wide)


def test_beside_logits_it_means_nothing():
    with pytest.raises(TypeError, match="logits_dtype: given without hidden"):
        prefuse.preference_loss(
            "simpo",
            logits=torch.zeros(2, 3, 5),
            labels=torch.zeros(2, 3, dtype=torch.int64),
            logits_dtype=torch.float32,
        )


def test_a_model_that_makes_its_logits_refuses_it():
    from prefuse.models.causal_lm import of_logits

    with pytest.raises(TypeError, match="logits_dtype: this model makes its logits itself"):
        of_logits({"logits_dtype": torch.float32})
