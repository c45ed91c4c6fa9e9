"""Sparse gradients of the head: short lists of classes in place of whole rows of probabilities.

The gradient of a log-probability is ``1[j = label] − p_j``, and of V probabilities few matter. With a threshold eps,
those of at least eps are listed as they are; a smaller one is listed as eps with probability p/eps, by a hash of
seed, step, row and class, and is left out otherwise. So what is listed has the expectation p, with the variance
``p·(eps − p)`` where p < eps and 0 elsewhere, and a list has at most 1/eps entries in the mean. The label's own is
exact, and so is what a mean logit gives every class (`prefuse.linear.every_class`).

The gradient of an entropy H, ``−p_j·(log p_j + H)``, takes the same lists: p as it is listed, its logarithm and H as
they are.

On a GPU it is columns of strips of rows that are gathered, and nothing is drawn (`prefuse.linear.columns`).

Statistics are what they are without lists: only gradients are rounded. Two of three GEMMs become sums over lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from prefuse._arguments.checks import check_integer
from prefuse._arguments.placement import is_capturing
from prefuse._backends import lists as backend
from prefuse._backends import storage
from prefuse._backends.lists import Lists, Sampling
from prefuse._backends.rows import Rows
from prefuse.linear.call import SMOOTHED, Call, expansion
from prefuse.linear.every_class import EveryClass, every_class
from prefuse.linear.gemm import sum_dtype
from prefuse.linear.passes import Gradients, Wants, over_tokens, product_or_zero, reduced, upstream_of_rows
from prefuse.linear.plans import listed_logs

__all__ = ["Sparse", "as_sparse", "check_sparse"]

LEAST_EPS = 2.0**-40
"""Below it thresholds are no normal numbers of float32."""

AUTO = "auto"
"""What asks for an eps to be found: see `prefuse.linear.automatic`."""

CARRIED = ("logp", SMOOTHED, "lse", "mean_logit", "entropy")
"""The statistics whose gradients lists carry."""

COLUMNS_CARRY = ("logp", SMOOTHED, "lse", "mean_logit")
"""Those whose gradients columns carry, on a GPU."""

_SEEDS = 1 << 62


@dataclass(frozen=True)
class Sparse:
    """How gradients are made sparse: the fused head's argument `sparse`, where a number stands for ``Sparse(number)``.

    Attributes:
        eps: in [2^-40, 1]: probabilities from here on are taken as they are, smaller ones rounded at random to 0 or
            eps. On a GPU, columns in which no row of a strip has such a one are replaced by the strip's mean, and
            nothing below has a meaning.
        seed: in [0, 2^62), of the hash that rounds. None: drawn at each call from PyTorch's default generator, as
            dropout draws, and different in each process.
        step: at least 0: another number, other roundings; for a `seed` that stays.
        first_row: at least 0, the number of the first token: processes that share a seed give each its own range.
    """

    eps: float
    seed: int | None = None
    step: int = 0
    first_row: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.eps, bool) or not isinstance(self.eps, int | float):
            raise TypeError(f'sparse: expected a number, a Sparse, "auto", or None, got {type(self.eps).__name__}')
        if not LEAST_EPS <= self.eps <= 1:
            raise ValueError(f"sparse: expected 2^-40 <= eps <= 1, got {self.eps}")
        for name in ("seed", "step", "first_row"):
            value = getattr(self, name)
            if value is None and name == "seed":
                continue
            if not 0 <= check_integer(f"sparse: {name}", value) < _SEEDS:
                raise ValueError(f"sparse: expected 0 <= {name} < 2^62, got {value}")


def as_sparse(sparse: float | str | Sparse | None) -> Sparse | str | None:
    """`sparse` as a `Sparse`, a number as that with this eps; `AUTO` and None stay.

    Raises:
        TypeError, ValueError: another type or range.
    """
    settled = sparse is None or isinstance(sparse, Sparse) or sparse == AUTO
    return sparse if settled else Sparse(sparse)  # type: ignore[return-value, arg-type]


def check_sparse(
    sparse: float | str | Sparse | None,
    differentiated: Sequence[str],
    device: torch.device,
    smoothing: float,
    softcap: float,
    shared: bool,
) -> Sparse | None:
    """`sparse` as a `Sparse`; None where it is off.

    Args:
        sparse: as the caller gives it.
        differentiated: the statistics that a gradient comes to.
        device: that of the hidden states.
        smoothing: of labels.
        softcap: of logits; 0: none.
        shared: whether processes share the vocabulary.

    Raises:
        TypeError, ValueError: another type or range, or a gradient that lists do not carry; the message says which.
    """
    if sparse is None:
        return None
    made = sparse if isinstance(sparse, Sparse) else Sparse(sparse)  # type: ignore[arg-type]
    what, carried = (f"columns on {device}", COLUMNS_CARRY) if by_columns(device) else ("lists", CARRIED)
    others = [name for name in differentiated if name not in carried]
    if others:
        known = ", ".join(name for name in carried if name != SMOOTHED)
        raise ValueError(
            f"sparse: expected gradients through {known} alone, got one through {', '.join(others)}, "
            f"which {what} do not carry; leave out sparse, or the gradient (differentiable=)"
        )
    if by_columns(device):
        _check_columns(device, softcap)
        return made
    if softcap and any("mean_logit" in expansion(name, smoothing) for name in differentiated):
        beside = "label_smoothing" if SMOOTHED in differentiated else "a gradient through mean_logit"
        raise ValueError(
            f"softcap: expected None with sparse and {beside}, got {softcap}: each class would have a slope of its own "
            "in the gradient of the mean logit, and lists know those of few"
        )
    if shared and made.seed is None:
        raise ValueError("sparse: expected Sparse(eps, seed=...) with group, the same on all of its processes")
    return made


def by_columns(device: torch.device) -> bool:
    """Whether columns are gathered there, in place of lists."""
    return device.type == "cuda"


def _check_columns(device: torch.device, softcap: float) -> None:
    """Refuses what columns (`prefuse.linear.columns`) do not carry."""
    if softcap:
        raise ValueError(
            f"softcap: expected None with sparse on {device}, got {softcap}: each probability would have a slope of "
            "its own, which a strip's mean does not tell"
        )
    if is_capturing(device):
        raise ValueError("sparse: how many columns there are is looked at, which no CUDA graph can; leave it out")


def draw_seed() -> int:
    """A seed from PyTorch's default generator, another one in each process."""
    drawn = int(torch.randint(_SEEDS, ()))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        drawn ^= torch.distributed.get_rank() << 40
    return drawn


