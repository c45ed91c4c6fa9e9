"""Policy-gradient objectives against the code of TRL and Liger, run on the CPU on a random batch.

As in `test_libraries`: trainers are built without their constructors, given what their loss reads.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from .lists_and_tokens import evaluate
from .test_libraries import LocalAccelerator, library

RESPONSES, WIDTH = 6, 7
LENGTHS = np.array([3, 7, 1, 5, 2, 6])
MASK = np.arange(WIDTH)[None, :] < LENGTHS[:, None]
GROUPS = np.repeat([0, 1], 3)


def token_columns():
    rng = np.random.default_rng(31)
    logps = rng.normal(-1.5, 0.5, MASK.shape)
    columns = {"logps": logps, "old_logps": logps + rng.normal(0, 0.3, MASK.shape)}
    return columns | {"ref_logps": logps + rng.normal(0, 0.4, MASK.shape), "mask": MASK}


COLUMNS = token_columns()
ADVANTAGE = np.random.default_rng(32).normal(0, 1, RESPONSES)
TOKENS = int(MASK.sum())
CLIPS = {"clip": 0.1, "clip_high": 0.25}
KL = {"beta": 0.07}

# loss type, importance sampling level, β, δ; the objective and its hyper-parameters
CASES = [
    ("grpo", "token", 0.07, None, "grpo", CLIPS | KL),
    ("grpo", "token", 0.0, 1.3, "grpo", CLIPS | {"divergence": "none", "delta": 1.3}),
    ("bnpo", "token", 0.07, None, "grpo", CLIPS | KL | {"average": "tokens"}),
    ("dr_grpo", "token", 0.0, None, "grpo", CLIPS | {"divergence": "none", "average": "constant", "max_tokens": 9.0}),
    ("dapo", "token", 0.0, None, "dapo", CLIPS | {"num_tokens": float(TOKENS)}),
    ("grpo", "sequence", 0.0, None, "gspo", CLIPS),
    ("luspo", "sequence", 0.0, None, "luspo", CLIPS),
    ("cispo", "token", 0.0, None, "cispo", {"cap": 0.25}),
    ("sapo", "token", 0.0, None, "sapo", {"tau_pos": 1.0, "tau_neg": 1.25}),
    ("vespo", "token", 0.0, None, "vespo", {}),
]


def ours(name, parameters):
    reads_reference = name == "grpo" and parameters.get("divergence") != "none"
    columns = COLUMNS | {"advantage": ADVANTAGE}
    if not reads_reference:
        columns = {column: value for column, value in columns.items() if column != "ref_logps"}
    return evaluate(name, {"estimator": "given"} | parameters, columns)


def check(score, loss, logps):
    loss.backward()
    assert_allclose(score.loss, float(loss.detach()), rtol=1e-12)
    assert_allclose(score.gradients["logps"], np.where(MASK, logps.grad.numpy(), 0.0), rtol=1e-10, atol=1e-15)


@pytest.mark.evidence("TRL", "GRPO")
@pytest.mark.parametrize(("loss_type", "level", "beta", "delta", "name", "parameters"), CASES)
def test_trl_grpo_trainer(loss_type, level, beta, delta, name, parameters):
    logps = torch.tensor(COLUMNS["logps"], requires_grad=True)
    trainer = grpo_trainer(logps, loss_type, level, beta, delta)
    loss = trainer._compute_loss(None, inputs())
    score = ours(name, parameters)
    if "kl" in score.metrics:
        assert_allclose(score.metrics["kl"], trainer._metrics["eval"]["kl"][-1], rtol=1e-6)
    if loss_type in ("grpo", "bnpo", "dapo", "dr_grpo") and delta is None and level == "token":
        theirs = trainer._metrics["eval"]["clip_ratio/region_mean"][-1]
        assert_allclose(score.metrics["clip_ratio"], theirs, rtol=1e-6)
    check(score, loss, logps)


def grpo_trainer(logps, loss_type, level, beta, delta, unbiased=False, off_policy=None, sampled=False):
    """TRL's trainer without its constructor, given what its loss reads."""
    trainer = object.__new__(library("trl.trainer.grpo_trainer").GRPOTrainer)
    arguments = {"delta": delta, "use_bias_correction_kl": unbiased, "steps_per_generation": 1}
    arguments |= {"sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.25}
    arguments |= {"vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0, "vespo_k_neg": 3.0, "vespo_lambda_neg": 2.0}
    trainer.__dict__.update(
        accelerator=Reducing(),
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(**arguments),
        aux_loss_enabled=False,
        beta=beta,
        epsilon_low=CLIPS["clip"],
        epsilon_high=CLIPS["clip_high"],
        importance_sampling_level=level,
        loss_type=loss_type,
        max_completion_length=9,
        off_policy_mask_threshold=off_policy,
        vllm_importance_sampling_correction=sampled,
        top_entropy_quantile=1.0,
        use_vllm=sampled,
        _entropy_bonus_enabled=False,
        _metrics={"eval": defaultdict(list)},
    )
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logps, torch.zeros(MASK.shape), None)
    return trainer


def corrected(mode, low, high):
    """The importance ratio of an inference engine, which TRL makes while it generates: from its description."""
    gap = torch.tensor(np.where(MASK, COLUMNS["old_logps"] - SAMPLER_LOGPS, 0.0))
    ratio = torch.exp(gap.sum(1, keepdim=True).expand_as(gap) if mode.startswith("sequence") else gap)
    if mode.endswith("truncate"):
        return torch.clamp(ratio, min=low, max=high)
    return torch.where((ratio < low) | (ratio > high), 0.0, ratio)


SAMPLER_LOGPS = COLUMNS["old_logps"] + np.random.default_rng(34).normal(0, 0.3, MASK.shape)
CORRECTIONS = [
    ("grpo", "grpo", "token_truncate", 0.8, 1.2, {"divergence": "none"}, {}),
    ("grpo", "grpo", "sequence_mask", 0.5, 1.6, {"off_policy": 0.01, "divergence": "k3_unbiased"} | KL, {"beta": 0.07}),
    ("dapo", "dapo", "token_mask", 0.8, 1.2, {"num_tokens": float(TOKENS)}, {}),
    ("cispo", "cispo", "sequence_truncate", 0.5, 1.6, {"cap": 0.25}, {}),
    ("sapo", "sapo", "token_mask", 0.8, 1.2, {"tau_pos": 1.0, "tau_neg": 1.25}, {}),
    ("vespo", "vespo", "token_truncate", 0.8, 1.2, {}, {}),
]


@pytest.mark.evidence("TRL", "GRPO")
@pytest.mark.parametrize(("loss_type", "name", "mode", "low", "high", "parameters", "settings"), CORRECTIONS)
def test_trl_correction_for_an_engine(loss_type, name, mode, low, high, parameters, settings):
    """Truncated and masked importance sampling, the off-policy mask, and the KL estimate weighed by the ratio."""
    logps = torch.tensor(COLUMNS["logps"], requires_grad=True)
    unbiased, off_policy = parameters.get("divergence") == "k3_unbiased", parameters.get("off_policy")
    trainer = grpo_trainer(logps, loss_type, "token", settings.get("beta", 0.0), None, unbiased, off_policy, True)
    given = inputs() | {"importance_sampling_ratio": corrected(mode, low, high)}
    loss = trainer._compute_loss(None, given | {"sampling_per_token_logps": torch.tensor(SAMPLER_LOGPS)})
    clips = CLIPS if name in ("grpo", "dapo") else {}
    options = {"estimator": "given", "sampler": mode, "sampler_low": low, "sampler_high": high} | clips | parameters
    columns = COLUMNS | {"advantage": ADVANTAGE, "sampler_logps": SAMPLER_LOGPS}
    columns = {column: value for column, value in columns.items() if column != "ref_logps" or unbiased}
    check(evaluate(name, options, columns), loss, logps)


class Reducing(LocalAccelerator):
    """What a policy-gradient trainer asks of `accelerate` besides."""

    num_processes = 1

    def reduce(self, value, reduction):
        return value


def inputs():
    mask = torch.tensor(MASK).long()
    prompt = torch.ones(RESPONSES, 2).long()
    tensors = {"prompt_ids": prompt, "prompt_mask": prompt, "completion_ids": mask, "completion_mask": mask}
    tensors |= {"advantages": torch.tensor(ADVANTAGE), "num_items_in_batch": torch.tensor(TOKENS)}
    tensors |= {f"{name}_per_token_logps": torch.tensor(COLUMNS[f"{name}_logps"]) for name in ("old", "ref")}
    return tensors


# Liger's LUSPO divides by the padded width.
@pytest.mark.evidence("Liger", "GRPO")
@pytest.mark.parametrize(
    ("loss_type", "level", "beta", "delta", "name", "parameters"), [case for case in CASES if case[0] != "luspo"]
)
def test_liger_grpo(loss_type, level, beta, delta, name, parameters):
    function = library("liger_kernel.chunked_loss.grpo_loss").LigerFusedLinearGRPOFunction
    logps = torch.tensor(COLUMNS["logps"], requires_grad=True)
    mask = torch.tensor(MASK).double()
    loss, _ = function.ppo_loss_fn(
        logps,
        mask,
        torch.tensor(ADVANTAGE),
        mask,
        ref_per_token_logps=torch.tensor(COLUMNS["ref_logps"]),
        old_per_token_logps=torch.tensor(COLUMNS["old_logps"]),
        epsilon_low=CLIPS["clip"],
        epsilon_high=CLIPS["clip_high"],
        beta=beta,
        delta=delta,
        loss_type=loss_type,
        max_completion_length=9,
        importance_sampling_level=level,
        sapo_temperature_neg=1.25,
    )
    check(ours(name, parameters), loss, logps)


@pytest.mark.evidence("TRL", "RLOO")
def test_trl_rloo_trainer():
    trainer_class = library("trl.trainer.rloo_trainer").RLOOTrainer
    rng = np.random.default_rng(33)
    reward, beta = rng.normal(0, 1, RESPONSES), 0.1
    sums = {name: np.where(MASK, COLUMNS[name], 0.0).sum(1) for name in ("logps", "old_logps", "ref_logps")}
    score = evaluate("rloo", {"beta": beta} | CLIPS, sums | {"reward": reward, "groups": GROUPS})
    logps = torch.tensor(COLUMNS["logps"], requires_grad=True)
    trainer = object.__new__(trainer_class)
    trainer.__dict__.update(
        accelerator=Reducing(),
        model=SimpleNamespace(training=False),
        aux_loss_enabled=False,
        epsilon_low=CLIPS["clip"],
        epsilon_high=CLIPS["clip_high"],
        _metrics={"eval": defaultdict(list)},
    )
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logps, torch.zeros(MASK.shape), None)
    # The advantages as that trainer makes them when it scores samples.
    regularised = (reward - beta * (sums["old_logps"] - sums["ref_logps"])).reshape(2, 3)
    advantages = (regularised - (regularised.sum(1, keepdims=True) - regularised) / 2).flatten()
    given = inputs() | {"advantages": torch.tensor(advantages), "old_logps": torch.tensor(sums["old_logps"])}
    loss = trainer._compute_loss(None, given)
    loss.backward()
    assert_allclose(score.loss, float(loss.detach()), rtol=1e-12)
    per_response = score.gradients["logps"][:, None] * np.ones(WIDTH)
    assert_allclose(np.where(MASK, per_response, 0.0), logps.grad.numpy(), rtol=1e-10, atol=1e-15)


