"""The weights of two modules side by side, and checks that the loops share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


def matched(target: nn.Module, source: nn.Module, names: tuple[str, str]) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Yield each weight and buffer of `target` with its namesake of `source`, and whether it is a weight.

    `names` are what the caller calls the two modules.

    Raises:
        ValueError: names or shapes differ, or the weights are spread over processes by DeepSpeed ZeRO-3.
    """
    target_weights, source_weights = weights_of(target), weights_of(source)
    check_alike(target_weights, source_weights, names)
    parameters = {name for name, _ in _bare(target).named_parameters()}
    for name, weight in target_weights.items():
        yield weight, source_weights[name], name in parameters


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, not copied."""
    bare = _bare(module)
    weights = {**dict(bare.named_parameters()), **dict(bare.named_buffers())}
    for name, weight in weights.items():
        if hasattr(weight, "ds_id"):
            raise ValueError(
                f"{name}: this weight is partitioned by DeepSpeed ZeRO-3; call within deepspeed.zero.GatheredParameters"
            )
    return weights


def check_alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor], names: tuple[str, str]) -> None:
    """Raise ValueError where names or shapes of two sets of weights differ; the message gives the first difference."""
    for name in (*one, *other):
        if name not in one or name not in other:
            there, missing = names if name in one else names[::-1]
            raise ValueError(f"{missing}: has no weight {name!r}, which {there} has; expected the same architecture")
        if one[name].shape != other[name].shape:
            raise ValueError(
                f"{names[1]}: {name!r} has shape {tuple(other[name].shape)}, expected that of {names[0]}, "
                f"{tuple(one[name].shape)}"
            )


def copied(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of parameters and buffers by name."""
    return {name: weight.detach().clone() for name, weight in weights_of(module).items()}


@torch.no_grad()
def load(module: nn.Module, weights: Mapping[str, Tensor], name: str = "weights") -> None:
    """Copy weights by name into a module, whose tensors stay the same objects.

    Raises:
        ValueError: names or shapes differ.
    """
    own = weights_of(module)
    check_alike(own, weights, ("module", name))
    for key, weight in own.items():
        weight.copy_(weights[key])


def in_float32(module: nn.Module) -> nn.Module:
    """Convert the 16-bit parameters of a module to float32, in place: small steps are rounded away in 16 bits."""
    for parameter in _bare(module).parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()
    return module


def check_share(name: str, value: float) -> None:
    """Raise ValueError unless a number lies in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}: expected a number in [0, 1], got {value!r}")


def check_count(name: str, value: int, least: int = 1) -> None:
    """Raise ValueError unless an integer is at least `least`."""
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value!r}")


def _bare(module: nn.Module) -> nn.Module:
    wrapped = module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module
    assert isinstance(wrapped, nn.Module)
    return wrapped