class Kept(NamedTuple):
    """What waits for the backward pass; M rows are scored, L entries listed.

    Attributes:
        offsets: [M + 1] int64, where each row's list begins and the last ends.
        classes: [L] int64, numbers of this process's classes.
        values: [L], of the dtype of statistics: the listed probabilities times dz/dx.
        at_label: [2, M]: (1 - p)·dz/dx and p·dz/dx of the label.
        logs: [K, L], of the dtype of statistics: log p where a gradient reads it (`prefuse.linear.plans.listed_logs`),
            of probabilities before they are rounded.
    """

    offsets: Tensor
    classes: Tensor
    values: Tensor
    at_label: Tensor
    logs: Tensor


def forward(
    call: Call, rows: int, sampling: Sampling, first_row: int, differentiated: Sequence[str]
) -> tuple[Tensor, Kept]:
    """The kernel statistics of all tokens, [S, N], and the lists of the scored ones, for gradients through some."""
    table = call.new_table(call.tokens).zero_()
    buffer = call.buffer(min(rows, call.count))
    shared, many_logs = bool(call.shard.name), listed_logs(differentiated)
    found = []
    for part in call.tiles(rows):
        made = call.tile(part, buffer)
        own = call.statistics(made) if shared else call.new_table(made.labels.shape[0])
        numbers = torch.arange(part.start, part.stop) if isinstance(part, slice) else part
        lists = backend.make(made, own, not shared, numbers + first_row, sampling)
        logs = _logs(call, made, own, lists) if many_logs else own.new_empty((0, lists.classes.shape[0]))
        found.append((*lists, logs))
        table[:, part] = own
    if not found:
        nothing, numbers = table.new_empty(0), call.labels.new_zeros(1)
        logs = table.new_empty((many_logs, 0))
        return table, Kept(numbers, numbers[:0].clone(), nothing, table.new_empty((2, 0)), logs)
    lengths, classes, values, at_label, logs_of_tiles = zip(*found, strict=True)
    offsets = torch.nn.functional.pad(torch.cat(lengths).cumsum(0), (1, 0))
    logs = _joined(logs_of_tiles, 1)
    return table, Kept(offsets, _joined(classes), _joined(values), torch.cat(at_label, 1), logs)


