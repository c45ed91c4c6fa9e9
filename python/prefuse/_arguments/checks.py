"""What public functions ask of their arguments; every message names the argument, what came and what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from prefuse._arguments.dense import other_than_dense

MAX_K = 64
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What logits may come in."""

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32)
"""What labels, masks and offsets may come in; all become int64 or bool, which costs one number per token."""


def rows_contiguous(logits: torch.Tensor) -> torch.Tensor:
    """`logits` itself when each row is contiguous (whatever the rows' own strides), otherwise a contiguous copy."""
    return logits if has_contiguous_rows(logits) else logits.contiguous()


def has_contiguous_rows(logits: torch.Tensor) -> bool:
    """Whether the elements of a row lie next to each other."""
    return logits.shape[-1] == 1 or logits.stride(-1) == 1


def check_tensor(
    name: str, tensor: torch.Tensor, dtypes: Sequence[torch.dtype], wanted: str, like: torch.Tensor | None = None
) -> None:
    """Checks type, layout, dtype and, where `like` is given, that both are on one device."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}{_where_it_is(name, tensor)}")
    if hasattr(tensor, "full_tensor"):
        raise TypeError(
            f"{name}: expected a local tensor, got a DTensor; pass {name}.to_local() or {name}.full_tensor()"
        )
    other = other_than_dense(tensor)
    if other is not None:
        raise TypeError(f"{name}: expected a dense (strided) tensor, got {other}")
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name}: expected {wanted} tensor, got {tensor.dtype}")
    if like is not None and tensor.device != like.device:
        raise ValueError(f"{name}: expected device {like.device}, like the other arguments, got {tensor.device}")


def check_device(name: str, tensor: torch.Tensor, devices: Sequence[str]) -> None:
    """Checks that there is a backend where the tensor is; fake tensors need none."""
    if tensor.device.type not in (*devices, "meta"):
        raise ValueError(
            f"{name}: on device {tensor.device}, but this version of prefuse computes on {', '.join(devices)} only; "
            "move all tensors with .cpu()"
        )


def _where_it_is(name: str, value: object) -> str:
    """What to pass instead of a model's output or a layer, which hold the tensor meant."""
    held = "weight" if "weight" in name else "last_hidden_state" if "hidden" in name else "logits"
    return f"; pass its .{held}" if isinstance(getattr(value, held, None), torch.Tensor) else ""


def check_flag(name: str, value: bool) -> bool:
    """`value` as a bool; anything else is refused, since every string is true."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected True or False, got {type(value).__name__}")
    return bool(value)


def check_mask(mask: torch.Tensor, labels: torch.Tensor) -> None:
    """Checks that `mask` is bool or integer and has the shape of `labels`."""
    check_tensor("mask", mask, (torch.bool, *INTEGERS), "a bool or integer", like=labels)
    if mask.shape != labels.shape:
        raise ValueError(f"mask: expected the shape of labels, {_shape(labels)}, got {_shape(mask)}")


def check_scored(
    labels: torch.Tensor, mask: torch.Tensor | None, rows: torch.Tensor, name: str, *, or_on_host: bool = False
) -> torch.Tensor | None:
    """Checks labels and mask of `rows` [*lead, …], an argument called `name`; returns the mask as bool.

    They are on the device of the rows, or, if that is allowed, on the CPU.
    """
    host = or_on_host and isinstance(labels, torch.Tensor) and labels.device.type == "cpu"
    check_tensor("labels", labels, INTEGERS, "an integer", like=None if host else rows)
    lead = rows.shape[:-1]
    if labels.shape != lead:
        raise ValueError(
            f"labels: expected shape {tuple(lead)} for {name} of shape {tuple(rows.shape)}, got {tuple(labels.shape)}"
        )
    if mask is None:
        return None
    check_mask(mask, labels)
    return mask if mask.dtype == torch.bool else mask != 0


def check_transform(
    temperature: float | torch.Tensor, softcap: float | None, scale: float, ignore_index: int, rows: torch.Tensor
) -> tuple[torch.Tensor | None, float, float, float, int]:
    """(temperatures per row or None, temperature, scale, soft cap or 0, ignore_index) as the operators take them."""
    per_row = isinstance(temperature, torch.Tensor)
    return (
        check_temperatures(temperature, rows.shape[:-1], rows) if isinstance(temperature, torch.Tensor) else None,
        1.0 if per_row else positive_number("temperature", temperature),  # type: ignore[arg-type]
        positive_number("scale", scale),
        0.0 if softcap is None else positive_number("softcap", softcap),
        check_integer("ignore_index", ignore_index),
    )


def positive_number(name: str, value: float) -> float:
    """`value` as a float; it must be a finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a finite number above 0, got {value}")
    return float(value)


def check_integer(name: str, value: int) -> int:
    """`value` as an int; bools and floats are refused."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    return int(value)


def check_temperatures(temperature: torch.Tensor, lead: torch.Size, like: torch.Tensor) -> torch.Tensor:
    """Checks temperatures per row; returns them expanded to `lead`, in float32 or float64."""
    check_tensor("temperature", temperature, FLOATS, "a floating-point", like=like)
    if temperature.requires_grad:
        raise ValueError("temperature: requires grad, but no gradient is given to it; pass temperature.detach()")
    if not _expands_to(temperature.shape, lead):
        raise ValueError(f"temperature: expected a shape that expands to {tuple(lead)}, got {_shape(temperature)}")
    if temperature.dtype not in (torch.float32, torch.float64):
        temperature = temperature.float()
    return temperature.expand(lead)


def check_values(
    labels: torch.Tensor,
    mask: torch.Tensor | None,
    temperatures: torch.Tensor | None,
    ignore_index: int,
    classes: int,
    meaning: str = "the number of classes",
) -> None:
    """Raises `ValueError` for the first label or temperature out of range in a scored row; waits for a device."""
    live = labels != ignore_index
    if mask is not None:
        live = live & mask
    bad_labels = live & ((labels < 0) | (labels >= classes))
    if bad_labels.any():
        at = [int(i) for i in bad_labels.nonzero()[0]]
        raise ValueError(
            f"labels: {int(labels[tuple(at)])} at {at}, expected 0 <= label < {classes} "
            f"({meaning}) or ignore_index = {ignore_index}"
        )
    if temperatures is None:
        return
    temperatures = temperatures.expand(labels.shape)
    bad_temperatures = live & ~((temperatures > 0) & temperatures.isfinite())
    if bad_temperatures.any():
        at = [int(i) for i in bad_temperatures.nonzero()[0]]
        raise ValueError(f"temperature: {float(temperatures[tuple(at)])} at {at}, expected a finite number > 0")


def _expands_to(shape: torch.Size, target: torch.Size) -> bool:
    return len(shape) <= len(target) and all(
        have in (1, want) for have, want in zip(reversed(shape), reversed(target), strict=False)
    )


def check_k(k: int) -> int:
    """`k` of the top-k statistics as an int in range."""
    k = check_integer("k", k)
    if not 1 <= k <= MAX_K:
        raise ValueError(f"k: expected 1 to {MAX_K}, got {k}")
    return k


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
