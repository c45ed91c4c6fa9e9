"""The GRPO losses beside Liger's: loss, metrics and gradients on random batches."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import prefuse.compat.liger as ours
from prefuse.compat.liger._policy import LOSS_TYPES

from .checking import (
    CLASSES,
    RESPONSES,
    TOKENS,
    assert_as_good,
    assert_same,
    head,
    integers,
    library,
    normal,
    outcome,
    reference,
)

pytestmark = pytest.mark.usefixtures("device")

COMBINATIONS = [
    (loss_type, level)
    for loss_type, level in itertools.product(LOSS_TYPES, ("token", "sequence"))
    if level == "token" or loss_type not in ("cispo", "sapo", "vespo")
]
PLAIN = {"use_ref_model": False}
CASES = {
    "nothing but the policy": (PLAIN, ()),
    "old": (PLAIN, ("old",)),
    "no kl": ({"beta": 0.0, "use_ref_model": False}, ("old",)),
    "reference logps": ({}, ("old", "ref")),
    "reference hidden states": ({"temperature": 0.8}, ("old", "ref hidden")),
    "corrected kl": ({"use_bias_correction_kl": True, "beta": 0.5}, ("old", "ref")),
    "two-sided": ({"delta": 1.1, "epsilon_low": 0.1, "epsilon_high": 0.3}, ("old", "ref")),
    "correction by token": (PLAIN, ("old", "ratio [B, T]")),
    "correction by response": (PLAIN, ("old", "ratio [B]")),
    "items": (PLAIN, ("old", "items")),
    "other numbers": (
        PLAIN
        | {"sapo_temperature_pos": 0.7, "sapo_temperature_neg": 1.3, "vespo_k_pos": 1.5, "vespo_lambda_pos": 2.5}
        | {"vespo_k_neg": 2.5, "vespo_lambda_neg": 1.5, "chunk_size": 3},
        ("old",),
    ),
}


@pytest.fixture(scope="module")
def liger():
    return library("liger_kernel.chunked_loss")


def tokens():
    return integers(CLASSES, RESPONSES, TOKENS, seed=9)


def attention_mask():
    mask = torch.ones(RESPONSES, TOKENS, dtype=torch.int64)
    mask[0, 3:] = mask[2, 1:] = mask[3] = 0  # the last response is empty
    return mask


def near(seed, spread):
    """Log-probabilities near the policy's."""
    policy = {name: value.detach() for name, value in head().items()}
    logits = policy["_input"] @ policy["weight"].T + policy["bias"]
    logps = logits.log_softmax(-1).gather(-1, tokens()[..., None])[..., 0]
    return logps + spread * normal(RESPONSES, TOKENS, seed=seed)


def columns(names, dtype=torch.float32, bias=True):
    ratios = normal(RESPONSES, TOKENS, seed=12).exp()
    known = {
        "old": {"old_per_token_logps": near(10, 0.3)},
        "ref": {"ref_per_token_logps": near(11, 0.2)},
        "ref hidden": reference(bias, dtype),
        "ratio [B, T]": {"vllm_is_ratio": ratios},
        "ratio [B]": {"vllm_is_ratio": ratios[:, 0]},
        "items": {"num_items_in_batch": torch.tensor(11)},
    }
    return {key: value for name in names for key, value in known[name].items()}


def run(
    package,
    options,
    names=(),
    *,
    dtype=torch.float32,
    wide=False,
    trained=("_input", "weight", "bias"),
    bias=True,
    **changed,
):
    tensors = {
        name: value if value is None or not wide else value.detach().float().requires_grad_(value.requires_grad)
        for name, value in head(bias, dtype, trained).items()
    }
    given = columns(names, dtype, bias)
    given = {name: value.float() if wide and value is not None else value for name, value in given.items()} | changed
    module = package.LigerFusedLinearGRPOLoss(compiled=False, max_completion_length=7, **options)
    made = module(
        tensors["_input"],
        tensors["weight"],
        **{"selected_token_ids": tokens(), "attention_mask": attention_mask(), "bias": tensors["bias"]}
        | {"advantages": normal(RESPONSES, seed=13)}
        | given,
    )
    return outcome(made, tensors)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("loss_type", "level"), COMBINATIONS)
def test_grpo(liger, loss_type, level, case):
    options, names = CASES[case]
    options = options | {"loss_type": loss_type, "importance_sampling_level": level}
    assert_same(run(ours, options, names), run(liger, options, names))


