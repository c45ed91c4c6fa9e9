"""Objectives of pairs and points that want more than two log-ratios: more roles, second logits, batch statistics."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from prefuse.language import (
    exp,
    log,
    log_sigmoid,
    maximum,
    pair_objective,
    point_objective,
    sigmoid,
    square,
    stop_gradient,
    where,
)

from .checking import check_against, check_numbers

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


# --- SRPO (arXiv:2406.01660): two responses and four in-context revisions -------------------------------------------


@pair_objective
def srpo(pair, *, beta=0.1, alpha=0.5):
    h = {role: pair.response(role).logratio for role in ("improved", "worsened", "kept_chosen", "kept_rejected")}
    joint = h["improved"] - h["worsened"] + pair.chosen.logratio - pair.rejected.logratio
    improver = square(0.5 - beta * (h["improved"] - h["kept_rejected"]))
    improver = improver + square(0.5 - beta * (h["kept_chosen"] - h["worsened"]))
    return (1.0 - alpha) * square(1.0 - beta * joint) + alpha * improver


SRPO_ROLES = ("chosen", "rejected", "improved", "worsened", "kept_chosen", "kept_rejected")


def srpo_reference(*, beta=0.1, alpha=0.5, **c):
    w, l, wl, lw, ww, ll = (c[f"{role}_logps"] - c[f"ref_{role}_logps"] for role in SRPO_ROLES)  # noqa: E741
    joint = (1 - beta * (wl - lw + w - l)) ** 2
    improver = (0.5 - beta * (wl - ll)) ** 2 + (0.5 - beta * (ww - lw)) ** 2
    return (1 - alpha) * joint + alpha * improver


def test_srpo():
    # pairwise.md, SRPO
    ratios = dict(zip(SRPO_ROLES, (0.4, -0.6, 1.0, -0.5, 0.3, 0.2), strict=True))
    columns = {f"{role}_logps": [h - 10.0] for role, h in ratios.items()}
    columns |= {f"ref_{role}_logps": [-10.0] for role in ratios}
    expected = dict(zip(SRPO_ROLES, (-0.075, 0.075, -0.117, 0.117, -0.042, 0.042), strict=True))
    check_numbers(srpo, columns, 0.457650, {f"{role}_logps": [g] for role, g in expected.items()})
    check_numbers(srpo, columns, 0.5625, alpha=0.0)
    check_numbers(srpo, columns, 0.3528, alpha=1.0)
    names = [f"{prefix}{role}_logps" for role in SRPO_ROLES for prefix in ("", "ref_")]
    check_against(srpo, random_columns(names), srpo_reference, beta=0.3, alpha=0.2)


# --- INPO (arXiv:2407.00617): two references with coefficients ------------------------------------------------------


@pair_objective
def inpo(pair, *, eta=0.005, tau=0.005 / 3):
    chosen, rejected = pair.chosen, pair.rejected
    policy = chosen.logp - rejected.logp
    reference = chosen.ref_logp - rejected.ref_logp
    previous = chosen["previous_logps"] - rejected["previous_logps"]
    share = tau / eta
    return square(policy - share * reference - (1.0 - share) * previous - 0.5 / eta)


def inpo_reference(*, eta, tau, **c):
    margin = lambda prefix, suffix: c[f"{prefix}chosen_{suffix}"] - c[f"{prefix}rejected_{suffix}"]  # noqa: E731
    h = margin("", "logps") - tau / eta * margin("ref_", "logps") - (1 - tau / eta) * margin("", "previous_logps")
    return (h - 1 / (2 * eta)) ** 2


def test_inpo():
    # general.md, inpo
    columns = T0 | {"chosen_previous_logps": [-12.5], "rejected_previous_logps": [-14.8]}
    gradient = {"chosen_logps": [-8.066667], "rejected_logps": [8.066667]}
    check_numbers(inpo, columns, 16.267778, gradient, eta=0.1, tau=0.1 / 3)
    check_numbers(inpo, columns, 9807.601111, {"chosen_logps": [-198.066667]})
    names = [*T0, "chosen_previous_logps", "rejected_previous_logps"]
    check_against(inpo, random_columns(names), inpo_reference, eta=0.2, tau=0.05)


# --- NBPO (arXiv:2007.07204): a second logit, surrogate gradients ---------------------------------------------------


@point_objective
def nbpo_likelihood(response, *, beta=1.0):
    reward, flip = beta * response.logratio, response["flip"]
    voted = -log_sigmoid(reward) - log_sigmoid(-flip)
    unvoted = -log(sigmoid(-reward) + sigmoid(flip) * sigmoid(reward))
    return where(response["label"], voted, unvoted)


@point_objective
def nbpo_surrogate_likelihood(response, *, beta=1.0):
    reward, flip = beta * response.logratio, response["flip"]
    voted = sigmoid(reward) * sigmoid(-flip)
    return where(response["label"], voted, sigmoid(-reward) + sigmoid(flip) * sigmoid(reward))


@point_objective
def nbpo(response, *, beta=1.0):
    """The final form: each variable has a surrogate gradient of its own, no single scalar has both."""
    reward, flip = beta * response.logratio, response["flip"]
    trust, taken, liked = (stop_gradient(sigmoid(x)) for x in (-flip, flip, reward))
    voted = trust * log_sigmoid(reward) + liked * log_sigmoid(-flip)
    unvoted = log_sigmoid(-reward) + taken * log_sigmoid(reward) + liked * log_sigmoid(flip)
    return -where(response["label"], voted, unvoted)


def nbpo_columns(label):
    return {"logps": [1.0], "ref_logps": [0.0], "flip": [-2.0], "label": [label]}


def test_nbpo_numbers():  # general.md, nbpo; its gradients are of the ascent direction
    check_numbers(nbpo_likelihood, nbpo_columns(True), 0.440190)
    unvoted = {"logps": [0.486330], "flip": [-0.215556]}
    check_numbers(nbpo_likelihood, nbpo_columns(False), 1.032584, unvoted)
    check_numbers(nbpo_surrogate_likelihood, nbpo_columns(True), 0.643914)
    check_numbers(nbpo_surrogate_likelihood, nbpo_columns(False), 0.356086)
    final = nbpo(**{name: np.asarray(value) for name, value in nbpo_columns(True).items()})
    np.testing.assert_allclose(final.gradients["logps"], [-0.236883], atol=1e-6)
    np.testing.assert_allclose(final.gradients["flip"], [0.087144], atol=1e-6)
    final = nbpo(**{name: np.asarray(value) for name, value in nbpo_columns(False).items()})
    np.testing.assert_allclose(final.gradients["logps"], [0.699000], atol=1e-6)
    np.testing.assert_allclose(final.gradients["flip"], [-0.643914], atol=1e-6)


def test_nbpo_equals_pytorch():
    def likelihood(*, logps, ref_logps, flip, label, beta=1.0):
        r = beta * (logps - ref_logps)
        voted = -logsigmoid(r) - logsigmoid(-flip)
        unvoted = -torch.log(torch.sigmoid(-r) + torch.sigmoid(flip) * torch.sigmoid(r))
        return torch.where(label, voted, unvoted)

    def final(*, logps, ref_logps, flip, label, beta=1.0):
        r = beta * (logps - ref_logps)
        held = lambda x: torch.sigmoid(x).detach()  # noqa: E731
        voted = held(-flip) * logsigmoid(r) + held(r) * logsigmoid(-flip)
        unvoted = logsigmoid(-r) + held(flip) * logsigmoid(r) + held(r) * logsigmoid(flip)
        return -torch.where(label, voted, unvoted)

    columns = random_columns(["logps", "ref_logps", "flip"]) | {"label": np.arange(7) % 3 == 0}
    check_against(nbpo_likelihood, columns, likelihood, beta=0.5)
    check_against(nbpo, columns, final, beta=0.5)


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


@pair_objective
def kto_pair(pair, *, beta=0.1):
    """TRL's former kto_pair: each side's baseline is the other side's batch mean."""
    chosen, rejected = pair.chosen.logratio, pair.rejected.logratio
    anchor = {side: stop_gradient(maximum(h.mean("batch"), 0.0)) for side, h in (("w", chosen), ("l", rejected))}
    return 0.5 * (sigmoid(-beta * (chosen - anchor["l"])) + sigmoid(beta * (rejected - anchor["w"])))