def _logs(call: Call, rows: Rows, table: Tensor, lists: Lists) -> Tensor:
    """log p of what is listed of a tile, whose kernel statistics are `table`: [1, L]."""
    row = torch.arange(lists.lengths.shape[0]).repeat_interleave(lists.lengths)
    z = rows.logits[row, lists.classes].to(table.dtype) * rows.scale
    if rows.softcap:
        z = rows.softcap * torch.tanh(z / rows.softcap)
    temperature = rows.temperature if rows.temperatures is None else rows.temperatures.to(table.dtype)[row]
    return (z / temperature - table[call.kernel_names.index("lse")][row])[None]


def exact_forward(call: Call, sampling: Sampling, first_row: int) -> tuple[Tensor, Kept]:
    """As `forward`, of bfloat16 matrices whose logits are made in float32 and never written."""
    table, own = call.new_table(call.tokens).zero_(), call.new_table(call.count)
    part = call.part(0, call.count)
    numbers = torch.arange(call.count) if isinstance(part, slice) else part
    lists = call.projected().lists(own, numbers + first_row, sampling)
    table[:, part] = own
    logs = own.new_empty((0, lists.classes.shape[0]))
    return table, Kept(torch.nn.functional.pad(lists.lengths.cumsum(0), (1, 0)), *lists[1:], logs)


def _joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def backward(call: Call, table: Tensor, kept: Kept, grads: dict[str, Tensor], wants: Wants) -> Gradients:
    """The gradients from the lists: of the inputs row by row, of the weights class by class, each rounded once.

    `table` has the kernel statistics of all tokens.
    """
    part, upstream = call.part(0, call.count), call.upstream(grads)
    matrix, every = _matrix(call, table, part, kept, upstream), every_class(call, table, part, upstream)
    inputs = [
        _of_input(call, matrix, weight.contiguous(), every) if wanted else None
        for weight, wanted in zip(call.head.weights, wants.inputs, strict=True)
    ]
    sums = matrix.values.new_empty(call.head.classes) if wants.bias else None
    weights: list[Tensor | None] = []
    for factor, weight, wanted in zip(call.head.rows(part), call.head.weights, wants.weights, strict=True):
        gradient = None
        if wanted or (sums is not None and not weights):
            gradient = storage.empty(weight.shape, weight.dtype, weight.device)
        if gradient is not None:
            base = None if every is None else every.of_weight(factor)
            matrix.by_class(factor.contiguous(), gradient, None if weights else sums, base)
        weights.append(gradient if wanted else None)
    if sums is not None and every is not None:
        sums += every.of_bias()
    bias = None if sums is None or call.head.bias is None else sums.to(call.head.bias.dtype)
    return Gradients(reduced(call, inputs), weights, bias)


def _matrix(call: Call, table: Tensor, part: Tensor | slice, kept: Kept, upstream: dict[str, Tensor]) -> backend.Matrix:
    """d(loss)/d(logits) of the scored rows but for what the mean logit gives, from upstream gradients by statistic."""
    logp, lse = (upstream_of_rows(upstream, name, part, kept.at_label[0]) for name in ("logp", "lse"))
    at_label = product_or_zero(logp, kept.at_label[0]) + product_or_zero(lse, kept.at_label[1])
    labels = (call.labels[part] - call.shard.first_class).contiguous()
    values, rest = kept.values, lse - logp
    if "entropy" in upstream:
        # p·(constant + slope·log p), the label's own by its log-probability, which has more digits.
        slope = -upstream_of_rows(upstream, "entropy", part, rest)
        log_p, entropy = (table[call.kernel_names.index(name)][part] for name in ("logp", "entropy"))
        constant = rest + product_or_zero(slope, entropy)
        own = product_or_zero(slope, torch.where(kept.at_label[1] == 0, 0, entropy + log_p))
        at_label += product_or_zero(own, kept.at_label[1])
        row = torch.arange(rest.shape[0]).repeat_interleave(kept.offsets.diff())
        values = values * (constant[row] + slope[row] * kept.logs[0])
        rest = ((rest != 0) | (slope != 0)).to(rest.dtype)  # nothing is read of rows without a gradient
    return backend.Matrix(kept.offsets, kept.classes, values, rest, at_label, labels, call.head.classes)


def _of_input(call: Call, matrix: backend.Matrix, weight: Tensor, every: EveryClass | None) -> Tensor:
    """The gradient of an input, [N, H_f], 0 where rows are not scored."""
    dtype = call.reduced_dtype if every is None else sum_dtype(call.dtype)
    found = weight.new_empty((call.count, weight.shape[1]), dtype=dtype)
    matrix.by_row(weight, found)
    if every is not None:
        every.add_to_input(found, weight)
    return over_tokens(call, found)
