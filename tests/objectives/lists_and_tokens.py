"""Objectives of lists and of tokens: which options to try, and random columns for whatever an objective reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from prefuse import objectives

from . import references
from .numbers.batches import Columns

Parameters = dict[str, Any]

GROUPS = np.array([7, 3, 7, 7, 3, 9, 3, 7, 3])  # interleaved on purpose; group 9 has a single response
LENGTHS = np.array([3, 1, 5, 4, 2, 6, 1, 3, 4])
MASK = np.arange(7)[None, :] < LENGTHS[:, None]  # the last column is padding for every response
ROLE_LENGTHS = {"chosen": np.array([2, 4, 1, 3]), "rejected": np.array([3, 1, 5, 2])}


def mask_of(lengths: np.ndarray, width: int) -> np.ndarray:
    return np.arange(width)[None, :] < lengths[:, None]


ROLE_MASKS = {role: mask_of(lengths, 6) for role, lengths in ROLE_LENGTHS.items()}
MASKS = {"mask": MASK} | {f"{role}_mask": mask for role, mask in ROLE_MASKS.items()}
SHAPES = {"group": (3,), "response": (len(GROUPS),), "token": MASK.shape, "pair": (4,), "(i, j)": (33,)}
SHAPES |= {f"token of {role}": mask.shape for role, mask in ROLE_MASKS.items()}


def random_columns(name: str, parameters: Parameters, seed: int) -> Columns:
    """Columns for everything the objective reads; padding holds NaN, which no result may ever see."""
    rng = np.random.default_rng(seed)
    levels = {column: info.level for column, info in objectives.get(name)(**parameters).columns.items()}
    columns: Columns = {}
    for column in sorted(levels):  # ref_ and old_ columns come near the policy's whatever the order
        columns[column] = draw(column, SHAPES.get(levels[column], ()), rng)
        padding = {"token": MASK, "token of chosen": ROLE_MASKS["chosen"], "token of rejected": ROLE_MASKS["rejected"]}
        mask = padding.get(levels[column])
        if mask is not None and columns[column].dtype.kind == "f":
            columns[column] = np.where(mask, columns[column], np.nan)
    return columns


def draw(column: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Values that mean something under this name."""
    if column in MASKS:
        return MASKS[column]
    if column == "groups":
        return GROUPS
    stem = column.removeprefix("chosen_").removeprefix("rejected_").removeprefix("token_")
    if column.endswith("logps"):
        return rng.normal(-2, 0.4, shape)
    if stem in ("label", "gate", "error", "ref_error", "weight", "kl_weight", "reward_weight", "kl", "rkl"):
        return rng.uniform(0.05, 1, shape)
    if stem == "sign":
        return np.where(np.arange(np.prod(shape)).reshape(shape) % 2 == 0, 1.0, -1.0)
    if stem == "win_prob":
        return rng.uniform(0, 1, shape)
    if stem in ("winner", "judge", "pretrain"):
        return np.arange(np.prod(shape)).reshape(shape) % 2 == 0
    if stem == "step_start":
        return (np.arange(np.prod(shape)).reshape(shape) % 3 == 0) | (np.arange(shape[-1]) == 0)
    if stem in ("lengths", "roll_in"):
        return rng.integers(1, 4, shape)
    return rng.normal(0, 1, shape)


def reference_of(name: str) -> Any:
    return references.formula(name)


def evaluate(name: str, parameters: Parameters, columns: Columns) -> Any:
    return objectives.get(name)(**parameters)(**columns)


def autograd(name: str, parameters: Parameters, columns: Columns) -> tuple[np.ndarray, dict[str, np.ndarray | None]]:
    """Losses and gradients of their mean (None where none flows), by the reference and autograd in float64."""
    tensors = {column: torch.tensor(value, requires_grad=value.dtype.kind == "f") for column, value in columns.items()}
    losses = reference_of(name)(**tensors, **parameters)
    losses.mean().backward()
    gradients = {c: None if t.grad is None else t.grad.numpy() for c, t in tensors.items() if t.requires_grad}
    return losses.detach().numpy(), gradients


