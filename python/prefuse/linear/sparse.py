"""Sparse gradients of the head: short lists of classes in place of whole rows of probabilities.

The gradient of a log-probability is ``1[j = label] − p_j``, and of V probabilities few matter. With a threshold eps,
those of at least eps are listed as they are; a smaller one is listed as eps with probability p/eps, by a hash of
seed, step, row and class, and is left out otherwise. So what is listed has the expectation p, with the variance
``p·(eps − p)`` where p < eps and 0 elsewhere, and a list has at most 1/eps entries in the mean. The label's own is
exact, and so is what a mean logit gives every class (`prefuse.linear.every_class`).

The gradient of an entropy H, ``−p_j·(log p_j + H)``, takes the same lists: p as it is listed, its logarithm and H as
they are; so does that of kl. That of rkl, p − q, takes a list of the reference's probabilities q besides.

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
from prefuse._backends.rows import Rows, bits_of
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

COLUMNS_CARRY = ("logp", SMOOTHED, "lse", "mean_logit")
"""The statistics whose gradients columns carry; lists carry all that there are."""

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
    if by_columns(device):
        _check_columns(device, differentiated, softcap)
        return made
    uncapped = [name for name in differentiated if {"mean_logit", "rkl"}.intersection(expansion(name, smoothing))]
    if softcap and uncapped:
        beside = "label_smoothing" if SMOOTHED in uncapped else f"a gradient through {' and '.join(uncapped)}"
        raise ValueError(
            f"softcap: expected None with sparse and {beside}, got {softcap}: each class would have a slope of its own "
            "in it, and lists know the policy's of their own classes alone"
        )
    if shared and made.seed is None:
        raise ValueError("sparse: expected Sparse(eps, seed=...) with group, the same on all of its processes")
    return made


def by_columns(device: torch.device) -> bool:
    """Whether columns are gathered there, in place of lists."""
    return device.type == "cuda"


def _check_columns(device: torch.device, differentiated: Sequence[str], softcap: float) -> None:
    """Refuses what columns (`prefuse.linear.columns`) do not carry."""
    others = [name for name in differentiated if name not in COLUMNS_CARRY]
    if others:
        known = ", ".join(name for name in COLUMNS_CARRY if name != SMOOTHED)
        raise ValueError(
            f"sparse: expected gradients through {known} alone on {device}, got one through {', '.join(others)}, "
            "which columns do not carry; leave out sparse, or the gradient (differentiable=)"
        )
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
    """What waits for the backward pass, of the policy or of its reference; M rows are scored, L entries listed.

    Attributes:
        offsets: [M + 1] int64, where each row's list begins and the last ends.
        classes: [L] int64, numbers of this process's classes.
        values: [L], of the dtype of statistics: the listed probabilities times dz/dx.
        at_label: [2, M]: (1 - p)·dz/dx and p·dz/dx of the label.
        logs: [K, L], of the dtype of statistics: the first K of log p and log q of what is listed, as they are, not
            rounded with the probabilities; as many as gradients read (`prefuse.linear.plans.listed_logs`).
    """

    offsets: Tensor
    classes: Tensor
    values: Tensor
    at_label: Tensor
    logs: Tensor


def lists_of(kept: Sequence[Tensor]) -> list[Kept]:
    """What was kept, from its tensors in a row."""
    size = len(Kept._fields)
    return [Kept(*kept[start : start + size]) for start in range(0, len(kept), size)]


def forward(
    call: Call, rows: int, sampling: Sampling, first_row: int, differentiated: Sequence[str]
) -> tuple[Tensor, list[Kept]]:
    """The kernel statistics of all tokens, [S, N], and the lists of the scored ones, for gradients through some.

    Through `rkl`, p - q, those of the reference's probabilities follow. They take the same random numbers: what is near
    p then is rounded as p.
    """
    table = call.new_table(call.tokens).zero_()
    buffer = call.buffer(min(rows, call.count))
    shared, logs = bool(call.shard.name), listed_logs(differentiated)
    policy: list[tuple[Tensor, ...]] = []
    reference: list[tuple[Tensor, ...]] = []
    for part in call.tiles(rows):
        made = call.tile(part, buffer)
        own = call.statistics(made) if shared else call.new_table(made.labels.shape[0])
        numbers = (torch.arange(part.start, part.stop) if isinstance(part, slice) else part) + first_row
        lists = backend.make(made, own, not shared, numbers, sampling)
        policy.append((*lists, _logs(call, made, own, lists, logs)))
        if "rkl" in differentiated:
            assert made.reference is not None
            others = made._replace(logits=made.reference, reference=None, stats=bits_of(("logp", "lse")))
            of_others = torch.stack([own[call.kernel_names.index(name)] for name in ("ref_logp", "ref_lse")])
            lists = backend.make(others, of_others, False, numbers, sampling)
            reference.append((*lists, own.new_empty((0, lists.classes.shape[0]))))
        table[:, part] = own
    if "rkl" in differentiated:
        return table, [_joined(call, policy, logs), _joined(call, reference, 0)]
    return table, [_joined(call, policy, logs)]


def exact_forward(call: Call, sampling: Sampling, first_row: int) -> tuple[Tensor, list[Kept]]:
    """As `forward`, of bfloat16 matrices whose logits are made in float32 and never written."""
    table, own = call.new_table(call.tokens).zero_(), call.new_table(call.count)
    part = call.part(0, call.count)
    numbers = torch.arange(call.count) if isinstance(part, slice) else part
    lists = call.projected().lists(own, numbers + first_row, sampling)
    table[:, part] = own
    return table, [_joined(call, [(*lists, own.new_empty((0, lists.classes.shape[0])))], 0)]


def _logs(call: Call, rows: Rows, table: Tensor, lists: Lists, count: int) -> Tensor:
    """The first `count` of log p and log q of what is listed of a tile, [count, L]; `table` has its statistics."""
    found = table.new_empty((count, lists.classes.shape[0]))
    if not count:
        return found
    row = torch.arange(lists.lengths.shape[0]).repeat_interleave(lists.lengths)
    temperature = rows.temperature if rows.temperatures is None else rows.temperatures.to(table.dtype)[row]
    for log, logits, name in zip(found, (rows.logits, rows.reference), ("lse", "ref_lse"), strict=False):
        assert logits is not None
        z = logits[row, lists.classes].to(table.dtype) * rows.scale
        if rows.softcap:
            z = rows.softcap * torch.tanh(z / rows.softcap)
        torch.sub(z / temperature, table[call.kernel_names.index(name)][row], out=log)
    return found


def _joined(call: Call, tiles: Sequence[tuple[Tensor, ...]], logs: int) -> Kept:
    """The lists of all tiles, each (lengths, classes, values, at_label, logs)."""
    if not tiles:
        nothing, numbers = call.new_table(0), call.labels.new_zeros(1)
        empty = nothing.new_empty
        return Kept(numbers, numbers[:0].clone(), empty(0), empty((2, 0)), empty((logs, 0)))
    lengths, *others = (parts[0] if len(tiles) == 1 else torch.cat(parts, -1) for parts in zip(*tiles, strict=True))
    return Kept(torch.nn.functional.pad(lengths.cumsum(0), (1, 0)), *others)


def backward(call: Call, table: Tensor, kept: Sequence[Kept], grads: dict[str, Tensor], wants: Wants) -> Gradients:
    """The gradients from the lists: of the inputs row by row, of the weights class by class, each rounded once.

    `table` has the kernel statistics of all tokens.
    """
    part = call.part(0, call.count)
    upstream = call.upstream(grads)
    matrix, every = _matrix(call, table[:, part], part, kept, upstream), every_class(call, table, part, upstream)
    copies = len(kept)
    inputs = [
        _of_input(call, matrix, weight.contiguous(), every, copies) if wanted else None
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
            rows = factor.contiguous() if copies == 1 else factor.repeat(copies, 1)
            matrix.by_class(rows, gradient, None if weights else sums, base)
        weights.append(gradient if wanted else None)
    if sums is not None and every is not None:
        sums += every.of_bias()
    bias = None if sums is None or call.head.bias is None else sums.to(call.head.bias.dtype)
    return Gradients(reduced(call, inputs), weights, bias)


def _matrix(
    call: Call, table: Tensor, part: Tensor | slice, kept: Sequence[Kept], upstream: dict[str, Tensor]
) -> backend.Matrix:
    """d(loss)/d(logits) of the scored rows but for what the mean logit gives: [M, V], or [2M, V] to be added by halves,
    whose second is the reference's.

    `table` has the kernel statistics of the scored rows, `upstream` the gradients by statistic.
    """
    policy, *others = kept
    logp, lse, rkl = (upstream_of_rows(upstream, name, part, policy.at_label[0]) for name in ("logp", "lse", "rkl"))
    if others:  # nothing comes to or from rows of nothing but -inf
        lse_of_both = [table[call.kernel_names.index(name)] for name in ("lse", "ref_lse")]
        rkl = torch.where(torch.stack(lse_of_both).isneginf().any(0), 0, rkl)
    at_label = product_or_zero(logp, policy.at_label[0]) + product_or_zero(lse + rkl, policy.at_label[1])
    labels = (call.labels[part] - call.shard.first_class).contiguous()
    values, rest = policy.values, lse - logp + rkl
    if policy.logs.shape[0]:
        values, rest, own = _with_logs(call, table, part, policy, rest, upstream)
        at_label += own
    matrix = backend.Matrix(policy.offsets, policy.classes, values, rest, at_label, labels, call.head.classes)
    for other in others:
        own = -product_or_zero(rkl, other.at_label[1])
        matrix = _above(matrix, backend.Matrix(*other[:3], -rkl, own, labels, call.head.classes))
    return matrix


def _with_logs(
    call: Call, table: Tensor, part: Tensor | slice, kept: Kept, rest: Tensor, upstream: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Listed values with what expectations add to the factors `rest` [M] of their rows, the factors that are left, and
    what they add at labels.

    Of an expectation E = Σ p·f, as -entropy with f = log p or kl with f = log p - log q, d(E)/dz_j is p_j·(f_j - E).
    """
    saved = dict(zip(call.kernel_names, table, strict=True))
    row = torch.arange(rest.shape[0]).repeat_interleave(kept.offsets.diff())
    factors, at_label, live = rest[row], torch.zeros_like(rest), rest != 0
    for name, sign in (("entropy", -1), ("kl", 1)):
        if name not in upstream:
            continue
        slope = sign * upstream_of_rows(upstream, name, part, rest)
        f = kept.logs[0] if name == "entropy" else kept.logs[0] - kept.logs[1]
        of_label = saved["logp"] if name == "entropy" else saved["logp"] - saved["ref_logp"]
        expected = sign * saved[name]
        factors = factors + product_or_zero(slope[row], f - expected[row])
        # The label's own by its log-probability, which has more digits.
        own = product_or_zero(slope, torch.where(kept.at_label[1] == 0, 0, of_label - expected))
        at_label += product_or_zero(own, kept.at_label[1])
        live |= slope != 0
    return kept.values * factors, live.to(rest.dtype), at_label  # nothing is read of rows without a gradient


def _above(first: backend.Matrix, second: backend.Matrix) -> backend.Matrix:
    """The rows of the first, then those of the second."""
    offsets = torch.cat([first.offsets, second.offsets[1:] + first.offsets[-1]])
    both = zip(first[1:-1], second[1:-1], strict=True)
    classes, values, rest, at_label, labels = (torch.cat(parts) for parts in both)
    return backend.Matrix(offsets, classes, values, rest, at_label, labels, first.width)


def _of_input(call: Call, matrix: backend.Matrix, weight: Tensor, every: EveryClass | None, copies: int) -> Tensor:
    """The gradient of an input, [N, H_f], 0 where rows are not scored; of a matrix that has all rows so many times."""
    dtype = call.reduced_dtype if every is None and copies == 1 else sum_dtype(call.dtype)
    found = weight.new_empty((copies * call.count, weight.shape[1]), dtype=dtype)
    matrix.by_row(weight, found)
    if copies > 1:
        found = found.view(copies, call.count, weight.shape[1]).sum(0)
    if every is not None:
        every.add_to_input(found, weight)
    return over_tokens(call, found)
