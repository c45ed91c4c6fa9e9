"""The plans as loops over tiles: what each makes forward, what it keeps, what it makes of that backward.

With c_t the upstream gradient of a token's statistic and G_t = d(statistic)/d(logits), which the backend writes,

    d(loss)/d(hidden_t) = c_t · (Wᵀ G_t),    d(loss)/dW = Σ_t (c_t·G_t) hidden_tᵀ = Gᵀ (c ∘ hidden)

so c_t may come after the product with W, and meets the small operand in the other: nothing of size N x V is scaled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from prefuse._backends import backend, storage
from prefuse._backends.rows import Rows
from prefuse.linear.call import Call
from prefuse.linear.gemm import (
    HALVES,
    add_product,
    add_rows,
    multiply,
    product_dtype,
    rounds_products,
    scale_rows,
    sum_dtype,
)

Tile = tuple[int, int]


class Wants(NamedTuple):
    """Whose gradients are wanted: of which inputs, of which weights, of the bias."""

    inputs: Sequence[bool]
    weights: Sequence[bool]
    bias: bool


class Gradients(NamedTuple):
    """Gradients of the head's tensors; None where none is wanted."""

    inputs: list[Tensor | None]
    weights: list[Tensor | None]
    bias: Tensor | None


def forward(call: Call, rows: int) -> Tensor:
    """The kernel statistics of all tokens, [S, N]; 0 for rows that are not scored."""
    table = call.new_table(call.tokens).zero_()
    buffer = call.buffer(min(rows, call.count))
    for part in call.tiles(rows):
        table[:, part] = call.statistics(call.tile(part, buffer))
    return table


def exact_forward(call: Call) -> Tensor:
    """As `forward`, of bfloat16 matrices whose logits are made in float32 and never written."""
    table = call.new_table(call.tokens).zero_()
    own = call.new_table(call.count)
    call.projected().forward(own)
    table[:, call.part(0, call.count)] = own
    return table


def directions(names: Sequence[str]) -> tuple[str, ...]:
    """The statistics, of those with a gradient, that get a product of their own: `lse` follows from `logp`."""
    return tuple(name for name in names if name != "lse" or "logp" not in names)


def single_pass(
    call: Call, rows: int, names: Sequence[str], inputs: Sequence[bool], wide: bool
) -> tuple[Tensor, list[Tensor]]:
    """The kernel statistics, and d(statistic)/d(input) of every token for each of `names` and each wanted input.

    `wide`: these are kept in float32, whatever the inputs' dtype.
    """
    table = call.new_table(call.tokens).zero_()
    wanted = [f for f, wants in enumerate(inputs) if wants]
    kept = [[_kept(call, f, wide) for f in wanted] for _ in names]
    buffer = call.buffer(min(rows, call.count))
    spare = call.aligned(min(rows, call.count), call.head.classes) if len(names) > 1 else buffer
    for part in call.tiles(rows):
        made = call.tile(part, buffer)
        for of_name, gradient in zip(kept, _unscaled(call, made, part, names, table, spare), strict=True):
            apart = _Apart(call, part) if wide and rounds_products(call.head.weights[0]) else None
            if apart is not None:
                apart.take(gradient)
            narrow = call.narrowed(gradient)
            for f, unscaled in zip(wanted, of_name, strict=True):
                _put_product(unscaled, part, narrow, call.head.weights[f], apart)
    return table, [unscaled for of_name in kept for unscaled in of_name]


def keep(call: Call, name: str, room: int) -> tuple[Tensor, list[Tensor]]:
    """The kernel statistics, and d(`name`)/d(logits) of the M scored rows, the first of [room, V].

    Of 16 bits, d(`name`)/d(the label's logit), [room] in float32, is apart, and 0 in its place. Where processes share a
    vocabulary, the logits themselves (and the reference's below them), as statistics of the whole come only later.
    """
    table = call.new_table(call.tokens).zero_()
    shape = kept_shape(call.head.classes, room, call.reference is not None)
    kept = storage.empty(shape, call.logits_dtype, table.device)
    part = call.part(0, call.count)
    if call.shard.name:
        table[:, part] = call.statistics(call.tile(part, kept))
        return table, [kept]
    if call.count:
        for _ in _unscaled(call, call.tile(part, kept), part, (name,), table, kept):
            pass
    kept = kept[:room]
    kept[call.count :].zero_()
    if not keeps_labels_apart(call.dtype):
        return table, [kept]
    at_label, apart = table.new_zeros(room), _Apart(call, part)
    apart.take(kept[: call.count])
    at_label[: call.count] = apart.factors
    return table, [kept.to(call.dtype), at_label]


