"""The catalogue against the code of TRL and Liger, run on the CPU on random batches.

TRL's losses live inside trainers. A trainer is built without its constructor, given the few attributes its loss
reads and a model that answers with per-token log-probabilities made here. What the libraries do differently on
purpose is listed in each objective's docstring and checked here where it shows.
"""

from __future__ import annotations

import os
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from prefuse import objectives

from .pairs_and_points import column_names, evaluate, random_columns

SIZE = 6
COLUMNS = random_columns(SIZE, seed=77)
CPU = torch.device("cpu")


class LocalAccelerator:
    """What a loss asks of `accelerate` on one process."""

    device = CPU

    def gather(self, value):
        return value

    gather_for_metrics = gather


def batch_of(logps: torch.Tensor, lengths: np.ndarray):
    """A batch of responses with these summed log-probabilities, spread evenly over their tokens."""
    mask = np.arange(int(lengths.max()) + 1)[None, :] <= lengths[:, None]
    completion = torch.tensor(mask & (np.arange(mask.shape[1]) > 0)[None, :]).long()
    per_token = completion[:, 1:] * (logps / torch.tensor(lengths))[:, None]
    inputs = {"input_ids": torch.zeros_like(completion), "completion_mask": completion}
    return inputs | {"attention_mask": torch.tensor(mask).long()}, per_token


def answer(per_token):
    zeros = torch.zeros_like(per_token)
    return SimpleNamespace(
        log_probs=per_token,
        entropy=zeros,
        mean_logits=zeros,
        is_top1=zeros.bool(),
        log_sum_sq_probs=zeros,
    )


def library(module: str):
    """A library's module, imported when the first test wants it; tests are skipped where it is not installed."""
    return pytest.importorskip(module, exc_type=ImportError)


@pytest.fixture(scope="module")
def dpo_trainer():
    return library("trl.trainer.dpo_trainer").DPOTrainer


@pytest.fixture(scope="module")
def kto_trainer():
    return library("trl.trainer.kto_trainer").KTOTrainer


@pytest.fixture(scope="module")
def experimental():
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    names = {"cpo": "CPOTrainer", "orpo": "ORPOTrainer", "tpo": "TPOTrainer"}
    return SimpleNamespace(**{name: getattr(library(f"trl.experimental.{name}"), cls) for name, cls in names.items()})


def liger(module: str, function: str):
    return getattr(library(f"liger_kernel.chunked_loss.{module}"), function).preference_loss_fn