def test_kto_pair():  # libraries.md 1.3
    check_numbers(kto_pair, F1, 0.476603)


# --- β-DPO (libraries.md 1.7.14): the batch sets β ------------------------------------------------------------------


@pair_objective
def beta_dpo(pair, *, beta=0.1, sensitivity=0.6, centre=0.0):
    margin = pair.chosen.logratio - pair.rejected.logratio
    batch_beta = beta * (1.0 + sensitivity * (margin.mean("batch") - centre))
    return -log_sigmoid(stop_gradient(maximum(batch_beta, 1e-3)) * margin)


def test_beta_dpo():
    check_numbers(beta_dpo, F1, 0.589978, centre=0.0)
    check_numbers(beta_dpo, F1, 0.659387, centre=2.0)
    check_numbers(beta_dpo, F1, 0.632677, centre=1.25)


# --- Dr. DPO: a soft minimum over the batch -------------------------------------------------------------------------


@pair_objective
def dr_dpo(pair, *, beta=0.1, robustness=1.0):
    loss = -log_sigmoid(beta * (pair.chosen.logratio - pair.rejected.logratio))
    count = (loss * 0.0 + 1.0).sum("batch")
    return -robustness * ((-loss / robustness).logsumexp("batch") - log(count))


def test_dr_dpo():
    def reference(*, beta=0.1, robustness=1.0, **c):
        margin = c["chosen_logps"] - c["ref_chosen_logps"] - c["rejected_logps"] + c["ref_rejected_logps"]
        loss = -logsigmoid(beta * margin)
        return -robustness * torch.log(torch.mean(torch.exp(-loss / robustness)))

    check_against(dr_dpo, random_columns(list(T0)), reference, beta=0.3, robustness=0.5)