def kept_shape(classes: int, room: int, reference: bool) -> tuple[int, int]:
    """Of the logits for which there must be memory in the plan "keep"."""
    return room * (2 if reference else 1), classes


def keeps_labels_apart(dtype: torch.dtype) -> bool:
    """Whether the plan "keep" has the labels' share of the gradient of logits in a tensor of its own."""
    return dtype in HALVES


def backward_from_inputs(
    call: Call, kept: Sequence[Tensor], names: Sequence[str], table: Tensor, grads: dict[str, Tensor], wants: Wants
) -> Gradients:
    """The pull back of `single_pass`: rows times numbers, nothing else."""
    gradients: list[Tensor | None] = [None] * len(wants.inputs)
    wanted = [f for f, wanted in enumerate(wants.inputs) if wanted]
    for i, f in enumerate(wanted):
        total: Tensor | None = None
        for j, name in enumerate(names):
            factors = grads.get(name)
            if name == "logp" and "lse" in grads:  # d(lse) = slope·W[label] − d(logp)
                factors = -grads["lse"] if factors is None else factors - grads["lse"]
            if factors is None:
                continue
            scaled = scale_rows(kept[j * len(wanted) + i], factors, call.reduced_dtype)
            total = scaled if total is None else total.add_(scaled)
        if "lse" in grads and "lse" not in names:
            at_label = _label_rows(call, f, table, grads["lse"])
            total = at_label if total is None else total.add_(at_label)
        gradients[f] = total
    return Gradients(reduced(call, gradients), [None] * len(wants.weights), None)


def backward_from_logits(call: Call, kept: Sequence[Tensor], factors: Tensor, wants: Wants) -> Gradients:
    """The pull back of `keep`: the factors [N] meet the inputs before the one product, and come after the other.

    In 16 bits that rounds the inputs' product with the factors as well as d(statistic)/d(logits). The share of the
    labels, which is most of both gradients, is multiplied in float32, so that neither rounding is seen.
    """
    part = call.part(0, call.count)
    factors = factors[part]
    of_logits = kept[0][: call.count]
    apart = None if len(kept) == 1 else _Apart(call, part, kept[1][: call.count])
    inputs: list[Tensor | None] = []
    for f, wanted in enumerate(wants.inputs):
        gradient = _kept(call, f, wide=False) if wanted else None
        if gradient is not None and call.count:
            dtype = product_dtype(of_logits.device, call.dtype)
            product = gradient.new_empty((call.count, gradient.shape[1]), dtype=dtype)
            multiply(of_logits, call.head.weights[f], product)
            if apart is not None:
                product = product.to(sum_dtype(product.dtype))
                apart.add_to(product, call.head.weights[f])
            gradient[part] = scale_rows(product, factors, gradient.dtype)
        inputs.append(gradient)
    weights: list[Tensor | None] = []
    for factor, weight, wanted in zip(call.head.rows(part), call.head.weights, wants.weights, strict=True):
        gradient = storage.empty(weight.shape, weight.dtype, weight.device) if wanted else None
        if gradient is not None:
            torch.mm(of_logits.t(), scale_rows(factor, factors, factor.dtype), out=gradient)
            if apart is not None:
                add_rows(gradient, apart.label, factor, apart.factors * factors)
        weights.append(gradient)
    bias = None
    if wants.bias and call.head.bias is not None:
        bias = of_logits.t() @ factors.to(of_logits.dtype)
        if apart is not None:
            bias = bias.float().index_put_((apart.label,), apart.factors * factors, accumulate=True)
        bias = bias.to(call.head.bias.dtype)
    return Gradients(inputs, weights, bias)


def recompute(
    call: Call, tile: Tile, table: Tensor, grads: dict[str, Tensor], wants: Wants, kept: Tensor | None = None
) -> Gradients:
    """The gradients with the logits made again, in tiles of `tile` rows and classes, or from those that were `kept`."""
    rows, classes = tile
    inputs = [
        factor.new_zeros((call.count, factor.shape[1]), dtype=sum_dtype(factor.dtype)) if wanted else None
        for factor, wanted in zip(call.head.inputs, wants.inputs, strict=True)
    ]
    weights = [
        storage.empty(weight.shape, weight.dtype, weight.device).zero_() if wanted else None
        for weight, wanted in zip(call.head.weights, wants.weights, strict=True)
    ]
    bias = torch.zeros_like(call.head.bias) if wants.bias and call.head.bias is not None else None
    apart = _label_share(call, table, grads)
    buffer, shared = call.buffer(min(rows, call.count), classes), bool(call.shard.name)
    for start in range(0, call.head.classes, classes):
        block = (start, min(call.head.classes, start + classes))
        sums = _Block(weights, bias, block, many=call.count > rows, exact=shared)
        for first in range(0, call.count, max(1, rows)):
            last = min(call.count, first + rows)
            part = call.part(first, last)
            made = call.tile(part, buffer, block, kept)
            own = {name: grad[part] for name, grad in grads.items()}
            grads_of_rows = call.kernel_grads(own, last - first)
            call.pull(made, grads_of_rows, table[:, part].contiguous(), made.logits)
            if apart is not None:
                apart.clear(made.logits, first, start)
            narrow = call.narrowed(made.logits)
            for total, weight in zip(inputs, call.head.weights, strict=True):
                if total is not None:
                    add_product(total[first:last], narrow, weight[block[0] : block[1]], exact=shared)
            sums.add(narrow, call.head.rows(part))
        sums.write()
    if apart is not None:
        _add_label_share(call, apart, inputs, weights, bias)
    spread = [None if total is None else over_tokens(call, total) for total in inputs]
    return Gradients(reduced(call, spread), weights, bias)


