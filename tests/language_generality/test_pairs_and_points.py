"""Objectives of pairs and points beyond the catalogue's: batch statistics, ties, hyper-parameters per pair, sums."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from prefuse.language import (
    exp,
    log_sigmoid,
    maximum,
    pair_objective,
    point_objective,
    sigmoid,
    stop_gradient,
    where,
)

from .checking import check_against

F1 = {
    "chosen_logps": [-3.5, -3.5],
    "rejected_logps": [-6.5, -3.0],
    "ref_chosen_logps": [-3.75, -4.5],
    "ref_rejected_logps": [-5.25, -3.0],
}
T0 = {
    "chosen_logps": [-12.0],
    "rejected_logps": [-15.0],
    "ref_chosen_logps": [-13.0],
    "ref_rejected_logps": [-14.5],
}


def random_columns(names, size=7, seed=30):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(-5, 2, size) for name in names}


# --- KTO with the batch's own mean as baseline, detached ------------------------------------------------------------


@point_objective
def kto_batch_mean(response, *, beta=0.1):
    h = response.logratio
    gain = beta * (h - stop_gradient(maximum(h.mean("batch"), 0.0)))
    return where(response["label"], sigmoid(-gain), sigmoid(gain))


def test_kto_batch_mean():
    def reference(*, logps, ref_logps, label, beta=0.1):
        h = logps - ref_logps
        gain = beta * (h - h.mean().clamp(min=0).detach())
        return torch.where(label, 1 - torch.sigmoid(gain), 1 - torch.sigmoid(-gain))

    columns = random_columns(["logps", "ref_logps"]) | {"label": np.arange(7) % 2 == 0}
    columns["logps"] = columns["logps"] + 3.0
    check_against(kto_batch_mean, columns, reference, beta=0.4)


# --- AOT with ties: the sort is stable ------------------------------------------------------------------------------


@pair_objective
def aot_paired(pair, *, beta=0.1):
    policy = (pair.chosen.logp - pair.rejected.logp).sort("batch")
    reference = (pair.chosen.ref_logp - pair.rejected.ref_logp).sort("batch")
    return -log_sigmoid(beta * (policy - reference))


def test_aot_with_ties():
    def reference(*, beta=0.1, **c):
        policy = torch.sort(c["chosen_logps"] - c["rejected_logps"], stable=True).values
        anchor = torch.sort(c["ref_chosen_logps"] - c["ref_rejected_logps"], stable=True).values
        return -logsigmoid(beta * (policy - anchor))

    columns = {name: np.round(value) for name, value in random_columns(list(T0), size=12).items()}
    check_against(aot_paired, columns, reference, beta=0.6)


# --- a hyper-parameter per pair -------------------------------------------------------------------------------------


@pair_objective
def smoothed_dpo(pair, *, beta=0.1, label_smoothing=0.0):
    margin = beta * (pair.chosen.logratio - pair.rejected.logratio)
    return -log_sigmoid(margin) + label_smoothing * margin


def test_per_pair_hyper_parameters_take_gradients():
    columns = {name: np.asarray(value) for name, value in random_columns(list(T0)).items()}
    smoothing, strength = np.linspace(0.0, 0.45, 7), np.linspace(0.1, 0.7, 7)
    score = smoothed_dpo(**columns, label_smoothing=smoothing, beta=strength)
    tensors = {name: torch.tensor(value) for name, value in columns.items()}
    epsilon, beta = torch.tensor(smoothing, requires_grad=True), torch.tensor(strength, requires_grad=True)
    policy = tensors["chosen_logps"] - tensors["rejected_logps"]
    margin = beta * (policy - (tensors["ref_chosen_logps"] - tensors["ref_rejected_logps"]))
    losses = -(1 - epsilon) * logsigmoid(margin) - epsilon * logsigmoid(-margin)
    losses.mean().backward()
    np.testing.assert_allclose(score.losses, losses.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(score.gradients["label_smoothing"], epsilon.grad.numpy(), rtol=1e-10)
    np.testing.assert_allclose(score.gradients["beta"], beta.grad.numpy(), rtol=1e-10)


# --- discounted exponentials with a cap, as a sanity check of chained composition ------------------------------------


def test_composition():
    @pair_objective
    def exponential(pair, *, beta=0.1):
        return exp(-beta * (pair.chosen.logratio - pair.rejected.logratio))

    columns = {name: np.asarray(value) for name, value in F1.items()}
    mixed = 0.75 * smoothed_dpo(beta=0.1) + 0.25 * exponential(beta=0.5)
    parts = 0.75 * smoothed_dpo(**columns).losses + 0.25 * exponential(beta=0.5)(**columns).losses
    np.testing.assert_allclose(mixed(**columns).losses, parts, rtol=1e-14)