@pytest.mark.evidence("TRL", "Reward")
@pytest.mark.parametrize("margins", [None, np.array([0.1, 0.5, 0.0])])
def test_trl_reward_trainer(margins):
    trainer_class = library("trl.trainer.reward_trainer").RewardTrainer
    rewards = torch.tensor([1.0, -0.3, 0.4, 0.2, 0.9, -1.1], dtype=torch.float64, requires_grad=True)
    trainer = object.__new__(trainer_class)
    trainer.__dict__.update(
        accelerator=LocalAccelerator(),
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=0.03),
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    given = {"attention_mask": torch.ones(6, 2)} | ({} if margins is None else {"margin": torch.tensor(margins)})
    loss = trainer.compute_loss(lambda **_: SimpleNamespace(logits=rewards[:, None]), given)
    loss.backward()
    halves = {"chosen_reward": rewards[:3].detach().numpy(), "rejected_reward": rewards[3:].detach().numpy()}
    score = evaluate("bradley_terry", {"center": 0.03, "margin": margins}, halves)
    assert_allclose(score.loss, float(loss.detach()), rtol=1e-12)
    found = np.concatenate([score.gradients["chosen_reward"], score.gradients["rejected_reward"]])
    assert_allclose(found, rewards.grad.numpy(), rtol=1e-12)
