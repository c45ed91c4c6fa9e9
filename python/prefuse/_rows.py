"""What is asked of the rows: which statistics, of which logits, under which transform; every argument checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from prefuse._buffers import View, optional_view, view
from prefuse._dense import other_than_dense

STATISTICS = (
    "logp",
    "lse",
    "entropy",
    "log_sum_sq",
    "mean_logit",
    "top1",
    "topk_mass",
    "topk_entropy",
    "ref_logp",
    "ref_lse",
    "kl",
    "rkl",
)
"""Every statistic of a row. `ref_lse` is the reference's log-sum-exp, which the gradients of `kl` and `rkl` need."""

REFERENCE_STATISTICS = frozenset({"ref_logp", "ref_lse", "kl", "rkl"})

BACKWARD_NEEDS = {
    "logp": ("lse", "logp"),
    "lse": ("lse", "logp"),
    "mean_logit": ("lse", "logp"),
    "entropy": ("lse", "logp", "entropy"),
    "kl": ("lse", "logp", "ref_lse", "ref_logp", "kl"),
    "rkl": ("lse", "logp", "ref_lse", "ref_logp"),
}
"""Statistics with a gradient, and what of the forward pass that gradient reads; log-probabilities because the label's
logit less its log-probability has more digits than a log-sum-exp far from 0. That of `mean_logit` is a constant, but 0
in a row of nothing but −inf, which the log-sum-exp (whose own gradient reads both) tells."""

MAX_K = 64

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What logits may come in."""
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32)
"""What labels, masks and offsets may come in; all become int64 or bool, which costs one number per token."""


RowsView: TypeAlias = tuple[View, View, View | None, View | None, float | View, float, float, int, int, int]


class Rows(NamedTuple):
    """Checked rows: the tensors, then the transform and the names. `softcap` 0 is off; `stats` is comma-separated.

    Torch's operator schemas know no lists of strings and no tuples of mixed kinds, so the fields are the operators'
    arguments: `operands`, since operators take whole vocabularies.

    The V logits of a row are those of the classes ``[first_class, first_class + V)`` out of `classes` (None: V, all of
    them). Labels are numbers of classes, of whichever block; a label of another block has log-probability −inf in this
    one. Statistics are those of the block; for the backward pass the caller puts those of the whole vocabulary in
    their place.
    """

    logits: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor | None
    reference: torch.Tensor | None
    temperatures: torch.Tensor | None
    temperature: float
    scale: float
    softcap: float
    ignore_index: int
    stats: str
    k: int
    first_class: int = 0
    classes: int | None = None

    @property
    def statistics(self) -> list[str]:
        """The names in `stats`, in the order of the output's first dimension."""
        return self.stats.split(",")

    @property
    def vocabulary(self) -> int:
        """The number of classes that labels are numbers of."""
        return self.logits.shape[-1] if self.classes is None else self.classes

    @property
    def operands(self) -> tuple[Any, ...]:
        """The arguments of the operators: everything but the block."""
        return self[:-2]

    def arguments(self) -> RowsView:
        """What the extension takes. It borrows: the caller keeps the tensors alive while it is in use."""
        return (
            view(self.logits),
            view(self.labels),
            optional_view(self.mask),
            optional_view(self.reference),
            self.temperature if self.temperatures is None else view(self.temperatures),
            self.scale,
            self.softcap,
            self.ignore_index,
            self.first_class,
            self.vocabulary,
        )


def check_rows(
    logits: torch.Tensor,
    labels: torch.Tensor,
    stats: str | Sequence[str],
    *,
    reference_logits: torch.Tensor | None,
    mask: torch.Tensor | None,
    ignore_index: int,
    temperature: float | torch.Tensor,
    softcap: float | None,
    scale: float,
    k: int,
    devices: Sequence[str],
) -> Rows:
    """Checks everything that can be seen without reading the tensors, and brings the arguments into one form.

    Raises `TypeError` for a wrong type or dtype and `ValueError` for a wrong shape, device, layout or range. Values
    inside the tensors (labels, per-token temperatures) are checked where they are read, by the backend.
    """
    check_tensor("logits", logits, FLOATS, "a float16, bfloat16, float32 or float64")
    check_device("logits", logits, devices)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits: expected shape (..., V) with V >= 1, got {_shape(logits)}")
    check_tensor("labels", labels, INTEGERS, "an integer", like=logits)
    lead = logits.shape[:-1]
    if labels.shape != lead:
        raise ValueError(
            f"labels: expected shape {tuple(lead)} for logits of shape {_shape(logits)}, got {_shape(labels)}"
        )
    if mask is not None:
        check_mask(mask, labels)
        mask = mask if mask.dtype == torch.bool else mask != 0
    names = check_statistics(stats, reference_logits, "reference_logits")
    if reference_logits is not None:
        check_tensor("reference_logits", reference_logits, FLOATS, "a floating-point", like=logits)
        if reference_logits.shape != logits.shape:
            raise ValueError(
                f"reference_logits: expected the shape of logits, {_shape(logits)}, got {_shape(reference_logits)}"
            )
        reference_logits = rows_contiguous(reference_logits.detach())
    temperatures = None
    if isinstance(temperature, torch.Tensor):
        temperatures = check_temperatures(temperature, lead, logits)
    return Rows(
        rows_contiguous(logits),
        labels.to(torch.int64),
        mask,
        reference_logits if REFERENCE_STATISTICS.intersection(names) else None,
        temperatures,
        1.0 if isinstance(temperature, torch.Tensor) else positive_number("temperature", temperature),
        positive_number("scale", scale),
        0.0 if softcap is None else positive_number("softcap", softcap),
        check_integer("ignore_index", ignore_index),
        ",".join(names),
        check_k(k),
    )


def with_backward_needs(names: Sequence[str]) -> tuple[str, ...]:
    """`names` first, then whatever their gradients will read."""
    needed = (need for name in names for need in BACKWARD_NEEDS.get(name, ()))
    return tuple(dict.fromkeys((*names, *needed)))


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


def check_statistics(stats: str | Sequence[str], reference: object, argument: str) -> tuple[str, ...]:
    """The names of the statistics, each once; `argument` is what the `reference` they may need is called."""
    if not isinstance(stats, Iterable):
        raise TypeError(f"stats: expected the name of a statistic, or several, got {type(stats).__name__}")
    names = (stats,) if isinstance(stats, str) else tuple(dict.fromkeys(stats))
    if not names:
        raise ValueError("stats: expected at least one statistic, got none")
    for name in names:
        if name not in STATISTICS:
            raise ValueError(f"stats: unknown statistic {name!r}; known are {', '.join(STATISTICS)}")
        if name in REFERENCE_STATISTICS and reference is None:
            raise ValueError(f"{argument}: missing, and the statistic {name!r} needs it")
    return names


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
