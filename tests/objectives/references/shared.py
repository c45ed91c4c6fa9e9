"""Pieces of formula that the references of several modules share."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid as log_sigmoid

Rewards = dict[str, Tensor] | Tensor


def smoothed(z: Tensor, epsilon: float) -> Tensor:
    return -(1 - epsilon) * log_sigmoid(z) - epsilon * log_sigmoid(-z)


def relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.zeros_like(x))


def pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps) -> dict[str, Tensor]:
    chosen, rejected = chosen_logps - ref_chosen_logps, rejected_logps - ref_rejected_logps
    return {"chosen": beta * chosen, "rejected": beta * rejected}


def nll(mode: str, chosen_logps: Tensor, chosen_lengths: Tensor | None) -> Tensor:
    if mode == "token_mean":
        return (-chosen_logps.sum() / chosen_lengths.sum()).expand(len(chosen_logps))
    return -chosen_logps / chosen_lengths if mode == "response_mean" else -chosen_logps


PAIR = "chosen_logps rejected_logps ref_chosen_logps ref_rejected_logps"

LENGTHS = "chosen_lengths rejected_lengths"

FREE = f"chosen_logps rejected_logps {LENGTHS}"

TOKENS = (
    "chosen_token_logps rejected_token_logps ref_chosen_token_logps ref_rejected_token_logps chosen_mask rejected_mask"
)


def reads(columns: str | Callable[..., str]) -> Callable[..., Any]:
    """Give a formula its columns: their names, or a function from the hyper-parameters to their names."""

    def decorate(formula):
        names = columns if callable(columns) else lambda **_: columns

        def call(**given):
            settings = formula.__kwdefaults__ or {}
            hyper = {key: given.pop(key) for key in list(given) if key in settings}
            floats = {key: value.double() if value.dtype is torch.int64 else value for key, value in given.items()}
            return formula(SimpleNamespace(**floats), **hyper)

        call.columns = lambda parameters: names(**parameters).split()
        return call

    return decorate


def rewards(c: SimpleNamespace, beta: float, *roles: str) -> dict[str, Tensor]:
    """β times the log-ratio of each role; chosen and rejected if none is named."""
    ratio = lambda role: getattr(c, f"{role}_logps") - getattr(c, f"ref_{role}_logps")  # noqa: E731
    return {role: beta * ratio(role) for role in roles or ("chosen", "rejected")}


def margin(c: SimpleNamespace) -> Tensor:
    return (c.chosen_logps - c.rejected_logps) - (c.ref_chosen_logps - c.ref_rejected_logps)


def averages(c: SimpleNamespace, *roles: str) -> list[Tensor]:
    return [getattr(c, f"{role}_logps") / getattr(c, f"{role}_lengths") for role in roles or ("chosen", "rejected")]


def negative_log_likelihood(logps: Tensor, lengths: Tensor | None, mode: str) -> Tensor:
    if mode == "token_mean":
        return (-logps.sum() / lengths.sum()).expand(len(logps))
    return -logps / lengths if mode == "response_mean" else -logps


def chosen_likelihood(c: SimpleNamespace, mode: str) -> Tensor:
    if mode == "with_prompt":
        logps, tokens = c.chosen_logps + c.chosen_prompt_logps, c.chosen_lengths + c.chosen_prompt_tokens
        return negative_log_likelihood(logps, tokens, "token_mean")
    return negative_log_likelihood(c.chosen_logps, getattr(c, "chosen_lengths", None), mode)


def log_ratios(c: SimpleNamespace) -> list[Tensor]:
    return list(rewards(c, 1.0).values())


def summed(c, role: str, weight: Tensor | float = 1.0, ref_weight: Tensor | float = 1.0) -> Tensor:
    """A response's log-ratio from its tokens, those of policy and reference weighted."""
    mask = getattr(c, f"{role}_mask")
    policy, reference = getattr(c, f"{role}_token_logps"), getattr(c, f"ref_{role}_token_logps")
    return (mask * (weight * policy - ref_weight * reference)).sum(1)


def token_rewards(c, beta):
    return {role: beta * summed(c, role) for role in ("chosen", "rejected")}


ROLES = ("chosen", "rejected")


def members(groups: Tensor) -> list[Tensor]:
    """Indices of the responses of each group, groups by ascending id."""
    return [torch.nonzero(groups == group).flatten() for group in groups.unique(sorted=True)]


def by_group(formula):
    """Lift a formula of one group's columns to a batch of groups."""

    def reference(*, groups, **given):
        columns = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        rest = {name: value for name, value in given.items() if name not in columns}
        size = len(groups)
        losses = []
        for g, rows in enumerate(members(groups)):
            own = {name: value[rows] if len(value) == size else value[g] for name, value in columns.items()}
            losses.append(formula(**own, **rest))
        return torch.stack(losses)

    return reference


def zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


def others_mean(reward, groups):
    baseline = reward.clone()
    for rows in members(groups):
        if len(rows) > 1:
            baseline[rows] = (reward[rows].sum() - reward[rows]) / (len(rows) - 1)
    return baseline


def group_mean(x, groups):
    mean = torch.empty_like(x)
    for rows in members(groups):
        mean[rows] = x[rows].mean()
    return mean


def rows(mask: Tensor, *columns: Tensor) -> list[tuple[Tensor, ...]]:
    """Of each response, the tokens that count."""
    return [tuple(column[r][mask[r].bool()] for column in columns) for r in range(len(mask))]


def clipped(log_ratio, advantage, low, high):
    ratio = torch.exp(log_ratio)
    return -torch.min(ratio * advantage, torch.clamp(ratio, 1 - low, 1 + high) * advantage)


def k3(log_ratio):
    return torch.exp(-log_ratio) + log_ratio - 1


def average_of(terms: list[Tensor], how, max_tokens=None, num_tokens=None) -> Tensor:
    if how == "tokens":
        joined = torch.cat(terms)
        return joined.sum() / (len(joined) if num_tokens is None else num_tokens)
    scale = {"response": None, "sum": 1.0, "constant": max_tokens}[how]
    return torch.stack([x.sum() / (len(x) if scale is None else scale) for x in terms])


def side(c: dict[str, Tensor], role: str, *names: str) -> list[tuple[Tensor, ...]]:
    """Of each pair's response in this role: its token columns of these names, the log-ratio by name h."""
    mask = c[f"{role}_mask"]
    columns = {
        "h": lambda: c[f"{role}_token_logps"] - c[f"ref_{role}_token_logps"],
        **{name: lambda name=name: c[f"{role}_token_{name}"] for name in names if name != "h"},
    }
    return rows(mask, *(columns[name]() for name in names))