def _add_label_share(
    call: Call, apart: _Apart, inputs: Sequence[Tensor | None], weights: Sequence[Tensor | None], bias: Tensor | None
) -> None:
    """Adds what the labels give to gradients of the scored rows, of the weights and of the bias."""
    for total, weight in zip(inputs, call.head.weights, strict=True):
        if total is not None:
            apart.add_to(total, weight)
    for total, factor in zip(weights, call.head.rows(call.part(0, call.count)), strict=True):
        if total is not None:
            add_rows(total, apart.label, factor, apart.factors)
    if bias is not None:
        bias.copy_(bias.float().index_put_((apart.label,), apart.factors, accumulate=True))


def over_tokens(call: Call, rows: Tensor) -> Tensor:
    """The scored rows at their places among all tokens."""
    rows = rows.to(call.reduced_dtype)
    if call.index is None:
        return rows
    return rows.new_zeros((call.tokens, rows.shape[1])).index_copy_(0, call.index, rows)


class _Block:
    """Sums over tiles of rows of the gradients of a block of classes, in float32 where there are many tiles.

    `exact`: no product is rounded to 16 bits before it is added.
    """

    def __init__(
        self, weights: Sequence[Tensor | None], bias: Tensor | None, block: tuple[int, int], many: bool, exact: bool
    ) -> None:
        start, stop = block
        self.targets = [None if weight is None else weight[start:stop] for weight in weights]
        self.bias = None if bias is None else bias[start:stop]
        self.sums = [
            storage.empty(target.shape, sum_dtype(target.dtype), target.device).zero_()
            if many and target is not None
            else target
            for target in self.targets
        ]
        self.bias_sum = None if self.bias is None else torch.zeros_like(self.bias, dtype=sum_dtype(self.bias.dtype))
        self.many, self.exact = many, exact

    def add(self, gradient: Tensor, inputs: Sequence[Tensor]) -> None:
        """Add what a tile's d(loss)/d(logits) and its inputs give."""
        for total, factor in zip(self.sums, inputs, strict=True):
            if total is not None and self.many:
                add_product(total, gradient.t(), factor, self.exact)
            elif total is not None:
                torch.mm(gradient.t(), factor, out=total)
        if self.bias_sum is not None:
            self.bias_sum += gradient.sum(0, dtype=self.bias_sum.dtype)

    def write(self) -> None:
        """Round the sums into the gradients."""
        for target, total in zip(self.targets, self.sums, strict=True):
            if target is not None and total is not None and total is not target:
                target.copy_(total)
        if self.bias is not None and self.bias_sum is not None:
            self.bias.copy_(self.bias_sum)


def _unscaled(
    call: Call, rows: Rows, part: Tensor | slice, names: Sequence[str], table: Tensor, spare: Tensor
) -> Iterator[Tensor]:
    """d(name)/d(logits) of a tile for each name in turn, the last over the logits, the others in `spare`.

    The tile's kernel statistics go into `table`.
    """
    count = rows.labels.shape[0]
    one = rows.labels.new_ones(count, dtype=call.table_dtype)
    if len(names) == 1 and not call.shard.name:
        own = call.new_table(count)
        backend(rows.logits.device).rows_both(rows, call.kernel_grads({names[0]: one}, count), own, rows.logits)
        table[:, part] = own
        yield rows.logits
        return
    own = call.statistics(rows)
    table[:, part] = own
    for name in names:
        target = rows.logits if name == names[-1] else spare[:count]
        call.pull(rows, call.kernel_grads({name: one}, count), own, target)
        yield target


def _kept(call: Call, f: int, wide: bool) -> Tensor:
    """Room for a gradient of an input, 0 where rows are not scored."""
    factor = call.head.inputs[f]
    dtype = sum_dtype(factor.dtype) if wide else factor.dtype
    kept = storage.empty(factor.shape, dtype, factor.device)
    return kept if call.index is None else kept.zero_()


