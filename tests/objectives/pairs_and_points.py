"""Objectives of pairs and of single responses: which options to try, the reference of each, and random columns."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from prefuse import objectives

from . import references
from .numbers.batches import Columns

Parameters = dict[str, Any]

# Responses beyond chosen and rejected, in sums; and those that are looked at token by token.
ROLES = (
    "gold",
    "rationale",
    "calibration",
    "improved",
    "worsened",
    "kept_chosen",
    "kept_rejected",
    "chosen_damaged",
    "revised",
    "revised_damaged",
)
TOKEN_ROLES = ("chosen", "rejected", "revised", "revised_damaged")
TOKENS = 6


def reference_of(name: str, parameters: Parameters) -> tuple[Callable[..., Any], Parameters]:
    """The reference function for these structural options, and the hyper-parameters it still needs."""
    left = dict(parameters)
    if name == "ipo":
        name = "ipo_average" if left.pop("average", False) else "ipo_sum"
    if name in ("kto", "humanline_kto") and "kl" in left:
        name += "_with_kl"
    if "nll" in left:
        left["nll_mode"] = left.pop("nll")
    return references.formula(name), left


def column_names(name: str, parameters: Parameters) -> list[str]:
    formula = reference_of(name, parameters)[0]
    if hasattr(formula, "columns"):
        return formula.columns(parameters)
    signature = inspect.signature(formula)
    names = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    summed = parameters.get("nll") == "sum"  # then nothing is divided by a length
    return [column for column in names if not (summed and column.endswith("lengths"))]


def evaluate(name: str, parameters: Parameters, columns: Columns) -> Any:
    """Score an objective of the catalogue on those of the columns it takes."""
    taken = {column: columns[column] for column in column_names(name, parameters)}
    return objectives.get(name)(**parameters)(**taken)


def autograd(name: str, parameters: Parameters, columns: Columns) -> tuple[np.ndarray, dict[str, np.ndarray], Any]:
    """Losses, gradients of their mean and rewards, by the reference and PyTorch's autograd in float64."""
    formula, hyper = reference_of(name, parameters)
    tensors = {
        column: torch.tensor(columns[column], requires_grad=columns[column].dtype.kind == "f")
        for column in column_names(name, parameters)
    }
    losses, rewards = formula(**tensors, **hyper)
    losses.mean().backward()
    gradients = {
        column: np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.numpy()
        for column, tensor in tensors.items()
        if tensor.requires_grad
    }
    return losses.detach().numpy(), gradients, rewards


def random_columns(size: int, seed: int) -> Columns:
    """Every column any objective of the catalogue takes: log-probabilities of short answers, lengths, labels."""
    rng = np.random.default_rng(seed)
    columns: Columns = {}
    for role in ("chosen_", "rejected_", "blind_", ""):
        lengths = rng.integers(1, 30, size)
        logps = -rng.uniform(0.1, 3.0, size) * lengths
        columns[f"{role}logps"] = logps
        columns[f"ref_{role}logps"] = logps + rng.normal(0, 2, size)
        columns[f"{role}lengths"] = lengths
        columns[f"{role}win_prob"] = rng.uniform(0, 1, size)
    columns["kl_logps"] = rng.normal(-20, 2, size)
    columns["ref_kl_logps"] = columns["kl_logps"] + rng.normal(-0.3, 1, size)
    columns["kl_logratio"] = rng.normal(0.5, 1, size)
    columns["label"] = np.arange(size) % 3 != 0
    return columns | further_columns(size, seed)