@pytest.mark.parametrize("trained", [("_input",), ("_input", "weight"), ("_input", "bias")], ids=str)
def test_gradients_go_where_they_are_wanted(liger, trained):
    results = run(ours, PLAIN, ("old",), trained=trained)
    assert {name for name in results if name.startswith("d")} == {f"d{name}" for name in trained}
    assert_same(results, run(liger, PLAIN, ("old",), trained=trained))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_bfloat16(liger, loss_type):
    """Without a bias, which Liger adds to rounded logits in float32 and a matrix product adds before it rounds them."""
    call = {"options": {"loss_type": loss_type}, "names": ("old", "ref hidden"), "bias": False, "dtype": torch.bfloat16}
    assert_as_good(*(run(package, **call) for package in (ours, liger)), run(liger, wide=True, **call))


def test_a_weight_of_another_dtype(liger):
    def call(package):
        tensors = head()
        states = tensors["_input"].detach().bfloat16().requires_grad_()
        made = package.LigerFusedLinearGRPOLoss(compiled=False, use_ref_model=False)(
            states, tensors["weight"], tokens(), attention_mask(), normal(RESPONSES, seed=13), tensors["bias"]
        )
        return outcome(made, tensors | {"_input": states})

    results = call(ours)
    assert (results["d_input"].dtype, results["dweight"].dtype) == (torch.bfloat16, torch.float32)
    assert_as_good(results, call(liger), run(liger, PLAIN))


@pytest.mark.parametrize("mask", [torch.bool, torch.float32])
def test_dtypes_of_the_mask(mask):
    changed = {"attention_mask": attention_mask().to(mask)}
    assert_same(run(ours, PLAIN, ("old",), **changed), run(ours, PLAIN, ("old",)), roundings=0)