class _Apart:
    """The label's share of products with the weight, taken out of d(statistic)/d(logits) and multiplied in float32.

    Most of d(logp)/d(hidden) is a row of the weight. Where a 16-bit GEMM rounds what it writes, it is left the small
    rest to round. `factors` [rows] is the share; None: it is read where `take` takes it out.
    """

    def __init__(self, call: Call, part: Tensor | slice, factors: Tensor | None = None) -> None:
        local = call.labels[part] - call.shard.first_class
        self.held = (local >= 0) & (local < call.head.classes)
        self.label = torch.where(self.held, local, 0)
        self.factors = local.new_zeros(local.shape, dtype=torch.float32) if factors is None else factors * self.held

    def take(self, gradient: Tensor) -> None:
        """Take the share out of d(statistic)/d(logits) of all classes."""
        at = torch.arange(gradient.shape[0], device=gradient.device), self.label
        own = gradient[at]
        self.factors = torch.where(self.held, own.float(), 0.0)
        gradient[at] = own.masked_fill(self.held, 0)  # scatter_ would make a float32 copy of the tile

    def clear(self, gradient: Tensor, first: int, start: int) -> None:
        """As `take`, of the rows from `first` on and the classes from `start` on, whose share is known."""
        last, width = first + gradient.shape[0], gradient.shape[1]
        local = self.label[first:last] - start
        held = self.held[first:last] & (local >= 0) & (local < width)
        at = torch.arange(gradient.shape[0], device=gradient.device), torch.where(held, local, 0)
        gradient[at] = gradient[at].masked_fill(held, 0)

    def add_to(self, product: Tensor, weight: Tensor) -> None:
        """Add the share to a float32 product."""
        product.addcmul_(weight[self.label].float(), self.factors[:, None])


def _label_share(call: Call, table: Tensor, grads: dict[str, Tensor]) -> _Apart | None:
    """The upstream gradient times d(logp)/d(the label's logit), not rounded; None where other statistics have one."""
    if call.dtype not in HALVES or set(grads) != {"logp"}:
        return None
    part = call.part(0, call.count)
    logp = table[call.kernel_names.index("logp")]
    return _Apart(call, part, (grads["logp"] * _slope(call, table) * -logp.expm1())[part])


def _put_product(target: Tensor, part: Tensor | slice, a: Tensor, b: Tensor, apart: _Apart | None) -> None:
    """target[part] = a @ b, and what was taken out of `a` before."""
    if apart is None and isinstance(part, slice):
        multiply(a, b, target[part])
        return
    product = target.new_empty((a.shape[0], b.shape[1]), dtype=target.dtype if apart is None else a.dtype)
    multiply(a, b, product)
    if apart is not None:
        product = product.to(target.dtype)
        apart.add_to(product, b)
    target[part] = product


def _label_rows(call: Call, f: int, table: Tensor, factors: Tensor) -> Tensor:
    """factors · dz_label/d(input): rows of the weight, 0 where the label is another process's or the row not scored."""
    local = call.labels - call.shard.first_class
    held = (local >= 0) & (local < call.head.classes) & (factors != 0)
    rows = call.head.weights[f][torch.where(held, local, 0)]
    return scale_rows(rows, torch.where(held, factors * _slope(call, table), 0), call.reduced_dtype)


def _slope(call: Call, table: Tensor) -> Tensor | float:
    """dz/d(logit) at each token's label."""
    transform = call.transform
    temperature = transform.temperature_in(table.dtype)
    slope = transform.scale / temperature
    if transform.softcap:
        logp, lse = (table[call.kernel_names.index(name)] for name in ("logp", "lse"))
        slope = slope * (1 - ((logp + lse) * temperature / transform.softcap) ** 2)
    return slope


def upstream_of_rows(grads: dict[str, Tensor], name: str, part: Tensor | slice, like: Tensor) -> Tensor:
    """The upstream gradient of a statistic at the scored rows; zeros where there is none."""
    grad = grads.get(name)
    return torch.zeros_like(like) if grad is None else grad[part].to(like.dtype).contiguous()


def product_or_zero(factors: Tensor, values: Tensor) -> Tensor:
    """The product, 0 where the factor is, whatever the value."""
    return torch.where(factors == 0, 0, factors * values)


def reduced(call: Call, gradients: list[Tensor | None]) -> list[Tensor | None]:
    """Gradients of inputs, summed over the processes that share a vocabulary and rounded once."""
    return [None if gradient is None else call.shard.reduce(gradient).to(call.dtype) for gradient in gradients]