def further_columns(size: int, seed: int) -> Columns:
    """What objectives read beyond log-probabilities and lengths of chosen, rejected and blind responses."""
    rng = np.random.default_rng([seed, 1])
    columns: Columns = {}
    for role in ROLES:
        lengths = rng.integers(1, 30, size)
        columns[f"{role}_lengths"] = lengths
        columns[f"{role}_logps"] = -rng.uniform(0.1, 3.0, size) * lengths
        columns[f"ref_{role}_logps"] = columns[f"{role}_logps"] + rng.normal(0, 2, size)
    for role in TOKEN_ROLES:
        columns |= token_columns(rng, role, size)
    own = token_columns(rng, "own", size)
    columns |= {column.replace("own_", ""): values for column, values in own.items()}
    for role in ("chosen_", "rejected_", ""):
        columns[f"{role}score"] = rng.normal(0, 1, size)
    for role in ("chosen", "rejected"):
        columns[f"{role}_visits"] = rng.uniform(0, 12, size)
        columns[f"{role}_previous_logps"] = rng.normal(-20, 2, size)
        columns[f"{role}_other_logps"] = rng.normal(-20, 2, size)
    for role in ("chosen", "rejected"):
        columns[f"{role}_start"] = rng.integers(0, 4, size)
        columns[f"{role}_unsafe"] = rng.uniform(0, 1, size) < 0.4
        columns[f"{role}_cost"] = rng.normal(0, 1, size)
    columns["chosen_prompt_logps"] = -rng.uniform(1, 30, size)
    columns["chosen_prompt_tokens"] = rng.integers(1, 9, size).astype(np.float64)
    columns["group_weight"], columns["responsibility"] = rng.uniform(0.2, 2, size), rng.uniform(0, 1, size)
    columns["demonstration"] = rng.uniform(0, 1, size) < 0.3
    columns["age"] = rng.uniform(0, 5, size)
    columns["degree_loss"] = rng.uniform(0, 2, size)
    columns["dispersion"] = rng.uniform(0.2, 2, size)
    columns["uncertainty"] = rng.uniform(0, 0.7, size)
    for name in ("margin", "reward", "value", "flip"):
        columns[name] = rng.normal(0, 1, size)
    columns["chosen_from_policy"] = rng.uniform(0, 1, size) < 0.5
    columns["tie"] = rng.uniform(0, 1, size) < 0.4
    columns["groups"] = np.arange(size) // 3
    return columns


def token_columns(rng: np.random.Generator, role: str, size: int) -> Columns:
    """A response of up to `TOKENS` tokens."""
    lengths = rng.integers(1, TOKENS + 1, size)
    shape = (size, TOKENS)
    policy = -rng.uniform(0.1, 3.0, shape)
    return {
        f"{role}_mask": np.arange(TOKENS) < lengths[:, None],
        f"{role}_token_logps": policy,
        f"ref_{role}_token_logps": policy + rng.normal(0, 0.5, shape),
        f"{role}_token_log_sum_sq": -rng.uniform(0.1, 5.0, shape),
        f"{role}_token_turn": np.sort(rng.integers(0, 3, shape), 1).astype(np.float64),
        f"{role}_token_severity": rng.uniform(1, 2.5, shape),
        f"{role}_token_recognition": rng.uniform(1, 3, shape),
        f"{role}_token_sampled": rng.uniform(0, 1, shape) < 0.7,
        f"{role}_token_ref_sampled": rng.uniform(0, 1, shape) < 0.7,
    }


