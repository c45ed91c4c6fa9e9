"""Sparse gradients on a GPU: the columns in which a strip of rows has most of its mass, and the mean of the rest.

Lists of single classes (`prefuse.linear.sparse`) leave tensor cores without work. A strip of a few hundred rows has
most of its probabilities in a small part of the vocabulary: the columns in which some row has at least eps. These are
gathered, matrices [rows, columns] and [columns, H], and multiplied as matrices are: those of 16 bits by kernels that
read rows of the weight where they lie, and add to rows of its gradient there; others, of longer strips, by PyTorch,
from copies of these rows. What a row has elsewhere, the mass t_r, is taken to be spread as the strip's is:

    p_rj ≈ t_r · (Σ_s p_sj) / (Σ_s t_s)        for the columns that are not gathered

so each row's mass is exact, and so is the sum over rows that have the same upstream gradient. The label's own share is
exact, and so is what a mean logit gives every class. Nothing is drawn at random.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from prefuse._backends import columns as backend
from prefuse._backends import storage
from prefuse._backends.columns import Gathered, Strips, ToInput
from prefuse._backends.rows import Rows
from prefuse.linear.call import Call
from prefuse.linear.every_class import EveryClass, every_class
from prefuse.linear.gemm import add_product, add_rows, multiply, scale_rows, sum_dtype
from prefuse.linear.passes import Gradients, Wants, over_tokens, product_or_zero, reduced, upstream_of_rows
from prefuse.linear.plans import LONG_STRIP, STRIP

ALIGNED = 64
"""Columns of a strip are filled up to a multiple of so many, as GEMMs like it."""

SLICE_BYTES = 64 << 20
"""Rows of the weight that are gathered, and products that are added up, take no more at once."""

MOST = 0.4
"""A strip that has more of all columns than this takes all of them, where nothing is left over."""


class Strip(NamedTuple):
    """Which scored rows it has, where its columns are, and where its probabilities begin."""

    first: int
    last: int
    start: int
    stop: int
    offset: int


class Kept(NamedTuple):
    """What waits for the backward pass; M rows are scored, in S strips.

    Attributes:
        layout: [S, 5] int64 on the host: a `Strip` each.
        columns: [L] int64, numbers of this process's classes, filled up with -1.
        values: the probabilities of each strip, [rows, columns], one strip behind the other; 0 of labels.
        tails: [S, V]: what the strip's rows have together in each column that is not gathered, times a number.
        rest: [M]: what of `tails` is the row's.
        at_label: [2, M]: 1 - p and p of the label, times dz/d(logit), as the lists have it.
    """

    layout: Tensor
    columns: Tensor
    values: Tensor
    tails: Tensor
    rest: Tensor
    at_label: Tensor

    def strips(self) -> Iterator[tuple[int, Strip, Tensor, Tensor]]:
        """(number, strip, its columns, its probabilities [rows, columns])."""
        for number, numbers in enumerate(self.layout.tolist()):
            strip = Strip(*numbers)
            shape = strip.last - strip.first, strip.stop - strip.start
            values = self.values[strip.offset : strip.offset + math.prod(shape)].view(shape)
            yield number, strip, self.columns[strip.start : strip.stop], values


def forward(call: Call, rows: int, eps: float) -> tuple[Tensor, Kept]:
    """The kernel statistics of all tokens, [S, N], and what is kept of the scored ones."""
    table = call.new_table(call.tokens).zero_()
    buffer = call.buffer(min(rows, call.count))
    made: list[Kept] = []
    for part in call.tiles(rows):
        tile = call.tile(part, buffer)
        local = call.local_statistics(tile)
        own = call.combined(tile, local)
        table[:, part] = own
        made.append(_of_tile(call, tile, local, own, call.slope(part), eps))
    return table, _joined(made) if made else _nothing(call)


def backward(call: Call, table: Tensor, kept: Kept, grads: dict[str, Tensor], wants: Wants) -> Gradients:
    """The gradients: of the inputs strip by strip, of the weights added up in float32 and rounded once.

    `table` has the kernel statistics of all tokens.
    """
    part, upstream = call.part(0, call.count), call.upstream(grads)
    logp, lse = (upstream_of_rows(upstream, name, part, kept.rest) for name in ("logp", "lse"))
    factors = (lse - logp) * call.slope(part)
    tail = product_or_zero(factors, kept.rest)
    local = call.labels[part] - call.shard.first_class
    held = (local >= 0) & (local < call.head.classes)
    label = torch.where(held, local, 0)
    at_label = product_or_zero(logp, kept.at_label[0]) + product_or_zero(lse, kept.at_label[1])
    every = every_class(call, table, part, upstream)
    pulled = _Pulled(kept, factors, tail, label, torch.where(held, at_label, 0), every)
    inputs = [
        over_tokens(call, pulled.of_input(weight)) if wanted else None
        for weight, wanted in zip(call.head.weights, wants.inputs, strict=True)
    ]
    weights = [
        pulled.of_weight(factor, weight) if wanted else None
        for factor, weight, wanted in zip(call.head.rows(part), call.head.weights, wants.weights, strict=True)
    ]
    bias = pulled.of_bias(call.head.bias) if wants.bias and call.head.bias is not None else None
    return Gradients(reduced(call, inputs), weights, bias)


class _Pulled(NamedTuple):
    """d(loss)/d(logits) of the scored rows, in parts: `factors` times the probabilities, `tail` times those of the
    strips, `at_label`, each [M], and what a mean logit gives."""

    kept: Kept
    factors: Tensor
    tail: Tensor
    label: Tensor
    at_label: Tensor
    every: EveryClass | None

    def of_input(self, weight: Tensor) -> Tensor:
        """Times the weight [V, H]: [M, H] in the dtype of sums."""
        wide = sum_dtype(weight.dtype)
        means = weight.new_empty((self.kept.tails.shape[0], weight.shape[1]), dtype=wide)
        multiply(self.kept.tails, weight, means)
        found = weight.new_empty((self.tail.shape[0], weight.shape[1]), dtype=wide)
        if backend.multiplies(weight):
            kept, rows = self.kept, (self.factors.contiguous(), self.tail.contiguous())
            strips, longest = kept.layout.to(weight.device), int((kept.layout[:, 1] - kept.layout[:, 0]).max())
            operands = kept.values, kept.columns, strips, backend.in_units(weight)
            backend.to_input(ToInput(*operands, *rows, means, found, longest))
        else:
            for number, strip, columns, values in self.kept.strips():
                own = found[strip.first : strip.last]
                _multiply_rows(values, weight, columns, own)
                own.mul_(self.factors[strip.first : strip.last, None])
                own.addcmul_(self.tail[strip.first : strip.last, None], means[number])
        if self.every is not None:
            self.every.add_to_input(found, weight)
        return found.addcmul_(weight[self.label].to(wide), self.at_label[:, None])

    def of_weight(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """Transposed, times the inputs [M, H]: [V, H], rounded to the dtype of the weight."""
        wide = sum_dtype(weight.dtype)
        total = storage.empty(weight.shape, wide, weight.device)
        multiply(self.kept.tails.t(), self._tail_sums(inputs).to(weight.dtype), total)
        for _, strip, columns, values in self.kept.strips():
            scaled = scale_rows(inputs[strip.first : strip.last], self.factors[strip.first : strip.last], weight.dtype)
            if backend.multiplies(weight):
                backend.to_weight(total, values, columns, scaled.contiguous())
                continue
            for part in _slices(weight.shape[1], columns.shape[0] * wide.itemsize):
                own = scaled[:, part]
                added = weight.new_empty((columns.shape[0], own.shape[1]), dtype=wide)
                multiply(values.t(), own, added)
                backend.add(total[:, part], added, columns)
        add_rows(total, self.label, inputs, self.at_label)
        if self.every is not None:
            total += self.every.of_weight(inputs)
        if total.dtype == weight.dtype:
            return total
        return storage.empty(weight.shape, weight.dtype, weight.device).copy_(total)

    def of_bias(self, bias: Tensor) -> Tensor:
        """Summed over rows: [V], rounded to the dtype of the bias."""
        wide = self.tail.dtype
        total = (self.kept.tails.t().to(wide) @ self._tail_sums(self.tail.new_ones((len(self.tail), 1)))).to(wide)
        for _, strip, columns, values in self.kept.strips():
            own = self.factors[strip.first : strip.last]
            backend.add(total, (values.t().to(wide) @ own)[:, None].contiguous(), columns)
        total[:, 0].index_put_((self.label,), self.at_label, accumulate=True)
        if self.every is not None:
            total += self.every.of_bias()
        return total[:, 0].to(bias.dtype)

    def _tail_sums(self, inputs: Tensor) -> Tensor:
        """Σ tail·inputs over the rows of each strip, [S, H] in the dtype of sums."""
        wide = self.tail.dtype
        sums = [
            self.tail[None, strip.first : strip.last] @ inputs[strip.first : strip.last].to(wide)
            for _, strip, _, _ in self.kept.strips()
        ]
        return torch.cat(sums) if sums else self.tail.new_empty((0, inputs.shape[1]))


def _of_tile(call: Call, tile: Rows, local: Tensor, own: Tensor, slope: Tensor | float, eps: float) -> Kept:
    """What is kept of a tile whose kernel statistics are `own`, over this process's classes `local`."""
    rows, width = tile.logits.shape
    lse = own[call.kernel_names.index("lse")].contiguous()
    labels = tile.labels - call.shard.first_class
    factors = torch.ones_like(lse) * slope * math.log2(math.e)
    most = STRIP if all(map(backend.multiplies, call.head.weights)) else LONG_STRIP
    strips = Strips(tile.logits, factors, lse, labels, strip_rows(rows, most))
    active = torch.empty((strips.number, width), dtype=torch.bool, device=lse.device)
    tails = tile.logits.new_empty((strips.number, width))
    backend.find(strips, eps, active, tails)
    starts, columns = _listed(active, tails)
    longest = max((b - a for a, b in itertools.pairwise(starts)), default=0)
    gathered = Gathered(
        columns,
        torch.tensor(starts, device=lse.device),
        tile.logits.new_empty(strips.strip_rows * len(columns)),
        lse.new_zeros((backend.parts(longest), rows)),
    )
    backend.gather(strips, gathered)
    beside, at_label = _masses(call, tile, local, own, labels, slope)
    layout = []
    for number, (start, stop) in enumerate(itertools.pairwise(starts)):
        first = number * strips.strip_rows
        layout.append(Strip(first, min(rows, first + strips.strip_rows), start, stop, start * strips.strip_rows))
    tails = tails.to(call.dtype)
    total = tails.sum(1, dtype=own.dtype).repeat_interleave(strips.strip_rows)[:rows]
    left = beside - gathered.sums.sum(0)
    rest = torch.where(total > 0, left / total, 0 * left)  # NaN stays
    return Kept(torch.tensor(layout), columns, gathered.values.to(call.dtype), tails, rest, at_label * slope)


