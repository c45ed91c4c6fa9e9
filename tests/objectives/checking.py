"""Which reference belongs to an objective, which columns it takes, and random ones to try it on."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from prefuse import objectives

from . import family_columns, family_reference, reference
from .fixtures import Columns

Parameters = dict[str, Any]


def reference_of(name: str, parameters: Parameters) -> tuple[Callable[..., Any], Parameters]:
    """The reference function for these structural options, and the hyper-parameters it still needs."""
    left = dict(parameters)
    if name == "ipo":
        name = "ipo_average" if left.pop("average", False) else "ipo_sum"
    if name == "kto" and "kl" in left:
        name = "kto_with_kl"
    if "nll" in left:
        left["nll_mode"] = left.pop("nll")
    return getattr(family_reference, name, None) or getattr(reference, name), left


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
    columns["label"] = np.arange(size) % 3 != 0
    return columns | family_columns.random_columns(size, seed)


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
    *family_columns.VARIANTS,
]


def variant_id(variant: tuple[str, Parameters]) -> str:
    name, parameters = variant
    return name + "".join(f"-{key}={value}" for key, value in parameters.items())
