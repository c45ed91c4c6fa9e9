"""The fused head as `torch.library` operators: what autograd, `torch.compile` and the dispatcher see of it.

`prefuse::linear_token_stats` returns, in a list, the statistics asked for [S, *lead] in the order of their bits,
followed by the kernel statistics [K, N], and what its plan keeps for `prefuse::linear_token_stats_backward`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from prefuse._arguments.layout import scored_tokens
from prefuse._arguments.placement import is_capturing
from prefuse._arguments.transforms import refuse_vmap
from prefuse._backends.lists import Sampling
from prefuse._backends.rows import names_of
from prefuse._parallel.sharded_weights import gathered
from prefuse._parallel.vocabulary import Shard
from prefuse._statistics.schema import arguments_of
from prefuse.linear import columns, passes, sparse
from prefuse.linear.call import Call, Projection, Transform, kernel_names, smoothed
from prefuse.linear.gemm import sum_dtype
from prefuse.linear.passes import Gradients, Wants, directions
from prefuse.linear.plans import NARROWEST_BLOCK, SPARSE, listed_logs

ONCE_DIFFERENTIABLE = (
    "the fused head is differentiable once: its gradient has no derivative of its own; take second derivatives of the "
    "same statistics written in PyTorch (a linear layer, log_softmax and gather)"
)


ENTRIES = {"lists": slice(1, None, len(sparse.Kept._fields)), "columns": slice(2, 3)}
"""Which tensors, of what the plan keeps, have an entry for each probability."""


class Request(NamedTuple):
    """The arguments of the operators, which take no objects: tensors, the transform, what is asked, the plan.

    `stats` and `differentiated` are sets as `bits_of` makes them, a smoothed `logp` with the bit of `logp`; `wants` has
    an entry per input, per weight, and for the bias;
    `exact` has float32 logits made of bfloat16 matrices that are never written, for the plans "forward" and "lists";
    `wide_logits` has tiles of float32 logits of 16-bit matrices as they are;
    `eps` (0: dense), `seed` (-1: drawn), `step` and `first_row` are those of `prefuse.linear.sparse.Sparse`; `live` has
    the flat positions of the scored rows, None where they are found when it runs.
    """

    inputs: list[Tensor]
    weights: list[Tensor]
    bias: Tensor | None
    reference: list[Tensor]
    labels: Tensor
    mask: Tensor | None
    temperatures: Tensor | None
    temperature: float
    scale: float
    softcap: float
    ignore_index: int
    stats: int
    differentiated: int
    k: int
    smoothing: float
    plan: str
    tile_rows: int
    backward_rows: int
    backward_classes: int
    wants: list[bool]
    wide: bool
    group: str
    first_class: int
    classes: int
    scattered: bool
    eps: float
    seed: int
    step: int
    first_row: int
    exact: bool
    wide_logits: bool
    live: Tensor | None

    @property
    def names(self) -> tuple[str, ...]:
        """The statistics asked for, in the order of their bits."""
        return smoothed(names_of(self.stats), self.smoothing)

    @property
    def with_gradient(self) -> tuple[str, ...]:
        """Those of them that a gradient may come to."""
        return smoothed(names_of(self.differentiated), self.smoothing)

    @property
    def shape(self) -> torch.Size:
        """The leading dimensions."""
        return self.labels.shape

    def call(self) -> Call:
        """The call in flat tensors; rows that are not scored are left out where that can be seen without waiting."""
        index, mask = self.live, None
        if index is None:
            scored = scored_tokens(self.labels, self.mask, self.ignore_index).reshape(-1)
            if is_capturing(scored.device):
                mask = scored
            else:
                index = scored.nonzero().reshape(-1)
        # All rows need no index, but in tiles of whole groups they come in the order of the groups.
        as_they_are = self.plan != "grouped" or self.tile_rows >= self.labels.numel()
        if index is not None and index.shape[0] == self.labels.numel() and as_they_are:
            index = None
        temperatures = self.temperatures
        return Call(
            Projection([_flat(factor) for factor in self.inputs], self.weights, self.bias),
            self._reference_head(),
            self.labels.reshape(-1),
            index,
            mask,
            Transform(
                None if temperatures is None else temperatures.reshape(-1), self.temperature, self.scale, self.softcap
            ),
            self.ignore_index,
            self.names,
            self.smoothing,
            self.k,
            Shard(self.group, self.first_class, self.classes or None, scattered=self.scattered),
            self.wide_logits,
        )

    def _reference_head(self) -> Projection | None:
        """The reference's hidden states, with a weight and a bias of its own or the policy's."""
        if not self.reference:
            return None
        hidden, *own = self.reference
        if not own:
            return Projection([_flat(hidden)], self.weights[:1], self.bias)
        return Projection([_flat(hidden)], own[:1], own[1] if len(own) > 1 else None)

    def wanted(self) -> Wants:
        """Whose gradients are wanted."""
        inputs = len(self.inputs)
        return Wants(self.wants[:inputs], self.wants[inputs:-1], self.wants[-1])


_FORWARD = f"({arguments_of(Request)}) -> Tensor[]"
_BACKWARD = f"(Tensor grads, Tensor table, Tensor[] kept, {arguments_of(Request)}) -> Tensor[]"


@torch.library.custom_op("prefuse::linear_token_stats", mutates_args=(), schema=_FORWARD)
def linear_token_stats(*arguments: Any) -> list[Tensor]:
    """[statistics [S, *lead], kernel statistics [K, N], what the plan keeps …] of a `Request`."""
    request = Request(*arguments)
    call = request.call()
    kept: list[Tensor] = []
    if request.plan == "single-pass":
        named = directions(request.with_gradient)
        table, kept = passes.single_pass(call, request.tile_rows, named, request.wanted().inputs, request.wide)
    elif request.plan == "keep":
        room = call.tokens if request.live is None else request.live.shape[0]
        table, kept = passes.keep(call, request.with_gradient[0], room)
    elif request.plan == "lists":
        sampling = Sampling(request.eps, sparse.draw_seed() if request.seed < 0 else request.seed, request.step)
        if request.exact:
            table, lists = sparse.exact_forward(call, sampling, request.first_row)
        else:
            rows, named = request.tile_rows, request.with_gradient
            table, lists = sparse.forward(call, rows, sampling, request.first_row, named)
        kept = [tensor for each in lists for tensor in each]
    elif request.plan == "columns":
        table, found = columns.forward(call, request.tile_rows, request.eps)
        kept = [*found]
    elif request.exact:
        table = passes.exact_forward(call)
    else:
        table = passes.forward(call, request.tile_rows)
    return [call.values(table).reshape(len(request.names), *request.shape), table, *kept]


@linear_token_stats.register_fake
def _(*arguments: Any) -> list[Tensor]:
    request = Request(*arguments)
    logits_dtype = request.inputs[0].dtype
    dtype = torch.float64 if logits_dtype == torch.float64 else torch.float32
    tokens = request.labels.numel()
    make = request.labels.new_empty
    table = make((len(kernel_names(request.names, bool(request.group))), tokens), dtype=dtype)
    kept = []
    if request.plan == "single-pass":
        kept = [
            make((tokens, factor.shape[-1]), dtype=sum_dtype(logits_dtype) if request.wide else logits_dtype)
            for _ in directions(request.with_gradient)
            for factor, wanted in zip(request.inputs, request.wanted().inputs, strict=True)
            if wanted
        ]
    elif request.plan == "keep":
        room = tokens if request.live is None else request.live.shape[0]
        shared = bool(request.group)
        shape = passes.kept_shape(request.weights[0].shape[0], room, shared and bool(request.reference))
        kept = [make(shape, dtype=sum_dtype(logits_dtype) if shared and request.wide_logits else logits_dtype)]
        if not shared and passes.keeps_labels_apart(logits_dtype):
            kept.append(make((room,), dtype=dtype))
    elif request.plan == "lists":
        logs = [listed_logs(request.with_gradient), *([0] if "rkl" in request.with_gradient else [])]
        rows, *sizes = [0] * 3 if request.labels.is_meta else _unknown_sizes(request.live, len(logs))
        kept = [
            tensor
            for entries, beside in zip(sizes, logs, strict=False)
            for tensor in (
                make((rows + 1,), dtype=torch.int64),
                make((entries,), dtype=torch.int64),
                make((entries,), dtype=dtype),
                make((2, rows), dtype=dtype),
                make((beside, entries), dtype=dtype),
            )
        ]
    elif request.plan == "columns":
        rows, strips, entries, numbers = _unknown_sizes(request.live, 3)
        kept = [
            torch.empty((strips, 5), dtype=torch.int64, device="cpu"),
            make((entries,), dtype=torch.int64),
            make((numbers,), dtype=logits_dtype),
            make((strips, request.weights[0].shape[0]), dtype=logits_dtype),
            make((rows,), dtype=dtype),
            make((2, rows), dtype=dtype),
        ]
    return [make((len(request.names), *request.shape), dtype=dtype), table, *kept]


@torch.library.custom_op("prefuse::linear_token_stats_backward", mutates_args=(), schema=_BACKWARD)
def linear_token_stats_backward(grads: Tensor, table: Tensor, kept: list[Tensor], *arguments: Any) -> list[Tensor]:
    """The gradients that are wanted, in the order of inputs, weights, bias; `grads` is that of the statistics."""
    request = Request(*arguments)
    call = request.call()
    scored = scored_tokens(request.labels, request.mask, request.ignore_index).reshape(-1)
    upstream = torch.where(scored, grads.reshape(grads.shape[0], request.labels.numel()), 0)
    own = {name: upstream[i] for i, name in enumerate(request.names) if name in request.with_gradient}
    made = _pull_back(request, call, table, kept, own)
    found = [*made.inputs, *made.weights, made.bias]
    shapes = [*request.inputs, *request.weights, request.bias]
    return [
        gradient.reshape(like.shape)
        for gradient, like in zip(found, shapes, strict=True)
        if gradient is not None and like is not None
    ]


@linear_token_stats_backward.register_fake
def _(grads: Tensor, table: Tensor, kept: list[Tensor], *arguments: Any) -> list[Tensor]:
    request = Request(*arguments)
    like = [*request.inputs, *request.weights, request.bias]
    return [
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for tensor, wanted in zip(like, request.wants, strict=True)
        if wanted and tensor is not None
    ]


def _unknown_sizes(live: Tensor | None, others: int) -> list[int]:
    """The number of scored rows, and so many others, which are known when it has run."""
    context = torch.library.get_ctx()
    rows = context.new_dynamic_size() if live is None else live.shape[0]
    return [rows, *(context.new_dynamic_size() for _ in range(others))]  # type: ignore[list-item]


def _pull_back(
    request: Request, call: Call, table: Tensor, kept: Sequence[Tensor], grads: dict[str, Tensor]
) -> Gradients:
    wants = request.wanted()
    if request.plan == "single-pass":
        return passes.backward_from_inputs(call, kept, directions(request.with_gradient), table, grads, wants)
    if request.plan == "keep" and request.group:
        tile = call.count, min(call.head.classes, NARROWEST_BLOCK)
        return passes.recompute(call, tile, table, grads, wants, kept[0])
    if request.plan == "keep":
        (factors,) = grads.values()
        return passes.backward_from_logits(call, kept, factors, wants)
    if request.plan == "lists":
        return sparse.backward(call, table, sparse.lists_of(kept), grads, wants)
    if request.plan == "columns":
        return columns.backward(call, table, columns.Kept(*kept), grads, wants)
    return passes.recompute(call, (request.backward_rows, request.backward_classes), table, grads, wants)


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    request = Request(*inputs)
    _, table, *kept = output
    ctx.set_materialize_grads(False)
    # What the backward pass will not read is let go: with the weight frozen, the hidden states and (but for the
    # gradient of `lse`) the weight, which may have been gathered for this call; the bias unless logits are made again.
    wants, is_sparse = request.wanted(), request.plan in SPARSE
    unread_inputs = request.plan == "single-pass" or (is_sparse and not (any(wants.weights) or wants.bias))
    unread_weights = (request.plan == "single-pass" and "lse" not in request.with_gradient) or (
        is_sparse and not any(wants.inputs)
    )
    ctx.lists = (
        [_unread(tensor, unread_inputs) for tensor in request.inputs],
        [_unread(tensor, unread_weights) for tensor in request.weights],
        [_unread(tensor, request.plan != "recompute") for tensor in _present(request.bias)],
        [_unread(tensor, request.plan != "recompute") for tensor in request.reference],
    )
    read = [
        tensor
        for group, shapes in zip(_tensors(request), ctx.lists, strict=True)
        for tensor, shape in zip(group, shapes, strict=True)
        if shape is None
    ]
    per_token = (request.labels, request.mask, request.temperatures, request.live)
    ctx.save_for_backward(*read, *per_token, table, *kept)
    ctx.dtype, ctx.options = request.inputs[0].dtype, request[7:-1]


def _tensors(request: Request) -> tuple[list[Tensor], ...]:
    """The head's tensors, in the order of the operators' arguments."""
    return request.inputs, request.weights, _present(request.bias), request.reference


def _present(tensor: Tensor | None) -> list[Tensor]:
    return [] if tensor is None else [tensor]


def _unread(tensor: Tensor, unread: bool) -> torch.Size | None:
    """All that is kept of a tensor that will not be read: its shape."""
    return tensor.shape if unread else None


def _restore(ctx: Any) -> tuple[Request, Tensor, list[Tensor]]:
    saved = iter(ctx.saved_tensors)
    read = [[next(saved) if shape is None else shape for shape in shapes] for shapes in ctx.lists]
    labels, mask, temperatures, live, table, *kept = saved
    inputs, weights, bias, reference = (
        [
            tensor if isinstance(tensor, Tensor) else labels.new_empty(1, dtype=ctx.dtype).expand(tensor)
            for tensor in group
        ]
        for group in read
    )
    arguments = [inputs, weights, bias[0] if bias else None, reference, labels, mask, temperatures, *ctx.options, live]
    return Request(*arguments), table, kept


def _backward(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    inputs, weights, _, reference = map(len, ctx.lists)
    nothing = _nothing(inputs, weights, reference)
    if grads[0] is None:
        return nothing
    request, table, kept = _restore(ctx)
    with gathered(*_tensors(request)):
        made = iter(linear_token_stats_backward(grads[0], table, kept, *request))
    order = [next(made) if wanted else None for wanted in request.wants]
    return order[:inputs], order[inputs:-1], order[-1], *nothing[3:]


def _nothing(inputs: int, weights: int, reference: int) -> tuple[Any, ...]:
    """No gradient for anything: for lists of tensors a list."""
    others = len(Request._fields) - 4
    return [None] * inputs, [None] * weights, None, [None] * reference, *(None,) * others


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _refuse_second_derivative(ctx: Any, *grads: Any) -> NoReturn:
    raise RuntimeError(ONCE_DIFFERENTIABLE)


linear_token_stats.register_autograd(_backward, setup_context=_save)
linear_token_stats_backward.register_autograd(_refuse_second_derivative)
for _operator in (linear_token_stats, linear_token_stats_backward):
    _operator.register_vmap(refuse_vmap)
