"""One call of the fused head: its tensors, flattened to rows, and the tiles of logits that are made of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from prefuse._backends import backend, storage
from prefuse._backends.projected import Projected
from prefuse._backends.rows import REFERENCE_STATISTICS, Rows, bits_of, names_of, with_backward_needs
from prefuse._parallel.vocabulary import Shard, needs
from prefuse.linear.gemm import add_factors, project, sum_dtype

SMOOTHED = "smoothed_logp"
"""(1 − ε)·logp + ε·(mean_logit − lse): the log-probability with label smoothing. The head's own, not the rows'."""


ALIGNED_ROWS = 64
"""Rows after which a GEMM's blocks begin anew: a multiple of those of PyTorch's libraries."""


NARROWED_BYTES = 32 << 20
"""Of the gradient of a tile that are rounded at once: what a GPU's cache holds."""


class Projection(NamedTuple):
    """logits = Σ inputs[f] @ weights[f].T + bias: hidden states and weight, then an adapter's two factors if any."""

    inputs: list[Tensor]  # [N, H_f]
    weights: list[Tensor]  # [V, H_f]
    bias: Tensor | None  # [V]

    @property
    def features(self) -> int:
        """Numbers in a row of all inputs."""
        return sum(factor.shape[-1] for factor in self.inputs)

    @property
    def classes(self) -> int:
        """V."""
        return self.weights[0].shape[0]

    def rows(self, index: Tensor | slice) -> list[Tensor]:
        """The inputs of some rows."""
        return [factor[index] for factor in self.inputs]

    def block(self, start: int, stop: int) -> Projection:
        """The head of the classes from `start` up to `stop`."""
        bias = None if self.bias is None else self.bias[start:stop]
        return Projection(self.inputs, [weight[start:stop] for weight in self.weights], bias)


class Transform(NamedTuple):
    """From raw logits to z, as in `prefuse.functional`; `softcap` 0 is off."""

    temperatures: Tensor | None  # [N]
    temperature: float
    scale: float
    softcap: float

    def temperature_in(self, dtype: torch.dtype) -> Tensor | float:
        """Of each token, [N] in `dtype`, or of all."""
        return self.temperature if self.temperatures is None else self.temperatures.to(dtype)