def strip_rows(rows: int, most: int) -> int:
    """Rows of the strips of a tile, at most so many: as even as they go."""
    count = -(-rows // most)
    return min(rows, _round_up(-(-rows // count))) if count > 1 else rows


def _round_up(number: int) -> int:
    return -(-number // ALIGNED) * ALIGNED


def _listed(active: Tensor, tails: Tensor) -> tuple[list[int], Tensor]:
    """Where each strip's columns begin, and all of them; this waits for the device.

    A strip with many, or as many as fill up the whole vocabulary, takes all of them: then nothing is left over in
    `tails`, and the columns are the weight's own rows.
    """
    width = active.shape[1]
    counts = active.sum(1).tolist()
    for number, count in enumerate(counts):
        if count < width and (count > MOST * width or _round_up(count) >= width):
            active[number], tails[number] = True, 0
            counts[number] = width
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + _round_up(count))
    found = torch.split(active.nonzero()[:, 1], counts)
    columns = found[0].new_full((starts[-1],), -1) if found else torch.empty(0, dtype=torch.int64, device=active.device)
    for start, own in zip(starts, found, strict=False):
        columns[start : start + len(own)] = own
    return starts, columns


def _masses(
    call: Call, tile: Rows, local: Tensor, own: Tensor, labels: Tensor, slope: Tensor | float
) -> tuple[Tensor, Tensor]:
    """What each row has in this process's classes beside its label's, [rows], and 1 - p and p of the label, [2, rows].

    All are 0 of a row that holds nothing but -inf.
    """
    at = call.kernel_names.index("lse")
    lse, width = own[at], tile.logits.shape[1]
    held = (labels >= 0) & (labels < width)
    if "logp" in call.kernel_names:
        logp = own[call.kernel_names.index("logp")]
    else:
        logit = tile.logits.gather(1, torch.where(held, labels, 0)[:, None])[:, 0].to(own.dtype)
        logp = torch.where(held, logit * slope - lse, -math.inf)
    at_label = torch.stack([-logp.expm1(), logp.exp()])
    beside = at_label[0] if not call.shard.name else (local[at] - lse).exp() - torch.where(held, at_label[1], 0)
    empty = lse == -math.inf
    return torch.where(empty, 0, beside), torch.where(empty, 0, at_label)


def _joined(tiles: list[Kept]) -> Kept:
    """Those of all tiles, each strip where it has come to lie."""
    rows = listed = numbers = 0
    for tile in tiles:
        tile.layout.add_(torch.tensor([rows, rows, listed, listed, numbers]))
        rows, listed, numbers = rows + len(tile.rest), listed + len(tile.columns), numbers + len(tile.values)
    if len(tiles) == 1:
        return tiles[0]
    return Kept(
        *(
            torch.cat(parts, -1 if name == "at_label" else 0)
            for name, parts in zip(Kept._fields, zip(*tiles, strict=True), strict=True)
        )
    )


def _nothing(call: Call) -> Kept:
    """Of no rows."""
    table, columns = call.new_table(0), call.labels.new_empty(0)
    values = table.new_empty(0, dtype=call.dtype)
    tails = values.new_empty((0, call.head.classes))
    return Kept(
        torch.empty((0, 5), dtype=torch.int64), columns, values, tails, table.new_empty(0), table.new_empty((2, 0))
    )


def _multiply_rows(values: Tensor, weight: Tensor, columns: Tensor, out: Tensor) -> None:
    """Out = values @ weight[columns]; any row where there is no column, which a probability of 0 multiplies.

    As many columns as there are rows, or more, are all of them, in order.
    """
    if columns.shape[0] >= weight.shape[0]:
        multiply(values[:, : weight.shape[0]], weight, out)
        return
    out.zero_()
    for part in _slices(columns.shape[0], weight.shape[1] * weight.element_size()):
        add_product(out, values[:, part], weight.index_select(0, columns[part].clamp(min=0)), exact=True)


def _slices(count: int, each: int) -> list[slice]:
    """So many things of `each` bytes in slices of at most `SLICE_BYTES`."""
    step = max(ALIGNED, SLICE_BYTES // max(1, each) // ALIGNED * ALIGNED)
    return [slice(start, min(count, start + step)) for start in range(0, count, step)]