# Every objective, with hyper-parameters off their defaults and each structural option once.
VARIANTS: list[tuple[str, Parameters]] = [
    ("dpo", {"beta": 0.3}),
    ("dpo", {"beta": 0.3, "label_smoothing": 0.2}),
    ("cdpo", {"beta": 0.3, "label_smoothing": 0.2}),
    ("robust", {"beta": 0.2, "label_smoothing": 0.15}),
    ("dpo_norm", {"beta": 2.0, "label_smoothing": 0.05}),
    ("hinge", {"beta": 0.4}),
    ("ipo", {"beta": 0.2}),
    ("ipo", {"beta": 0.2, "average": True}),
    ("exo", {"beta": 0.3, "label_smoothing": 0.01}),
    ("discopop", {"beta": 0.3, "tau": 0.5}),
    ("f_dpo", {"divergence": "reverse_kl", "beta": 0.3}),
    ("f_dpo", {"divergence": "forward_kl", "beta": 0.3, "label_smoothing": 0.1}),
    ("f_dpo", {"divergence": "js", "beta": 0.3}),
    ("f_dpo", {"divergence": "alpha", "alpha": 0.7, "beta": 0.3}),
    ("f_dpo", {"divergence": "alpha"}),
    ("f_dpo", {"divergence": "jeffreys", "beta": 0.3}),
    ("f_dpo", {"divergence": "forward_kl", "beta": 0.3, "link": "hinge"}),
    ("f_dpo", {"divergence": "js", "beta": 0.3, "link": "ipo", "average": True}),
    ("f_dpo", {"divergence": "js", "beta": 0.3, "link": "exo", "label_smoothing": 0.01}),
    ("f_dpo", {"divergence": "js", "beta": 0.3, "link": "robust", "label_smoothing": 0.1}),
    ("f_dpo", {"divergence": "js", "beta": 0.3, "link": "discopop", "tau": 0.5}),
    ("f_dpo", {"divergence": "forward_kl", "average": True, "shifted": False}),
    ("f_dpo", {"divergence": "alpha", "coefficient": 0.3, "average": True, "shifted": False}),
    ("bpo", {"beta": 0.3}),
    ("bpo", {"beta": 0.3, "combine": "mean"}),
    ("nca", {"beta": 0.3}),
    ("bco_pair", {"beta": 0.3, "delta": 0.2}),
    ("bco_pair", {"beta": 0.3}),
    ("sppo", {"beta": 0.05}),
    ("sppo_hard", {"beta": 0.05}),
    ("apo_zero", {"beta": 0.3}),
    ("apo_down", {"beta": 0.3}),
    ("aot", {"beta": 0.3, "label_smoothing": 0.1}),
    ("aot_unpaired", {"beta": 0.3, "label_smoothing": 0.1}),
    ("simpo", {}),
    ("simpo", {"beta": 3.0, "gamma": 0.7, "label_smoothing": 0.1}),
    ("simpo", {"beta": 3.0, "gamma_beta_ratio": 0.3}),
    ("simpo", {"gamma": 0.7, "link": "hinge"}),
    ("simpo", {"gamma": 0.7, "alpha": 0.4}),
    ("simpo", {"alpha": 0.4, "nll": "response_mean"}),
    ("orpo", {"beta": 0.4}),
    ("orpo", {"beta": 0.4, "nll": "response_mean"}),
    ("orpo", {"beta": 0.4, "nll": "with_prompt"}),
    ("cpo", {"beta": 0.2, "alpha": 0.5, "label_smoothing": 0.1}),
    ("cpo", {"beta": 0.2, "nll": "token_mean"}),
    ("cpo", {"beta": 0.2, "nll": "response_mean", "link": "hinge"}),
    ("cpo", {"beta": 0.2, "link": "ipo"}),
    ("sft", {}),
    ("sft", {"nll": "response_mean"}),
    ("sft", {"nll": "sum"}),
    ("kto", {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.8}),
    ("kto", {"beta": 0.3, "kl": 0.4}),
    ("kto", {"beta": 0.3, "kl": -0.4}),
    ("apo_zero_unpaired", {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.8}),
    ("bco", {"beta": 0.3}),
    ("bco", {"beta": 0.3, "delta": -0.1}),
    # a likelihood held up
    ("dpop", {"beta": 0.3, "penalty": 2.0}),
    ("rpo", {"beta": 0.3, "alpha": 0.7}),
    ("rpo", {"beta": 0.3, "label_smoothing": 0.1, "nll": "token_mean"}),
    ("rpo", {"beta": 0.3, "alpha": 0.02, "nll": "sum"}),
    ("codpo", {"beta": 0.3, "weight": 2.0}),
    ("cal_dpo", {"beta": 0.3}),
    ("cal_dpo", {"beta": 0.3, "variant": "original"}),
    ("rationale_dpo", {"beta": 0.3, "gamma": 0.5}),
    ("rationale_dpo", {"beta": 0.3, "gamma": 0.05, "variant": "original"}),
    ("rationale_orpo", {"beta": 0.3, "gamma": 2.0}),
    ("rationale_orpo", {"nll": "response_mean"}),
    ("spo_degree", {"beta": 0.3, "weight": 0.4}),
    # lengths
    ("r_dpo", {"beta": 0.3, "alpha": 0.05}),
    ("ld_dpo", {"beta": 0.3, "alpha": 0.4}),
    ("ld_dpo", {"beta": 0.3, "scope": "policy"}),
    ("sampo", {"beta": 0.3}),
    ("sampo", {"beta": 0.3, "independent": True}),
    # weights and strengths
    ("wpo", {"beta": 0.3}),
    ("wpo", {"beta": 0.3, "label_smoothing": 0.1, "variant": "trl-1.16"}),
    ("wpo", {"variant": "trl-0.24"}),
    ("beta_dpo", {"beta": 0.3, "sensitivity": 0.2, "centre": 0.5}),
    ("beta_dpo", {"beta": 0.3, "sensitivity": 0.2, "level": "pair"}),
    ("ns_dpo", {"beta": 0.3, "gamma": 0.8}),
    ("mallows_po", {"beta": 0.3}),
    # without a reference
    ("alphapo", {"beta": 3.0, "alpha": 0.3}),
    ("alphapo", {"beta": 3.0, "alpha": -0.4, "gamma": 0.7, "label_smoothing": 0.1}),
    ("alphapo", {"beta": 3.0, "alpha": 0.0, "gamma_beta_ratio": 0.2}),
    ("simper", {}),
    ("slic", {"delta": 2.0, "alpha": 0.3}),
    ("slic", {"nll": "response_mean"}),
    ("tpo", {"beta": 0.2, "alpha": 0.7, "label_smoothing": 0.1}),
    ("tpo", {"nll": "response_mean"}),
    ("tpo", {"beta": 0.2, "link": "hinge"}),
    ("tpo", {"beta": 0.2, "link": "ipo"}),
    ("tpo_l", {"beta": 1.5, "gamma": 0.4, "alpha": 0.7, "label_smoothing": 0.1}),
    ("asft", {"beta": 0.6, "weight": 0.4, "alpha": 0.5}),
    # margins
    ("odpo", {"beta": 0.3}),
    ("modpo", {"beta": 0.3, "weight": 0.7}),
    ("modpo", {"beta": 0.3, "link": "hinge"}),
    ("alpha_dpo", {"beta": 3.0, "alpha": 0.4, "gamma": 0.7}),
    ("alpha_dpo", {"gamma_beta_ratio": 0.2, "variant": "original"}),
    ("alpha_dpo", {"alpha": 0.4, "mean": 0.3, "deviation": 1.7}),
    ("dpo_gamma", {"beta": 0.3, "gamma": 0.7}),
    ("flex_dpo", {"beta_chosen": 0.3, "beta_rejected": 0.2}),
    ("daa", {"beta": 0.3, "alpha": 0.02}),
    ("daa", {"beta": 0.3, "link": "ipo"}),
    ("daa", {"beta": 0.3, "link": "slic"}),
    ("daa", {"beta": 0.3, "link": "exponential"}),
    ("daa", {"beta": 0.3, "link": "squared_hinge"}),
    ("chi_po", {"beta": 0.3, "limit": 4.0}),
    # robustness
    ("mcts_dpo", {"beta": 0.3}),
    ("mcts_dpo", {"beta": 0.3, "suffix": True}),
    ("mcts_dpo", {"beta": 0.3, "link": "ipo", "length_power": 1.0}),
    ("group_robust_dpo", {"beta": 0.3}),
    ("em_dpo", {"beta": 0.3}),
    ("safe_dpo", {"beta": 0.3, "delta": 0.7}),
    ("safe_dpo", {"beta": 0.3, "delta": 0.7, "both_unsafe": "kept"}),
    ("c_dpo", {"beta": 0.3, "multiplier": 0.6}),
    ("dpo_rc", {"beta": 0.3}),
    ("average_hinge", {"delta": 0.4, "weight": 0.3}),
    ("average_hinge", {"alpha": 0.5, "nll": "response_mean"}),
    ("multimodal_dpo", {"beta": 0.3, "image_weight": 0.6, "anchor_weight": 0.4, "delta": 0.1}),
    ("dmpo", {"beta": 0.3, "discount": 0.7}),
    ("humanline_dpo", {"beta": 0.3}),
    ("humanline_dpo", {"beta": 0.3, "low": -0.4, "high": 0.2, "label_smoothing": 0.1}),
    ("humanline_kto", {"beta": 0.3}),
    ("humanline_kto", {"low": -0.4, "high": 0.2, "desirable_weight": 0.7, "undesirable_weight": 1.3, "kl": 0.4}),
    ("gdpo", {"beta": 0.3}),
    ("upo", {"beta": 0.3, "alpha": 0.5}),
    ("ropo", {"beta": 0.3, "alpha": 2.5}),
    ("dr_dpo", {"beta": 0.3, "beta_prime": 0.5}),
    ("dpo_rk", {"beta": 0.3, "nu": 1.8}),
    ("dpo_d", {"beta": 0.3, "nu": 0.7}),
    # self-play and online
    ("dno", {"beta": 0.3}),
    ("inpo", {"eta": 0.2, "tau": 0.05}),
    ("online_ipo", {"beta": 0.3}),
    ("egpo", {"beta": 0.3}),
    ("egpo", {"beta": 0.3, "average": True}),
    ("psi_po", {"beta": 0.3}),
    ("psi_po", {"beta": 0.3, "link": "logit"}),
    ("copg", {"beta": 0.3}),
    ("reward_distillation", {"beta": 0.3}),
    ("vpo", {"beta": 0.3, "alpha": 0.1}),
    ("vpo", {"beta": 0.3, "mode": "offline"}),
    ("xpo", {"beta": 0.3, "alpha": 0.02}),
    ("xpo", {"beta": 0.3, "alpha": 0.02, "link": "ipo"}),
    ("ofs_dpo", {"beta": 0.3, "alpha": 0.4, "limit": 2.0}),
    ("ofs_dpo", {"beta": 0.3, "module": "slow"}),
    ("srpo", {"beta": 0.3, "alpha": 0.2}),
    ("hypo_kl", {"weight": 0.3}),
    ("sppo", {"beta": 0.05, "labels": "single"}),
    ("sppo", {"beta": 0.05, "labels": "hard", "scale": 1.0}),
    ("kto_pair", {"beta": 0.3}),
    # with an image
    ("opa_dpo", {"beta": 0.3, "image_weight": 0.4, "anchor_weight": 0.7}),
    # points
    ("sppo_point", {"beta": 0.05}),
    ("gpo", {"beta": 0.05}),
    ("dro", {"tau": 0.3}),
    ("asft_unpaired", {"beta": 0.6, "weight": 0.4, "alpha": 0.5}),
    ("crraft", {}),
    ("crraft", {"average": "tokens"}),
    ("nbpo", {"beta": 0.3}),
    ("nbpo", {"beta": 0.3, "form": "likelihood"}),
    ("nbpo", {"beta": 0.3, "form": "surrogate"}),
    ("ulma", {"beta": 0.3}),
    ("npo", {"beta": 0.3}),
    ("simnpo", {"beta": 2.0, "gamma": 0.3}),
    # further options
    ("f_dpo", {"divergence": "alpha", "coefficient": 0.3, "beta": 0.3}),
    ("f_dpo", {"divergence": "alpha", "coefficient": 1.0, "beta": 0.3}),
]


def variant_id(variant: tuple[str, Parameters]) -> str:
    name, parameters = variant
    return name + "".join(f"-{key}={value}" for key, value in parameters.items())