# --- triple preference optimization (arXiv:2405.16681): a gold response, token mean over the batch -------------------


@pair_objective
def tpo(pair, *, beta=0.01, alpha=1.0):
    gold = pair.response("gold")
    likelihood = -gold.logp.sum("batch") / gold.length.sum("batch")
    return -log_sigmoid(beta * (pair.chosen.logp - pair.rejected.logp)) + alpha * likelihood


@pair_objective
def tpo_length_normalised(pair, *, beta=2.0, gamma=1.6, alpha=0.05):
    gold = pair.response("gold")
    likelihood = -gold.logp.sum("batch") / gold.length.sum("batch")
    return -log_sigmoid(beta * (pair.chosen.avg_logp - pair.rejected.avg_logp) - gamma) + alpha * likelihood


def test_tpo():
    # pairwise.md, TPO
    columns = {"chosen_logps": [-20.0], "rejected_logps": [-30.0], "gold_logps": [-8.0], "gold_lengths": [8]}
    gradient = {"chosen_logps": [-0.004750], "rejected_logps": [0.004750], "gold_logps": [-0.125]}
    check_numbers(tpo, columns, 1.644397, gradient)
    columns |= {"chosen_logps": [-12.0], "chosen_lengths": [10], "rejected_lengths": [15]}
    gradient = {"chosen_logps": [-0.1], "rejected_logps": [0.066667], "gold_logps": [-0.00625]}
    check_numbers(tpo_length_normalised, columns, 0.743147, gradient)

    def reference(*, chosen_logps, rejected_logps, gold_logps, gold_lengths, beta=0.01, alpha=1.0):
        likelihood = -gold_logps.sum() / gold_lengths.sum()
        return -logsigmoid(beta * (chosen_logps - rejected_logps)) + alpha * likelihood

    random = random_columns(["chosen_logps", "rejected_logps", "gold_logps"]) | {"gold_lengths": np.arange(2, 9)}
    check_against(tpo, random, reference, beta=0.2, alpha=0.7)


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


# --- XPO's bonus, CODPO, and a per-pair hyper-parameter --------------------------------------------------------------


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


@pair_objective
def codpo(pair, *, beta=0.1, weight=5.0):
    margin = beta * (pair.chosen.logratio - pair.rejected.logratio)
    return -log_sigmoid(margin) - weight * pair.chosen.avg_logp


def test_codpo():  # token_rl_data.md, CGPO
    columns = {"chosen_logps": [-5.0], "rejected_logps": [-6.0], "ref_chosen_logps": [-5.5]}
    columns |= {"ref_rejected_logps": [-6.2], "chosen_lengths": [5]}
    check_numbers(codpo, columns, 5.678260)


# --- discounted exponentials with a cap, as a sanity check of chained composition ------------------------------------


def test_composition():
    @pair_objective
    def exponential(pair, *, beta=0.1):
        return exp(-beta * (pair.chosen.logratio - pair.rejected.logratio))

    columns = {name: np.asarray(value) for name, value in F1.items()}
    mixed = 0.75 * smoothed_dpo(beta=0.1) + 0.25 * exponential(beta=0.5)
    parts = 0.75 * smoothed_dpo(**columns).losses + 0.25 * exponential(beta=0.5)(**columns).losses
    np.testing.assert_allclose(mixed(**columns).losses, parts, rtol=1e-14)
