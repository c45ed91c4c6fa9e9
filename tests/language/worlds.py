"""Batches to test on, and the comparison of the language with the reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from reference import View, World
from reference import functions as torch_functions

from prefuse import language
from prefuse.language import token_objective

# An empty response, a group of one, and unequal sizes.
GROUPS = [[3, 1, 4], [2], [0, 5]]
# Responses are handed over in this order, so that groups come interleaved.
ORDER = [3, 0, 4, 1, 5, 2]


def columns(world: World, seed: int = 0) -> dict[str, torch.Tensor]:
    """f64 columns in the world's own order: two per level, x positive."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for level, space in (("t", "token"), ("r", "response"), ("g", "group"), ("b", "batch"), ("p", "pairs")):
        shape = () if space == "batch" else (world.count(space),)
        made[f"{level}a"] = torch.randn(shape, generator=generator, dtype=torch.float64)
        made[f"{level}x"] = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.25
    return {name: value.requires_grad_() for name, value in made.items()}


def arguments(
    world: World, own: dict[str, torch.Tensor], order: list[int], padded: bool
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The columns as a caller gives them: responses permuted, tokens padded (NaN where masked) or packed."""
    segments = world.segments("token", "response")
    given = {name: value for name, value in own.items() if name[0] in "gbp"}
    for name in ("ra", "rx"):
        given[name] = own[name][order]
    layout = {"groups": 7 * world.parents["response"][order] - 3}
    width = max(map(len, segments), default=0) + 1
    index = [element for response in order for element in segments[response]]
    if padded:
        layout["mask"] = torch.zeros(len(order), width, dtype=torch.bool)
        for row, response in enumerate(order):  # every other free place is skipped, to move tokens about
            places = [k for k in range(width) if k != row % 2] if len(segments[response]) < width else range(width)
            layout["mask"][row, places[: len(segments[response])]] = True
        for name in ("ta", "tx"):
            full = torch.full((len(order), width), float("nan"), dtype=torch.float64)
            given[name] = full.masked_scatter(layout["mask"], own[name][index])
    else:
        lengths = torch.tensor([len(segments[response]) for response in order])
        layout["cu_seqlens"] = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
        for name in ("ta", "tx"):
            given[name] = own[name][index]
    return given, layout


def compare(function: Callable, groups=GROUPS, order=ORDER, seed: int = 0, padded: bool = True, rtol=1e-9) -> None:
    """Check value and gradient of `function(view, functions)` against torch; its value may live at any level."""
    world = World(groups)
    own = columns(world, seed)
    expected = function(View(world, own, "token"), torch_functions)
    weights = torch.linspace(0.5, 1.5, world.count(expected.space), dtype=torch.float64)
    loss = (expected.data * weights).sum()
    names = [name for name in own if loss.requires_grad]
    wanted = torch.autograd.grad(loss, [own[n] for n in names], allow_unused=True) if names else []

    @token_objective
    def subject(token):
        value = function(token, language)
        if value.space == "batch":
            return value * (0.5 if expected.data.numel() == 1 else 1.0)
        weight = {"token": token, "response": token.response, "group": token.response.group}
        pairs = token.response.group.pairs()
        return (value * weight.get(value.space, pairs)["weight"]).sum("batch")

    given, layout = arguments(world, own, order, padded)
    extra = {} if expected.space == "batch" else {"weight": _as_given(world, expected.space, weights, layout, order)}
    everything = {**given, **extra, **layout}
    needed = subject.columns
    chosen = {name: value for name, value in everything.items() if name in needed}
    if "mask" in needed and not padded:
        chosen["cu_seqlens"] = layout["cu_seqlens"]
    score = subject(**chosen)
    torch.testing.assert_close(score.loss, loss.detach() if loss.ndim == 0 else loss, rtol=rtol, atol=1e-12)
    if not names or not score.loss.requires_grad:
        assert all(gradient is None or not gradient.any() for gradient in wanted)
        return
    got = torch.autograd.grad(score.loss, [own[n] for n in names], allow_unused=True)
    for name, mine, theirs in zip(names, got, wanted, strict=True):
        zero = torch.zeros_like(own[name])
        mine, theirs = (zero if gradient is None else gradient for gradient in (mine, theirs))
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


def _as_given(world, space, weights, layout, order):
    if space == "response":
        return weights[order]
    if space != "token":
        return weights
    segments = world.segments("token", "response")
    packed = weights[[element for response in order for element in segments[response]]]
    if "mask" not in layout:
        return packed
    return torch.zeros(layout["mask"].shape, dtype=torch.float64).masked_scatter(layout["mask"], packed)


def as_numpy(columns: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in columns.items()}