@dataclass
class Call:
    """What is asked of the head; all tensors are flat, N tokens long.

    Attributes:
        head: the policy's.
        reference: the reference model's, for statistics that compare.
        labels: [N] int64, numbers of classes of the whole vocabulary.
        index: [M] int64, the rows that are scored; None: all.
        mask: [N] bool, rows to leave out although `index` has them; None: none. For where looking would synchronise.
        transform: of the logits.
        ignore_index: the label of rows to leave out.
        names: the statistics the caller sees.
        smoothing: ε of `SMOOTHED`.
        k: of the top-k statistics.
        shard: which classes this process has, if not all.
        wide: whether tiles have float32 logits of 16-bit matrices.
    """

    head: Projection
    reference: Projection | None
    labels: Tensor
    index: Tensor | None
    mask: Tensor | None
    transform: Transform
    ignore_index: int
    names: tuple[str, ...]
    smoothing: float
    k: int
    shard: Shard
    wide: bool = False

    @property
    def tokens(self) -> int:
        """N."""
        return self.labels.shape[0]

    @property
    def count(self) -> int:
        """The number of rows that go through the GEMMs."""
        return self.tokens if self.index is None else self.index.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """That of the matrices, and of products with them."""
        return self.head.inputs[0].dtype

    @property
    def logits_dtype(self) -> torch.dtype:
        """That of a tile of logits."""
        return sum_dtype(self.dtype) if self.wide else self.dtype

    def narrowed(self, gradient: Tensor) -> Tensor:
        """The gradient of a tile of logits as products with the matrices take it: in 16 bits over what it was."""
        if gradient.dtype == self.dtype:
            return gradient
        narrow = gradient.view(self.dtype)[:, : gradient.shape[1]]
        step = max(1, NARROWED_BYTES // (gradient.shape[1] * self.dtype.itemsize))
        for start in range(0, gradient.shape[0], step):
            rows = slice(start, start + step)
            narrow[rows] = gradient[rows].to(self.dtype)
        return narrow

    @property
    def reduced_dtype(self) -> torch.dtype:
        """The dtype of an input's gradient until it is added up over the processes that share a vocabulary."""
        return sum_dtype(self.dtype) if self.shard.name else self.dtype

    @property
    def table_dtype(self) -> torch.dtype:
        """That of the statistics."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def slope(self, part: Tensor | slice) -> Tensor | float:
        """dz/d(logit) of some rows, or of all, without a soft cap."""
        temperature = self.transform.temperature_in(self.table_dtype)
        return self.transform.scale / (temperature[part] if isinstance(temperature, Tensor) else temperature)

    @property
    def kernel_names(self) -> tuple[str, ...]:
        """The rows' statistics behind `names`, and what their gradients read."""
        return kernel_names(self.names, sharded=bool(self.shard.name))

    def part(self, start: int, stop: int) -> Tensor | slice:
        """Which tokens the scored rows from `start` up to `stop` are."""
        if self.index is None:
            return slice(start, stop)
        return self.index[start:stop]

    def tiles(self, rows: int) -> Iterator[Tensor | slice]:
        """The scored rows, so many at a time."""
        for start in range(0, self.count, max(1, rows)):
            yield self.part(start, min(self.count, start + rows))

    def buffer(self, rows: int, classes: int | None = None) -> Tensor:
        """Room for a tile: its logits and, below them, the reference's where they are needed."""
        return self.aligned(rows * (1 if self.reference is None else 2), classes or self.head.classes)

    def aligned(self, rows: int, classes: int) -> Tensor:
        """An empty [rows, classes] in the logits' dtype, whose rows begin at 16-byte boundaries on a device.

        There GEMMs and row kernels are at their best only so, and an odd number of classes is common.
        """
        step = 16 // self.logits_dtype.itemsize if self.labels.device.type == "cuda" else 1
        return storage.empty((rows, -(-classes // step) * step), self.logits_dtype, self.labels.device)[:, :classes]

    def tile(
        self, part: Tensor | slice, buffer: Tensor, block: tuple[int, int] | None = None, kept: Tensor | None = None
    ) -> Rows:
        """Makes the logits of some rows (and of a block of classes, by its bounds) in `buffer`.

        `kept`: those of all scored rows, which a tile of all rows takes its block from.
        """
        start, stop = block or (0, self.head.classes)
        labels = self.labels[part]
        count = labels.shape[0]
        head = self.head.block(start, stop)
        logits = buffer[:count, : stop - start]
        reference = None
        if self.reference is not None:
            reference = buffer[count : 2 * count, : stop - start]
        if kept is not None:
            made = buffer[: count * (1 if reference is None else 2), : stop - start]
            made.copy_(kept[: made.shape[0], start:stop])
        elif self.reference is not None:
            self._project_both(part, head, self.reference.block(start, stop), buffer[: 2 * count, : stop - start])
        else:
            project(head.rows(part), head.weights, head.bias, logits)
        temperatures = self.transform.temperatures
        return Rows(
            logits,
            labels,
            None if self.mask is None else self.mask[part],
            reference,
            None if temperatures is None else temperatures[part],
            self.transform.temperature,
            self.transform.scale,
            self.transform.softcap,
            self.ignore_index,
            bits_of(self.kernel_names),
            self.k,
            self.shard.first_class + start,
            self.shard.classes or self.head.classes,
        )

    def projected(self) -> Projected:
        """The scored rows with float32 logits that are not made here."""
        part, transform = self.part(0, self.count), self.transform
        return Projected(
            self.head.inputs[0][part],
            self.head.weights[0],
            self.head.bias,
            self.labels[part],
            transform.temperature if transform.temperatures is None else transform.temperatures[part],
            transform.scale,
            self.ignore_index,
        )

    def _project_both(self, part: Tensor | slice, head: Projection, reference: Projection, out: Tensor) -> None:
        """The logits of both models, equal to the bit where their inputs are.

        One product where they share the weight, if both halves lie alike in the blocks that it is computed in; two of
        the same shape otherwise, as a GEMM adds up a row differently at its ragged end.
        """
        count = out.shape[0] // 2
        policy, others = head.rows(part), reference.rows(part)
        if self.shares_weight and count % ALIGNED_ROWS == 0:
            project([torch.cat([policy[0], others[0]])], head.weights[:1], head.bias, out)
            add_factors(policy[1:], head.weights[1:], out[:count])
        else:
            project(policy, head.weights, head.bias, out[:count])
            if others[0].dtype == policy[0].dtype:
                project(others, reference.weights, reference.bias, out[count:])
            else:  # a narrower one, whose logits are rounded to it as that model rounds them
                narrow = torch.empty_like(out[count:], dtype=others[0].dtype)
                project(others, reference.weights, reference.bias, narrow)
                out[count:].copy_(narrow)

    @property
    def shares_weight(self) -> bool:
        """Whether the reference's head is the policy's without its adapter."""
        reference = self.reference
        return (
            reference is not None and reference.weights[0] is self.head.weights[0] and reference.bias is self.head.bias
        )

    def statistics(self, rows: Rows) -> Tensor:
        """The kernel statistics of a tile, over the whole vocabulary: [S, rows]."""
        return self.combined(rows, self.local_statistics(rows))

    def local_statistics(self, rows: Rows) -> Tensor:
        """Those over this process's classes."""
        table = self.new_table(rows.labels.shape[0])
        backend(rows.logits.device).rows_forward(rows, table)
        return table

    def combined(self, rows: Rows, table: Tensor) -> Tensor:
        """Those over the whole vocabulary, of those over this process's classes."""
        combined = self.shard.combine(self.kernel_names, table, rows.logits.shape[-1])
        # The parts of a row that is left out are zeros, which combine to something else.
        return combined if rows.mask is None else torch.where(rows.mask, combined, 0)

    def new_table(self, rows: int) -> Tensor:
        """An empty table of the kernel statistics."""
        return self.labels.new_empty((len(self.kernel_names), rows), dtype=self.table_dtype)

    def pull(self, rows: Rows, grads: Tensor, table: Tensor, target: Tensor) -> None:
        """Writes d(Σ grads·statistics)/dlogits of a tile whose statistics are `table`; `target` may be the logits."""
        backend(rows.logits.device).rows_backward(rows, grads, table, target)

    def values(self, table: Tensor) -> Tensor:
        """What the caller sees, of the kernel statistics: [len(names), …]."""
        return torch.stack([self._value(name, table) for name in self.names])

    def _value(self, name: str, table: Tensor) -> Tensor:
        terms = [
            table[self.kernel_names.index(kernel)] * factor if factor != 1 else table[self.kernel_names.index(kernel)]
            for kernel, factor in expansion(name, self.smoothing).items()
        ]
        return terms[0] if len(terms) == 1 else torch.stack(terms).sum(0)

    def kernel_grads(self, grads: dict[str, Tensor], rows: int) -> Tensor:
        """Upstream gradients of the kernel statistics, [S, rows], from those of what the caller sees."""
        table = self.new_table(rows).zero_()
        for kernel, grad in self.upstream(grads).items():
            table[self.kernel_names.index(kernel)] = grad
        return table

    def upstream(self, grads: dict[str, Tensor]) -> dict[str, Tensor]:
        """Upstream gradients of those kernel statistics that have one, from those of what the caller sees."""
        found: dict[str, Tensor] = {}
        for name, grad in grads.items():
            for kernel, factor in expansion(name, self.smoothing).items():
                own = factor * grad if factor != 1 else grad
                found[kernel] = found[kernel] + own if kernel in found else own
        return found


def smoothed(names: Sequence[str], smoothing: float) -> tuple[str, ...]:
    """The statistics that are computed where `names` are asked for: with smoothing another log-probability."""
    return tuple(SMOOTHED if name == "logp" and smoothing else name for name in names)


def set_of(names: Sequence[str]) -> int:
    """The set that they are in; a smoothed log-probability has the bit of the other, as they are never both there."""
    return bits_of("logp" if name == SMOOTHED else name for name in names)


def expansion(name: str, smoothing: float) -> dict[str, float]:
    """A statistic as a combination of the rows' own."""
    if name != SMOOTHED:
        return {name: 1.0}
    return {"logp": 1 - smoothing, "lse": -smoothing, "mean_logit": smoothing}


def kernel_names(names: Sequence[str], sharded: bool) -> tuple[str, ...]:
    """The rows' statistics behind `names`, and what their gradients, and parts of a vocabulary (`sharded`), read."""
    own = [kernel for name in names for kernel in expansion(name, 0.5)]
    return names_of(with_backward_needs(bits_of(own)) | (bits_of(needs(own)) if sharded else 0))


def compares(names: Sequence[str]) -> bool:
    """Whether a statistic among them looks at a reference model."""
    return not REFERENCE_STATISTICS.isdisjoint(names)