def trl_dpo(trainer_class, loss_type, *, beta=0.1, dtype=torch.float64, **settings):
    """TRL's loss, its gradients to the summed log-probabilities, and its metrics."""
    trainer = object.__new__(trainer_class)
    trainer.__dict__.update(
        accelerator=LocalAccelerator(),
        model=SimpleNamespace(training=False),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        f_alpha_divergence_coef=0.5,
        beta=beta,
        loss_types=[loss_type],
        loss_weights=[1.0],
        label_smoothing=0.0,
        use_weighting=False,
        args=SimpleNamespace(discopop_tau=settings.pop("tau", 0.05)),
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    trainer.__dict__.update(settings)
    chosen, rejected = (torch.tensor(COLUMNS[f"{r}_logps"], dtype=dtype, requires_grad=True) for r in ROLES)
    lengths = np.concatenate([COLUMNS["chosen_lengths"], COLUMNS["rejected_lengths"]])
    inputs, per_token = batch_of(torch.cat([chosen, rejected]), lengths)
    inputs |= {f"ref_{r}_logps": torch.tensor(COLUMNS[f"ref_{r}_logps"], dtype=dtype) for r in ROLES}
    loss = trainer._compute_loss(lambda **_: answer(per_token.to(dtype)), inputs, return_outputs=False)
    loss.backward()
    metrics = {name: values[-1] for name, values in trainer._metrics["eval"].items()}
    return float(loss.detach()), {"chosen_logps": chosen.grad, "rejected_logps": rejected.grad}, metrics


ROLES = ("chosen", "rejected")
TRL_PAIRS = [
    ("sigmoid", {}, "dpo", {}),
    ("sigmoid_norm", {}, "dpo_norm", {}),
    ("hinge", {}, "hinge", {}),
    ("ipo", {}, "ipo", {"average": True}),
    ("exo_pair", {"label_smoothing": 0.02}, "exo", {"label_smoothing": 0.02}),
    ("nca_pair", {}, "nca", {}),
    ("robust", {"label_smoothing": 0.2}, "robust", {"label_smoothing": 0.2}),
    ("bco_pair", {}, "bco_pair", {"delta": 0.0}),
    ("sppo_hard", {}, "sppo_hard", {}),
    ("aot", {"label_smoothing": 0.1}, "aot", {"label_smoothing": 0.1}),
    ("aot_unpaired", {"label_smoothing": 0.1}, "aot_unpaired", {"label_smoothing": 0.1}),
    ("apo_zero", {}, "apo_zero", {}),
    ("apo_down", {}, "apo_down", {}),
    ("discopop", {"tau": 0.5}, "discopop", {"tau": 0.5}),
    ("sft", {}, "sft", None),
    ("sigmoid", {"f_divergence_type": "forward_kl"}, "f_dpo", {"divergence": "forward_kl"}),
    ("sigmoid", {"f_divergence_type": "js_divergence"}, "f_dpo", {"divergence": "js"}),
    ("hinge", {"f_divergence_type": "forward_kl"}, "f_dpo", {"divergence": "forward_kl", "link": "hinge"}),
    ("ipo", {"f_divergence_type": "js_divergence"}, "f_dpo", {"divergence": "js", "link": "ipo", "average": True}),
    ("sigmoid_norm", {"f_divergence_type": "forward_kl"}, "f_dpo", {"divergence": "forward_kl", "average": True}),
    (
        "robust",
        {"f_divergence_type": "js_divergence", "label_smoothing": 0.2},
        "f_dpo",
        {"divergence": "js", "link": "robust", "label_smoothing": 0.2},
    ),
    (
        "discopop",
        {"f_divergence_type": "js_divergence", "tau": 0.5},
        "f_dpo",
        {"divergence": "js", "link": "discopop", "tau": 0.5},
    ),
]


@pytest.mark.evidence("TRL", "DPO")
@pytest.mark.parametrize(("loss_type", "settings", "name", "parameters"), TRL_PAIRS, ids=lambda value: str(value))
def test_trl_dpo_trainer(dpo_trainer, loss_type, settings, name, parameters):
    loss, gradients, metrics = trl_dpo(dpo_trainer, loss_type, beta=0.3, **settings)
    score = evaluate(name, {} if parameters is None else {"beta": 0.3} | parameters, COLUMNS)
    assert_allclose(score.loss, loss, rtol=1e-6 if loss_type == "exo_pair" else 1e-12)  # log ε is float32 there
    for column, gradient in gradients.items():
        expected = gradient.numpy()
        tolerance = 1e-6 if loss_type == "exo_pair" else 1e-10
        actual = score.gradients.get(column, np.zeros(SIZE))
        assert_allclose(actual, expected, rtol=tolerance, atol=1e-14, err_msg=column)
    if name != "sft":
        for key in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
            assert_allclose(float(score.metrics[key]), metrics[key], rtol=1e-6, err_msg=key)
        for key in ("logps/chosen", "logps/rejected"):
            assert_allclose(float(score.metrics[key]), metrics[key], rtol=1e-6, err_msg=key)


ALPHAS = [({"alpha": 0.5}, 0.5), ({"alpha": 0.7}, 0.3), ({"alpha": 1.0}, 0.0)]
COEFFICIENTS = [({"coefficient": value}, value) for value in (0.3, 1.0, 2.0)]


@pytest.mark.evidence("TRL", "DPO `alpha_divergence`")
@pytest.mark.parametrize(("parameters", "coefficient"), ALPHAS + COEFFICIENTS, ids=lambda value: str(value))
def test_trl_alpha_divergence(dpo_trainer, parameters, coefficient):
    """TRL's coefficient is one minus the paper's α; its α branch exists in float32 only."""
    settings = {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": coefficient}
    loss, gradients, _ = trl_dpo(dpo_trainer, "sigmoid", dtype=torch.float32, **settings)
    score = evaluate("f_dpo", {"divergence": "alpha", "beta": 0.1} | parameters, COLUMNS)
    assert_allclose(score.loss, loss, rtol=1e-5)
    assert_allclose(score.gradients["chosen_logps"], gradients["chosen_logps"].numpy(), rtol=1e-4, atol=1e-7)


def even_tokens():
    """The token columns of `batch_of`: sums spread evenly over the tokens of each response."""
    found = {}
    for role in ROLES:
        lengths = COLUMNS[f"{role}_lengths"]
        mask = np.arange(lengths.max()) < lengths[:, None]
        found[f"{role}_mask"] = mask
        for name in (f"{role}_logps", f"ref_{role}_logps"):
            found[name.replace("logps", "token_logps")] = mask * (COLUMNS[name] / lengths)[:, None]
        found[f"{role}_token_log_sum_sq"] = np.zeros(mask.shape)  # as `answer` gives it
    return found


@pytest.mark.evidence("TRL", "DPO `ld_alpha`")
def test_trl_length_desensitisation(dpo_trainer):
    """With precomputed reference values TRL weighs what is left to weigh: the policy's tokens."""
    loss, gradients, _ = trl_dpo(dpo_trainer, "sigmoid", beta=0.3, ld_alpha=0.4)
    score = evaluate("ld_dpo", {"beta": 0.3, "alpha": 0.4, "scope": "policy"}, even_tokens())
    assert_allclose(score.loss, loss, rtol=1e-12)
    for role in ROLES:  # a sum spread evenly: its gradient is the mean of its tokens'
        by_token = score.gradients[f"{role}_token_logps"].sum(1) / COLUMNS[f"{role}_lengths"]
        assert_allclose(by_token, gradients[f"{role}_logps"].numpy(), rtol=1e-10)


@pytest.mark.evidence("TRL", "DPO `use_weighting`")
def test_trl_weighting(dpo_trainer):
    loss, gradients, _ = trl_dpo(dpo_trainer, "sigmoid", beta=0.3, use_weighting=True)
    score = evaluate("wpo", {"beta": 0.3, "variant": "trl-1.16"}, even_tokens())
    assert_allclose(score.loss, loss, rtol=1e-12)
    for role in ROLES:
        by_token = score.gradients[f"{role}_token_logps"].sum(1) / COLUMNS[f"{role}_lengths"]
        assert_allclose(by_token, gradients[f"{role}_logps"].numpy(), rtol=1e-10)


def test_trl_sigmoid_has_no_label_smoothing(dpo_trainer):
    """TRL 1.x ignores the option here; ours, like TRL 0.x, does not."""
    smoothed, _, _ = trl_dpo(dpo_trainer, "sigmoid", label_smoothing=0.2)
    plain, _, _ = trl_dpo(dpo_trainer, "sigmoid")
    assert smoothed == plain
    assert evaluate("dpo", {"label_smoothing": 0.2}, COLUMNS).loss != pytest.approx(plain)


@pytest.mark.evidence("TRL", "KTO")
@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
def test_trl_kto_trainer(kto_trainer, name):
    """Under the names TRL gives its two unpaired losses."""
    trainer = object.__new__(kto_trainer)
    trainer.__dict__.update(
        accelerator=LocalAccelerator(),
        model=SimpleNamespace(training=False),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        calculate_KL=name == "kto",
        loss_type=name,
        beta=0.3,
        desirable_weight=1.3,
        undesirable_weight=0.7,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    trainer._compute_kl_logps = lambda model, batch: torch.tensor(COLUMNS["kl_logps"])
    logps = torch.tensor(COLUMNS["logps"], requires_grad=True)
    inputs, per_token = batch_of(logps, COLUMNS["lengths"])
    inputs |= {"label": torch.tensor(COLUMNS["label"]), "ref_logps": torch.tensor(COLUMNS["ref_logps"])}
    inputs |= {"ref_KL_logps": torch.tensor(COLUMNS["ref_kl_logps"])}
    loss = trainer._compute_loss(lambda **_: answer(per_token), inputs, return_outputs=False)
    loss.backward()
    parameters = {"beta": 0.3, "desirable_weight": 1.3, "undesirable_weight": 0.7}
    score = evaluate(name, parameters, COLUMNS)
    assert_allclose(score.loss, float(loss.detach()), rtol=1e-12)
    assert_allclose(score.gradients["logps"], logps.grad.numpy(), rtol=1e-10)


CPO = [
    ("sigmoid", "cpo", {"beta": 0.2, "alpha": 0.0, "label_smoothing": 0.1}, 1.0),
    ("hinge", "cpo", {"beta": 0.2, "alpha": 0.0, "link": "hinge"}, 1.0),
    ("ipo", "cpo", {"beta": 0.2, "alpha": 0.0, "link": "ipo"}, None),
    ("simpo", "simpo", {"beta": 2.0, "gamma": 0.6, "label_smoothing": 0.1}, None),
    ("simpo", "alphapo", {"beta": 2.0, "gamma": 0.6, "alpha": 0.25, "label_smoothing": 0.1}, None),
    ("simpo", "alphapo", {"beta": 2.0, "gamma": 0.6, "alpha": -0.5, "label_smoothing": 0.1}, None),
]


@pytest.mark.evidence("TRL", "CPO")
@pytest.mark.parametrize(("loss_type", "name", "parameters", "divisor"), CPO, ids=lambda value: str(value))
def test_trl_cpo_trainer(experimental, loss_type, name, parameters, divisor):
    trainer = object.__new__(experimental.cpo)
    alpha = parameters["alpha"] if name == "alphapo" else 0.0
    trainer.__dict__.update(accelerator=LocalAccelerator(), alpha=alpha, loss_type=loss_type, beta=parameters["beta"])
    trainer.__dict__.update(simpo_gamma=parameters.get("gamma"), label_smoothing=parameters.get("label_smoothing", 0.0))
    chosen, rejected = (torch.tensor(COLUMNS[f"{r}_logps"], requires_grad=True) for r in ROLES)
    lengths = [torch.tensor(COLUMNS[f"{r}_lengths"]) if divisor is None else divisor for r in ROLES]
    losses, *rewards = trainer.cpo_loss(chosen / lengths[0], rejected / lengths[1])
    losses.mean().backward()
    score = evaluate(name, parameters, COLUMNS)
    assert_allclose(score.losses, losses.detach().numpy(), rtol=1e-12)
    assert_allclose(score.gradients["chosen_logps"], chosen.grad.numpy(), rtol=1e-10)
    assert_allclose(score.gradients["rejected_logps"], rejected.grad.numpy(), rtol=1e-10)
    for role, reward in zip(ROLES, rewards, strict=True):
        assert_allclose(score.rewards[role], reward.numpy(), rtol=1e-12)


@pytest.mark.parametrize("name", ["hinge", "ipo"])
def test_trl_cpo_trainer_with_losses_of_dpo(experimental, name):
    """They are those of DPO whose reference finds everything certain; its "ipo" averages over tokens."""
    trainer = object.__new__(experimental.cpo)
    trainer.__dict__.update(accelerator=LocalAccelerator(), alpha=0.0, loss_type=name, beta=0.3, label_smoothing=0.0)
    chosen, rejected = (
        torch.tensor(COLUMNS[f"{r}_logps"] / (COLUMNS[f"{r}_lengths"] if name == "ipo" else 1)) for r in ROLES
    )
    losses, *_ = trainer.cpo_loss(chosen, rejected)
    certain = {f"ref_{role}_logps": np.zeros(SIZE) for role in ROLES}
    parameters = {"beta": 0.3} | ({"average": True} if name == "ipo" else {})
    assert_allclose(evaluate(name, parameters, COLUMNS | certain).losses, losses.numpy(), rtol=1e-12)


@pytest.mark.evidence("TRL", "ORPO")
def test_trl_orpo_trainer(experimental):
    trainer = object.__new__(experimental.orpo)
    trainer.__dict__.update(accelerator=LocalAccelerator(), beta=0.3)
    chosen, rejected = (torch.tensor(COLUMNS[f"{r}_logps"], requires_grad=True) for r in ROLES)
    n_w, n_l = (torch.tensor(COLUMNS[f"{r}_lengths"]) for r in ROLES)
    ratio_term, *_ = trainer.odds_ratio_loss(chosen / n_w, rejected / n_l)
    loss = (-chosen / n_w).mean() - ratio_term.mean()
    loss.backward()
    score = evaluate("orpo", {"beta": 0.3, "nll": "response_mean"}, COLUMNS)
    assert_allclose(score.loss, float(loss.detach()), rtol=1e-6)  # TRL's odds are float32
    assert_allclose(score.gradients["chosen_logps"], chosen.grad.numpy(), rtol=1e-5, atol=1e-8)
    assert_allclose(score.gradients["rejected_logps"], rejected.grad.numpy(), rtol=1e-5, atol=1e-8)


@pytest.mark.evidence("TRL", "TPO")
@pytest.mark.parametrize(
    ("loss_type", "name"), [("sigmoid", "tpo"), ("hinge", "tpo"), ("ipo", "tpo"), ("tpo-l", "tpo_l")]
)
def test_trl_tpo_trainer(experimental, loss_type, name):
    """From logits, as that trainer has no loss of log-probabilities."""
    parameters = {"beta": 0.4, "alpha": 0.7} | ({"gamma": 0.6} if name == "tpo_l" else {})
    parameters |= {"link": loss_type} if loss_type in ("hinge", "ipo") else {"label_smoothing": 0.1}
    trainer = object.__new__(experimental.tpo)
    trainer.__dict__.update(accelerator=LocalAccelerator(), model=SimpleNamespace(training=False), loss_type=loss_type)
    trainer.__dict__.update(beta=0.4, tpo_alpha=0.7, label_smoothing=0.1, tpo_l_gamma=0.6, _total_train_tokens=0)
    trainer.__dict__.update(_metrics={"eval": defaultdict(list)})
    rng = np.random.default_rng(3)
    logits = torch.tensor(rng.normal(0, 1, (3 * SIZE, 9, 5)), requires_grad=True)
    ids = torch.tensor(rng.integers(0, 5, (3 * SIZE, 9)))
    mask = torch.arange(9) <= torch.tensor(rng.integers(1, 9, 3 * SIZE))[:, None]
    inputs = {"input_ids": ids, "completion_mask": (mask & (torch.arange(9) > 0)).long(), "attention_mask": mask.long()}
    loss = trainer._compute_loss(lambda **_: SimpleNamespace(logits=logits), inputs, return_outputs=False)
    (expected,) = torch.autograd.grad(loss, logits)

    by_token = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    scored = inputs["completion_mask"][:, 1:]
    columns = {}
    for k, role in enumerate(("chosen", "rejected", "gold")):
        rows = slice(k * SIZE, (k + 1) * SIZE)
        columns[f"{role}_logps"], columns[f"{role}_lengths"] = (by_token * scored)[rows].sum(1), scored[rows].sum(1)
    score = objectives.get(name)(**parameters)(**{column: columns[column] for column in column_names(name, parameters)})
    assert_allclose(float(score.loss.detach()), float(loss.detach()), rtol=1e-12)
    (found,) = torch.autograd.grad(score.loss, logits)
    assert_allclose(found.numpy(), expected.numpy(), rtol=1e-9, atol=1e-14)


LIGER_DPO = [
    ("sigmoid", "dpo", {}),
    ("hinge", "hinge", {}),
    ("exo_pair", "exo", {"label_smoothing": 0.02}),
    ("nca_pair", "nca", {}),
    ("robust", "robust", {"label_smoothing": 0.2}),
    ("bco_pair", "bco_pair", {"delta": 0.0}),
    ("sppo_hard", "sppo_hard", {}),
    ("apo_zero", "apo_zero", {}),
    ("apo_down", "apo_down", {}),
    ("discopop", "discopop", {"tau": 0.5}),
]


def liger_inputs():
    names = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    tensors = [torch.tensor(COLUMNS[name], requires_grad="ref" not in name) for name in names]
    return [*tensors[:2], torch.zeros(2 * SIZE, 1), *tensors[2:]]


@pytest.mark.evidence("Liger", "DPO")
@pytest.mark.parametrize(("loss_type", "name", "parameters"), LIGER_DPO, ids=lambda value: str(value))
def test_liger_dpo(loss_type, name, parameters):
    loss_fn = liger("dpo_loss", "LigerFusedLinearDPOFunction")
    inputs = liger_inputs()
    options = {"label_smoothing": parameters.get("label_smoothing", 0.0), "discopop_tau": parameters.get("tau", 0.05)}
    found = loss_fn(*inputs, beta=0.3, loss_type=loss_type, **options)
    found[0].backward()
    score = evaluate(name, {"beta": 0.3} | parameters, COLUMNS)
    tolerance = 1e-6 if loss_type == "exo_pair" else 1e-10
    assert_allclose(score.loss, float(found[0].detach()), rtol=tolerance)
    for role, tensor, reward in zip(ROLES, inputs[:2], found[1:], strict=True):
        gradient = tensor.grad.numpy()
        assert_allclose(score.gradients[f"{role}_logps"], gradient, rtol=tolerance, atol=1e-14)
        assert_allclose(score.rewards[role], reward.detach().numpy(), rtol=1e-12)


@pytest.mark.evidence("Liger", "SimPO, CPO and ORPO", objectives=("simpo", "cpo", "orpo"))
def test_liger_reference_free():
    simpo_fn = liger("simpo_loss", "LigerFusedLinearSimPOFunction")
    cpo_fn = liger("cpo_loss", "LigerFusedLinearCPOFunction")
    orpo_fn = liger("orpo_loss", "LigerFusedLinearORPOFunction")
    chosen, rejected, target, *_ = liger_inputs()
    averages = chosen / torch.tensor(COLUMNS["chosen_lengths"]), rejected / torch.tensor(COLUMNS["rejected_lengths"])
    simpo, *_ = simpo_fn(*averages, target, beta=2.0, gamma=0.6)
    assert_allclose(evaluate("simpo", {"beta": 2.0, "gamma": 0.6}, COLUMNS).loss, float(simpo.detach()), rtol=1e-12)
    cpo, *_ = cpo_fn(chosen, rejected, target, beta=0.2, label_smoothing=0.1)
    ours = evaluate("cpo", {"beta": 0.2, "alpha": 0.0, "label_smoothing": 0.1}, COLUMNS)
    assert_allclose(ours.loss, float(cpo.detach()), rtol=1e-12)
    odds, *_ = orpo_fn(*averages, target, beta=0.3)
    likelihood = evaluate("sft", {}, COLUMNS).loss
    assert_allclose(evaluate("orpo", {"beta": 0.3}, COLUMNS).loss, float(odds.detach()) + likelihood, rtol=1e-10)


@pytest.mark.evidence("Liger", "KTO")
def test_liger_kto():
    loss_fn = liger("kto_loss", "LigerFusedLinearKTOFunction")
    logps = torch.tensor(COLUMNS["logps"], requires_grad=True)
    label, reference = torch.tensor(COLUMNS["label"]), torch.tensor(COLUMNS["ref_logps"])
    loss, *_ = loss_fn(logps, label, torch.zeros(SIZE, 1), ref_log_prob_chunk=reference, beta=0.3, kl=torch.tensor(0.4))
    loss.backward()
    score = evaluate("kto", {"beta": 0.3, "kl": 0.4}, COLUMNS)
    assert_allclose(score.loss, float(loss.detach()), rtol=1e-7)
    assert_allclose(score.gradients["logps"], logps.grad.numpy(), rtol=1e-7)
