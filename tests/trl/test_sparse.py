"""Sparse gradients of the head through TRL's trainers, `PreferenceTrainer` and `prefuse.head`."""

from __future__ import annotations

import pytest
import torch

import prefuse
import prefuse.trl
from prefuse.compat import trl
from prefuse.linear import sparse
from prefuse.linear.sparse import Sparse
from prefuse.models.causal_lm import HeadTensors
from prefuse.trl import PreferenceConfig
from tests.devices import normal
from tests.integration.models import VOCABULARY, causal_lm
from tests.trl.running import assert_same, make, train
from tests.trl.test_accelerate import GENERATED

pytestmark = pytest.mark.filterwarnings("ignore")

NEARLY_DENSE = 2.0**-40
"""With nothing rounded that float32 would show."""


@pytest.fixture
def pulled(monkeypatch):
    """How often gradients came from lists."""
    calls, backward = [], sparse.backward
    monkeypatch.setattr(sparse, "backward", lambda *given: calls.append(1) or backward(*given))
    return calls


def accelerated(kind, folder, how, eps, **options):
    """A training with `accelerate(sparse=eps)` "before" or "after" the trainer is made."""

    def made():
        trainer = make(kind, folder, **options)
        if how == "after":
            handles.append(prefuse.trl.accelerate(trainer, sparse=eps))
        return trainer

    handles = [prefuse.trl.accelerate(sparse=eps)] if how == "before" else []
    try:
        return train(made, "as it is")
    finally:
        for handle in handles:
            handle.remove()


CASES = {
    "dpo": ("DPO", "before", {}),
    "dpo, one trainer": ("DPO", "after", {"model": "qwen3-tied"}),
    "grpo, bonus of entropy": ("GRPO", "after", {**GENERATED, "model": "qwen3", "beta": 0.0, "entropy_coef": 0.1}),
    "simpo": ("CPO", "after", {"loss_type": "simpo", "cpo_alpha": 0.0, "model": "gemma2"}),
}


@pytest.mark.parametrize("case", CASES)
def test_trls_trainers_take_it(case, tmp_path, pulled):
    kind, how, options = CASES[case]

    def given():
        return {name: v() if callable(v) and name != "reward_funcs" else v for name, v in options.items()}

    expected = train(lambda: make(kind, tmp_path, **given()), "plain")
    assert not pulled
    # A seed of its own draws nothing from the generator that responses are sampled with.
    assert_same(accelerated(kind, tmp_path, how, Sparse(NEARLY_DENSE, seed=1), **given()), expected)
    assert len(pulled) >= (6 if "entropy_coef" in options else 3)  # the entropy's gradient is made where one comes


def test_the_roundings_of_each_step_are_others_and_a_seed_repeats_them(tmp_path):
    first, again = (accelerated("DPO", tmp_path, "after", 0.05) for _ in range(2))
    dense = train(lambda: make("DPO", tmp_path), "plain")
    assert first.logs[0]["loss"] == dense.logs[0]["loss"]
    assert all(torch.equal(first.change[name], again.change[name]) for name in first.change)
    assert any(not torch.equal(first.change[name], dense.change[name]) for name in first.change)


def test_preference_trainer_takes_it(tmp_path, pulled):
    runs = [
        train(lambda o=o: make("Preference", tmp_path, objective="simpo", **o), "plain")
        for o in ({}, {"head_sparse": NEARLY_DENSE})
    ]
    assert len(pulled) == 3
    assert_same(runs[1], runs[0])


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (2.0, ValueError, "head_sparse: expected 2\\^-40 <= eps <= 1, got 2.0"),
        ("much", ValueError, "head_sparse: expected a number, \"auto\" or None, got 'much'"),
        (True, TypeError, "head_sparse: expected a number, .* got bool"),
    ],
)
def test_the_configuration_checks_it(value, kind, message, tmp_path):
    with pytest.raises(kind, match=message):
        PreferenceConfig(str(tmp_path), head_sparse=value, use_cpu=True, bf16=False)


@pytest.mark.parametrize("value", ["auto", "0.001", None, 2**-12])
def test_the_configuration_takes_text_of_a_command_line(value, tmp_path):
    config = PreferenceConfig(str(tmp_path), head_sparse=value, use_cpu=True, bf16=False)
    assert config.head_sparse == (0.001 if value == "0.001" else value)


def test_accelerate_checks_it():
    with pytest.raises(ValueError, match="sparse: expected 2\\^-40 <= eps <= 1, got 0"):
        prefuse.trl.accelerate(sparse=0)


def test_the_head_of_a_model_takes_it(pulled):
    model = causal_lm("llama")
    head = prefuse.head(model)
    tokens = torch.randint(5, VOCABULARY, (4, 9), generator=torch.Generator().manual_seed(1))
    found = []
    for eps in (None, NEARLY_DENSE):
        score = head.preference_loss("simpo", labels=tokens, inputs={"input_ids": tokens}, sparse=eps)
        logps = head.token_logps(tokens, inputs={"input_ids": tokens}, sparse=eps)
        (score.loss + logps.mean()).backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
        model.zero_grad()
    assert score.plan.name == "lists" and len(pulled) == 2
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-7)
    head.remove()


def test_a_model_that_makes_its_logits_stays_dense(pulled):
    logits, labels = torch.randn(3, 4, requires_grad=True), torch.tensor([1, 2, 3])
    tensors = HeadTensors(None, None, None, None, 1.0, None, None, None, None)
    made = tensors.token_stats(logits, labels, "logp", sparse=0.1)
    (gradient,) = torch.autograd.grad(made.logp.sum(), logits)
    expected = torch.nn.functional.one_hot(labels, 4) - logits.softmax(-1)
    torch.testing.assert_close(gradient, expected.detach())
    assert not pulled


def test_the_loss_of_such_a_model_stays_dense(pulled):
    model = causal_lm("llama")
    model.lm_head.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    tokens = torch.randint(5, VOCABULARY, (4, 9), generator=torch.Generator().manual_seed(1))
    head, found = prefuse.head(model), []
    for eps in (None, 0.1):
        head.preference_loss("simpo", labels=tokens, inputs={"input_ids": tokens}, sparse=eps).loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
        model.zero_grad()
    head.remove()
    assert not pulled
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


@pytest.mark.parametrize(("on_gpu", "expected"), [(False, ["lists", "lists"]), (True, ["lists", "single-pass"])])
def test_an_entropys_gradient_is_sparse_where_lists_are(on_gpu, expected, monkeypatch):
    plans, real = [], trl.linear_token_stats

    def recorded(*arguments, **options):
        result = real(*arguments, **options)
        plans.append(result.plan.name)
        return result

    monkeypatch.setattr(trl, "linear_token_stats", recorded)
    monkeypatch.setattr(trl, "by_columns", lambda _: on_gpu)
    hidden = normal(6, 8, seed=1).requires_grad_()
    options = {"weight": normal(53, 8, seed=2), "sparse": NEARLY_DENSE}
    log_probs, entropy, *_ = trl.token_outputs(hidden, torch.arange(6), ("entropy",), **options)
    (log_probs - 0.1 * entropy).sum().backward()
    assert plans == expected