# Every objective, with hyper-parameters off their defaults and each structural option once.
VARIANTS: list[tuple[str, Parameters]] = [
    *[("lipo", {"loss": loss, "beta": 0.4}) for loss in ("mse", "sigmoid", "hinge", "logistic", "list_mle")],
    *[("lipo", {"loss": loss, "beta": 0.4, "base": 2.0}) for loss in ("softmax", "lambda")],
    *[("lipo", {"loss": loss, "beta": 0.4, "variant": "rax"}) for loss in ("softmax", "hinge", "lambda")],
    ("plackett_luce", {"beta": 0.4}),
    ("pro", {"alpha": 0.3}),
    ("pro", {"alpha": 0.3, "temperature": False, "nll": "response_mean"}),
    ("pro", {"alpha": 0.02, "variant": "original"}),
    ("rrhf", {"alpha": 0.3}),
    ("lire", {"temperature": 2.0}),
    ("lire", {"temperature": 2.0, "normalised": True}),
    ("multi_dpo", {"beta": 0.4}),
    ("multi_dpo", {"beta": 0.4, "link": "ipo"}),
    ("d2o", {"beta": 0.4, "alpha": 0.6}),
    ("copg_list", {"beta": 0.3}),
    ("online_ipo_list", {"beta": 0.4}),
    ("brain", {"gamma": 0.7}),
    ("info_nca", {"beta": 0.4, "temperature": 0.6}),
    ("nca_list", {"beta": 0.4, "temperature": 0.6}),
    ("exo_list", {"beta": 0.4, "temperature": 0.6}),
    ("softmax_dpo", {"beta": 0.4}),
    ("op_gfn", {}),
    ("op_gfn_pareto", {"scores": "first second third"}),
    ("tpo_tree", {"beta": 0.7, "base": 2.0}),
    ("tpo_tree", {"beta": 0.7, "average": True}),
    ("crraft_list", {"kl_max": 0.3}),
    ("crraft_list", {"kl_max": 0.3, "average": "response"}),
    ("gpm", {"temperature": 0.8, "margin": 0.1}),
    ("gpm", {"gated": True}),
    ("gpm", {"target": 2.0}),
    ("reinforce", {}),
    ("reinforce", {"beta": 0.2, "baseline": "group", "average": "response"}),
    *[("reinforce", {"baseline": baseline}) for baseline in ("none", "leave_one_out", "given")],
    ("rloo", {"beta": 0.2}),
    ("rloo", {"reference": False}),
    ("rloo", {"beta": 0.2, "clip": 0.1, "clip_high": 0.3}),
    ("crpg", {"kl_max": 2.0}),
    ("crpg", {"kl_max": 2.0, "average": "tokens"}),
    ("humanline_grpo", {"beta": 0.1}),
    ("humanline_grpo", {"low": -0.3, "high": 0.2, "clip": 0.1, "estimator": "given", "num_tokens": 30.0}),
    ("grpo", {"beta": 0.1, "clip": 0.1, "clip_high": 0.3}),
    ("grpo", {"divergence": "none", "delta": 1.5, "estimator": "given", "average": "tokens"}),
    ("grpo", {"estimator": "batch_std", "average": "tokens", "num_tokens": 40.0}),
    ("grpo", {"estimator": "leave_one_out", "average": "constant", "max_tokens": 8.0}),
    ("grpo", {"estimator": "mean", "average": "sum"}),
    ("grpo", {"divergence": "k3_unbiased", "off_policy": 0.1}),
    ("grpo", {"divergence": "none", "sampler": "sequence_mask", "sampler_low": 0.5, "off_policy": 0.1}),
    ("dapo", {"clip": 0.1, "clip_high": 0.2}),
    ("dapo", {"sampler": "token_truncate", "sampler_low": 0.7, "sampler_high": 1.2}),
    ("dr_grpo", {"sampler": "sequence_truncate", "sampler_high": 2.0}),
    ("cispo", {"sampler": "token_mask", "sampler_low": 0.8}),
    ("sapo", {"sampler": "token_mask", "sampler_low": 0.8}),
    ("vespo", {"sampler": "token_mask", "sampler_low": 0.8}),
    ("gspo_token", {"clip": 0.05, "clip_high": 0.1}),
    ("nash_md", {"beta": 0.3}),
    ("nash_md", {"beta": 0.3, "credit": "whole"}),
    ("nash_md", {"beta": 0.3, "credit": "own"}),
    ("dr_grpo", {"clip": 0.1, "max_tokens": 12.0}),
    ("gspo", {"clip": 0.05, "clip_high": 0.1}),
    ("luspo", {"clip": 0.05, "clip_high": 0.1}),
    ("cispo", {"cap": 1.1, "num_tokens": 33.0}),
    ("sapo", {"tau_pos": 1.5, "tau_neg": 0.7}),
    ("vespo", {"k_pos": 1.5, "rate_pos": 2.0, "k_neg": 2.5, "rate_neg": 1.0}),
    ("ppo", {"clip": 0.1}),
    ("ppo", {"clip": 0.1, "clip_high": 0.3, "value_weight": 0.5, "entropy_weight": 0.1, "average": "response"}),
    ("ppo", {"value_weight": 0.5, "value_clip": 0.3, "whiten": True}),
    ("ppo_max", {"clip": 0.1, "value_clip": 0.3, "value_weight": 0.6}),
    ("ppo_max", {"entropy_weight": 0.3, "entropy_target": 2.0, "ptx_weight": 0.4}),
    ("dr_po", {"clip": 0.1}),
    ("dr_po", {"clip": 0.1, "value_weight": 0.4, "value_clip": 0.3}),
    ("dr_po", {"value_weight": 0.4, "variant": "original"}),
    ("rto", {"dpo_weight": 0.3, "kl_weight": 0.1, "score_weight": 0.7, "discount": 0.9, "smoothing": 0.8}),
    ("rto", {"dpo_weight": 0.3, "reward_clip": 0.05, "clip": 0.1, "whiten": True}),
    ("mdpo", {"step_size": 0.5}),
    ("mdpo", {"step_size": 0.5, "divergence": "k3"}),
    ("mdpo_off", {"temperature": 0.5, "entropy_weight": 0.3}),
    *[("pf_ppo_weight", {"rule": rule}) for rule in ("best", "best_random", "best_worst")],
    ("pf_ppo_weight", {"rule": "power", "power": 3.0}),
    ("p3o", {"beta": 0.3, "clip": 0.1}),
    ("p3o", {"beta": 0.3, "clip": 0.1, "clipping": "separate"}),
    ("bradley_terry", {}),
    ("bradley_terry", {"margin": 0.3, "center": 0.02}),
    ("tdpo1", {"beta": 0.4}),
    ("tdpo2", {"beta": 0.4, "alpha": 0.7}),
    ("sparse_po", {"beta": 0.4}),
    ("sparse_po", {"beta": 0.4, "reward_penalty": 0.01, "kl_penalty": 0.02}),
    ("mapo", {"beta": 0.4}),
    ("oreo_value", {"beta": 0.3}),
    *[("oreo", {"beta": 0.3, "alpha": 0.2, "level": level}) for level in ("token", "step", "response")],
    ("oreo", {"alpha": 0.2, "divergence": "k3"}),
    ("oreo", {"divergence": "none"}),
    ("d2po", {"beta": 0.4, "discount": 0.7}),
    ("tis_dpo", {"beta": 0.4, "scale": 0.8, "low": -0.3, "high": 0.6, "shift": 0.2}),
    ("tis_dpo", {"weights": "given"}),
    ("diffusion_dpo", {"beta": 3.0}),
    ("seppo", {"beta": 3.0}),
    ("seppo", {"beta": 3.0, "anchor": "given"}),
    ("d3po", {"beta": 0.4}),
    ("d3po", {"beta": 0.4, "clip": 0.1}),
]