@pytest.mark.parametrize(
    ("policy", "of"),
    [
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float64),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float64),
    ],
    ids=str,
)
def test_a_reference_of_another_dtype(liger, policy, of):
    """It is scored in its own dtype."""
    states = {name: value.to(of) for name, value in reference().items()}
    own = torch.nn.functional.linear(*states.values()).double() / 0.8
    logps = own.log_softmax(-1).gather(-1, tokens()[..., None])[..., 0].float()
    options = {"temperature": 0.8, "beta": 0.5}
    found = run(ours, options, dtype=policy, **states)
    assert_same(found, run(ours, options, dtype=policy, ref_per_token_logps=logps))
    torch.testing.assert_close(found["[0]"], run(liger, options, dtype=policy, **states)["[0]"], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", ["advantages", "vllm_is_ratio"])
def test_columns_of_float64(liger, name):
    column = {name: normal(RESPONSES, seed=13).double().exp()}
    found, theirs = (run(package, PLAIN, ("old",), **column) for package in (ours, liger))
    assert found["loss"].dtype == torch.float32
    assert_same(found, theirs)


def test_what_stands_at_padding_is_not_read():
    """Where Liger has exp(500)·0 = NaN; tokens at padding may be anything too."""
    padding = attention_mask() == 0
    changed = {
        "old_per_token_logps": near(10, 0.3).masked_fill(padding, -500.0),
        "ref_per_token_logps": near(11, 0.2).masked_fill(padding, torch.nan),
        "selected_token_ids": tokens().masked_fill(padding, -100),
    }
    assert_same(run(ours, {}, **changed), run(ours, {}, ("old", "ref")), roundings=0)


def test_given_logps_come_before_hidden_states():
    with pytest.warns(UserWarning, match="ref_input: not read.* Using ref_per_token_logps"):
        both = run(ours, {}, ("old", "ref", "ref hidden"))
    assert_same(both, run(ours, {}, ("old", "ref")), roundings=0)


def test_without_a_reference_there_is_no_kl():
    assert run(ours, PLAIN, ("ref",))["[0]"] == 0
    assert list(run(ours, {"beta": 0.0, "use_ref_model": False}))[:3] == ["loss", "[0]", "d_input"]


def test_no_grad_and_second_backward():
    tensors = head()
    arguments = (tokens(), attention_mask(), normal(RESPONSES, seed=13), tensors["bias"])
    module = ours.LigerFusedLinearGRPOLoss(use_ref_model=False)
    with torch.no_grad():
        assert not module(tensors["_input"], tensors["weight"], *arguments)[0].requires_grad
    loss, _ = module(tensors["_input"], tensors["weight"], *arguments)
    loss.backward(retain_graph=True)
    once = tensors["weight"].grad.clone()
    loss.backward()
    torch.testing.assert_close(tensors["weight"].grad, 2 * once)


class TestErrors:
    @pytest.mark.parametrize("loss_type", ["cispo", "sapo", "vespo"])
    def test_sequence_level_is_refused_in_the_call(self, loss_type):
        options = {"importance_sampling_level": "sequence", "loss_type": loss_type}
        ours.LigerFusedLinearGRPOLoss(**options)
        with pytest.raises(ValueError, match="Sequence-level importance sampling is not supported"):
            run(ours, options)

    def test_the_function_reads_temperatures_of_sapo_alone(self):
        def call(loss_type):
            hidden, weight = torch.zeros(2, 3, 4), torch.zeros(5, 4)
            ones = torch.ones(2, 3, dtype=torch.int64)
            before = (hidden, weight, ones, ones, torch.ones(2), None, torch.zeros(2, 3), None, None, None, None)
            options = (0.04, 0.2, 0.2, loss_type, 3, "token", 1.0, False, True, 1)
            return ours.LigerFusedLinearGRPOFunction.apply(*before, *options)[0]

        # All log-probabilities are -log 5: the surrogate is -1, and the KL estimate 5 - log 5 - 1 times beta.
        assert float(call("bnpo")) == pytest.approx(-1 + 0.04 * (5 - math.log(5) - 1), rel=1e-6)
        with pytest.raises(ValueError, match="sapo_temperature_neg must be positive, got False"):
            call("sapo")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"sapo_temperature_pos": 0.0}, r"sapo_temperature_pos must be positive, got 0\.0"),
            ({"sapo_temperature_neg": -1.0}, r"sapo_temperature_neg must be positive, got -1\.0"),
            ({"delta": 0.0}, r"delta must be positive, got 0\.0"),
            ({"delta": -1.0}, r"delta must be positive, got -1\.0"),
            ({"chunk_size": 0}, "chunk_size: expected at least 1, got 0"),
        ],
        ids=str,
    )
    def test_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            ours.LigerFusedLinearGRPOLoss(**options)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"loss_type": "ppo"}, "Unknown loss type: ppo; expected one of grpo, "),
            ({"loss_type": None}, "Unknown loss type: None; expected one of grpo, "),
            (
                {"importance_sampling_level": "group"},
                "Unknown importance sampling level: group; expected one of ",
            ),
        ],
        ids=str,
    )
    def test_an_unknown_name_is_refused_in_the_call(self, liger, options, message):
        for package in (ours, liger):
            package.LigerFusedLinearGRPOLoss(**options)
            with pytest.raises(ValueError, match=message.partition(";")[0]):
                run(package, options | PLAIN)
        with pytest.raises(ValueError, match=message):
            run(ours, options | PLAIN)

    def test_a_bound_that_is_not_positive_is_refused_at_construction_alone(self, liger):
        for package in (ours, liger):
            with pytest.raises(ValueError, match=r"delta must be positive, got -0\.5"):
                package.LigerFusedLinearGRPOLoss(delta=-0.5)
        results = []
        for package in (ours, liger):
            module, tensors = package.LigerFusedLinearGRPOLoss(compiled=False, **PLAIN), head(bias=False)
            module.delta = -0.5
            made = module(tensors["_input"], tensors["weight"], tokens(), attention_mask(), normal(RESPONSES, seed=13))
            results.append(outcome(made, tensors))
        assert_same(*results)

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"advantages": [RESPONSES, 1]}, r"advantages: expected shape \(4,\), got \(4, 1\)"),
            ({"attention_mask": [RESPONSES, 2]}, r"attention_mask: expected shape \(4, 5\), got \(4, 2\)"),
            ({"old_per_token_logps": [2, TOKENS]}, r"old_per_token_logps: expected shape \(4, 5\), got \(2, 5\)"),
            ({"vllm_is_ratio": [TOKENS]}, r"vllm_is_ratio: expected shape \(4,\) or \(4, 1\) or \(4, 5\), got \(5,\)"),
        ],
        ids=str,
    )
    def test_shapes(self, changed, message):
        with pytest.raises(ValueError, match=message):
            run(ours, PLAIN, **{name: torch.ones(shape) for name, shape in changed.items()})

    def test_what_is_missing(self):
        with pytest.raises(ValueError, match="ref_per_token_logps or ref_input must be provided; got neither"):
            run(ours, {})
        with pytest.raises(ValueError, match="ref_weight: missing, and ref_input needs it"):
            run(ours, {}, ref_input=reference()["ref_input"])
        tensors = head()
        module = ours.LigerFusedLinearGRPOLoss(loss_type="dr_grpo", use_ref_model=False)
        with pytest.raises(ValueError, match=r"max_completion_length must be provided .* got None"):
            module(tensors["_input"], tensors["weight"], tokens(), attention_mask(), normal(RESPONSES, seed=13))

    def test_tokens_that_are_no_classes(self, device):
        if device.type == "cpu":
            with pytest.raises(ValueError, match=r"selected_token_ids: -100 at \[1, 0\], expected 0 <= label < 23"):
                run(
                    ours,
                    PLAIN,
                    selected_token_ids=tokens()
                    .index_fill(1, torch.tensor([0]), -100)
                    .where(torch.arange(RESPONSES)[:, None] == 1, tokens()),
                )
