"""The arguments of the fused head, checked and brought into the form that its operators take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from prefuse._arguments.checks import (
    FLOATS,
    check_device,
    check_flag,
    check_integer,
    check_scored,
    check_tensor,
    check_transform,
    check_values,
)
from prefuse._arguments.layout import scored_tokens
from prefuse._arguments.placement import is_capturing, sent
from prefuse._arguments.transforms import refuse_transforms
from prefuse._backends import DEVICES, projected
from prefuse._backends.rows import BACKWARD_NEEDS, REFERENCE_STATISTICS
from prefuse._parallel.data import check_process_group
from prefuse._parallel.sharded_weights import is_zero3, whole
from prefuse._parallel.vocabulary import UNSUPPORTED, Shard
from prefuse.linear import operators
from prefuse.linear.call import set_of
from prefuse.linear.costs import Device, device_of
from prefuse.linear.gemm import HALVES, sum_dtype
from prefuse.linear.plans import SPARSE, Job, Plan
from prefuse.linear.sparse import AUTO, Sparse, by_columns

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Lora = tuple[Tensor, Tensor, float]


class OnHost(NamedTuple):
    """Labels and mask that came on the host, for hidden states of a device; `rows` has the flat positions of those that
    are scored, on the device, which nobody has to ask for them: None while PyTorch compiles."""

    labels: Tensor
    mask: Tensor | None
    rows: Tensor | None


class Operands(NamedTuple):
    """Checked arguments of the head, before they are flattened; `wants` says whether each of inputs, weights and bias
    wants a gradient, `exact` for which plans float32 logits of bfloat16 matrices are not written at all, `wide_logits`
    whether tiles of them are made of 16-bit matrices as they are; `host` what was known before it went to the
    device."""

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
    wants: list[bool]
    exact: tuple[str, ...] = ()
    wide_logits: bool = False
    host: OnHost | None = None

    def scored_index(self) -> Tensor | None:
        """The flat positions of the scored rows; None while they cannot be looked at."""
        if self.host is not None:
            return self.host.rows
        if torch.compiler.is_compiling() or self.labels.is_meta or is_capturing(self.labels.device):
            return None
        return scored_tokens(self.labels, self.mask, self.ignore_index).reshape(-1).nonzero().reshape(-1)

    def job(self, index: Tensor | None, statistics: Statistics) -> Job:
        """The call in numbers."""
        wants, inputs = self.wants, len(self.inputs)
        dtype = self.inputs[0].dtype
        return Job(
            rows=self.labels.numel() if index is None else index.shape[0],
            features=sum(factor.shape[-1] for factor in self.inputs),
            classes=statistics.shard.widest or self.weights[0].shape[0],
            itemsize=dtype.itemsize,
            statistics=statistics.differentiated,
            hidden=any(wants[:inputs]) and bool(statistics.differentiated),
            weight=any(wants[inputs:]) and bool(statistics.differentiated),
            reference=bool(self.reference),
            kept_itemsize=(sum_dtype(dtype) if statistics.wide else dtype).itemsize,
            logit_bytes=(sum_dtype(dtype) if self.wide_logits else dtype).itemsize,
            eps=0.0 if statistics.sparse is None else float(statistics.sparse.eps),
            on_gpu=by_columns(self.labels.device),
            device=_figures(self.labels.device),
        )


class Statistics(NamedTuple):
    """What is asked for: which statistics, gradients through which of them, how, and of which classes.

    Names are in the order of their bits, which is that of the results.
    """

    names: tuple[str, ...]
    differentiated: tuple[str, ...]
    k: int
    smoothing: float
    wide: bool
    shard: Shard
    sparse: Sparse | None = None


def run(operands: Operands, statistics: Statistics, index: Tensor | None, plan: Plan) -> tuple[Tensor, Plan]:
    """The statistics of all tokens, [S, *lead], by a plan other than "grouped", and what the plan has become."""
    values, _, *kept = operators.linear_token_stats(*request(operands, statistics, index, plan))
    if plan.name in SPARSE and not torch.compiler.is_compiling():
        plan = plan.after(sum(entries.shape[0] for entries in kept[operators.ENTRIES[plan.name]]))
    return values, plan


def request(operands: Operands, statistics: Statistics, index: Tensor | None, plan: Plan) -> operators.Request:
    """The call in the form that operators take; labels are looked at here."""
    classes, shard = operands.weights[0].shape[0], statistics.shard
    _check_labels(operands, shard.classes or classes)
    sparse = statistics.sparse if plan.name in SPARSE else None
    return operators.Request(
        *operands[:-4],
        stats=set_of(statistics.names),
        differentiated=set_of(statistics.differentiated),
        k=statistics.k,
        smoothing=statistics.smoothing,
        plan=plan.name,
        tile_rows=plan.tile[0],
        backward_rows=plan.backward_tile[0],
        backward_classes=plan.backward_tile[1],
        wants=operands.wants if statistics.differentiated else [False] * len(operands.wants),
        wide=statistics.wide,
        group=shard.name,
        first_class=shard.first_class,
        classes=shard.classes or classes,
        scattered=shard.scattered,
        eps=0.0 if sparse is None else sparse.eps,
        seed=-1 if sparse is None or sparse.seed is None else sparse.seed,
        step=0 if sparse is None else sparse.step,
        first_row=0 if sparse is None else sparse.first_row,
        exact=plan.name in operands.exact,
        wide_logits=operands.wide_logits,
        live=index,
    )


def check_operands(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None,
    lora: Lora | None,
    reference: tuple[Tensor, Tensor | None, Tensor | None] | None,
    mask: Tensor | None,
    ignore_index: int,
    temperature: float | Tensor,
    softcap: float | None,
    scale: float,
    logits_dtype: torch.dtype | None = None,
    names: Sequence[str] = (),
    plain: bool = True,
    tiles: bool = True,
    sparse: float | str | Sparse | None = None,
) -> Operands:
    """Checks everything that can be seen without reading the tensors, and brings the arguments into one form.

    With a `logits_dtype` above that of the hidden states all matrices are in it, unless a kernel makes such logits of
    them as they are: of the statistics `names`, if they are `plain`: of all classes, and this process has them all;
    without a gradient, or with lists (`sparse`) for it. On a GPU GEMMs of 16-bit matrices write float32, so that the
    matrices stay as they are for those who ask for `tiles`; not with an adapter, whose inner product would be rounded.
    """
    refuse_transforms((hidden, weight, bias, *(lora or ())))
    hidden, weight, bias = _in_one_dtype(hidden, whole(weight), whole(bias))
    _check_hidden("hidden", hidden)
    _check_weight("weight", weight, hidden)
    mask = check_scored(labels, mask, hidden, "hidden", or_on_host=True)
    host = _known_on_host(labels, mask, ignore_index, hidden.device)
    labels, mask = sent(labels, hidden.device), sent(mask, hidden.device)
    _check_bias("bias", bias, weight)
    wide = _is_wider(logits_dtype, hidden)
    possible = (
        plain
        and lora is None
        and reference is None
        and not softcap
        and set(projected.STATISTICS).issuperset(names)
        and _projects(hidden, weight, bias)
    )
    differentiated = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (hidden, weight, bias))
    exact: tuple[str, ...] = ()
    if wide and possible and (not differentiated or sparse not in (None, AUTO)):
        exact = ("forward", "lists")
        wide = False
    wide_logits = wide and tiles and lora is None and makes_wide_tiles(hidden.device)
    wide = wide and not wide_logits
    hidden, weight, bias = (_widened(tensor, wide) for tensor in (hidden, weight, bias))
    inputs, weights = [hidden], [weight]
    if lora is not None:
        if wide and isinstance(lora, tuple | list) and len(lora) == 3:
            lora = (_widened(whole(lora[0]), wide), _widened(whole(lora[1]), wide), lora[2])
        reduced, second = _adapter(lora, hidden, weight)
        inputs, weights = [hidden, reduced], [weight, second]
    return Operands(
        inputs,
        weights,
        bias,
        [] if reference is None else _reference_operands(reference, hidden, weight, wide),
        labels.to(torch.int64),
        mask,
        *check_transform(temperature, softcap, scale, ignore_index, hidden),
        [torch.is_grad_enabled() and t is not None and t.requires_grad for t in (*inputs, *weights, bias)],
        exact,
        wide_logits,
        host,
    )


def _known_on_host(labels: Tensor, mask: Tensor | None, ignore_index: int, device: torch.device) -> OnHost | None:
    """What is known of labels that are on the host, where the hidden states are not."""
    if labels.device == device:
        return None
    if is_capturing(device):
        raise ValueError(f"labels: expected device {device} while a CUDA graph is captured, got {labels.device}")
    if torch.compiler.is_compiling():
        return OnHost(labels, mask, None)
    index = scored_tokens(labels, mask, ignore_index).reshape(-1).nonzero().reshape(-1)
    return OnHost(labels, mask, sent(index, device))


def _projects(*tensors: Tensor | None) -> bool:
    """Whether a kernel makes float32 logits of these as they are: in bfloat16 on this CPU."""
    given = [tensor for tensor in tensors if tensor is not None]
    return projected.AVAILABLE and all(t.dtype == torch.bfloat16 and t.device.type == "cpu" for t in given)


def makes_wide_tiles(device: torch.device) -> bool:
    """Whether float32 logits of 16-bit matrices are made there without converting these."""
    return device.type == "cuda"


def _is_wider(logits_dtype: torch.dtype | None, hidden: Tensor) -> bool:
    """Whether logits are to be made in float32 of 16-bit hidden states."""
    own, widest = hidden.dtype, sum_dtype(hidden.dtype)
    if logits_dtype not in (None, own, widest):
        raise ValueError(f"logits_dtype: expected None, {widest} or that of hidden, {own}, got {logits_dtype}")
    return logits_dtype not in (None, hidden.dtype)


def _widened(value: Any, wide: bool) -> Any:
    """A 16-bit tensor in float32, if `wide`."""
    return value.float() if wide and isinstance(value, Tensor) and value.dtype in HALVES else value


def _figures(device: torch.device) -> Device | None:
    """What tiles are measured by on a GPU; None on the CPU, and while PyTorch compiles."""
    if device.type != "cuda" or torch.compiler.is_compiling():
        return None
    found = torch.cuda.get_device_properties(device)
    return device_of(found.name, found.multi_processor_count)


def check_smoothing(label_smoothing: float) -> float:
    """`label_smoothing` as a float in [0, 1)."""
    if isinstance(label_smoothing, bool) or not isinstance(label_smoothing, int | float):
        raise TypeError(f"label_smoothing: expected a number, got {type(label_smoothing).__name__}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing: expected 0 <= ε < 1, got {label_smoothing}")
    return float(label_smoothing)


def check_workspace(workspace_bytes: int | None) -> int | None:
    """`workspace_bytes` as an int above 0; None where it is for the planner to say."""
    if workspace_bytes is None:
        return None
    workspace_bytes = check_integer("workspace_bytes", workspace_bytes)
    if workspace_bytes < 1:
        raise ValueError(f"workspace_bytes: expected at least 1, got {workspace_bytes}")
    return workspace_bytes


def check_group(group: ProcessGroup | None, names: Sequence[str]) -> None:
    """Refuses what is no group of this process's, and statistics that parts of a vocabulary do not tell."""
    check_process_group("group", group)
    if group is not None and not UNSUPPORTED.isdisjoint(names):
        raise ValueError(
            f"stats: {', '.join(sorted(UNSUPPORTED.intersection(names)))} cannot be put together from the parts of a "
            "vocabulary over a group; leave them out"
        )


def check_scattered(scatter_gradient: bool, group: ProcessGroup | None, labels: Tensor, lora: Lora | None) -> None:
    """Refuses a gradient in shares where there is no group, no equal share, or a matrix that needs the whole of it."""
    if not check_flag("scatter_gradient", scatter_gradient):
        return
    if group is None:
        raise ValueError("scatter_gradient: there is no group to scatter over; pass group, or leave it out")
    if lora is not None:
        raise ValueError("lora: its A needs the whole gradient of hidden; leave out lora or scatter_gradient")
    if labels.numel() % (size := dist.get_world_size(group)):
        raise ValueError(f"scatter_gradient: {labels.numel()} rows have no equal shares for {size} processes")


def keeps_wide(gradient_dtype: torch.dtype | None, hidden: Tensor) -> bool:
    """Whether gradients that wait for the backward pass are kept in float32 although hidden states have 16 bits."""
    if gradient_dtype not in (None, torch.float32, hidden.dtype):
        raise ValueError(
            f"gradient_dtype: expected torch.float32 or that of hidden, {hidden.dtype}, got {gradient_dtype}"
        )
    return sum_dtype(hidden.dtype) != hidden.dtype and gradient_dtype in (None, torch.float32)


def differentiable_statistics(names: Sequence[str], chosen: Sequence[str] | None) -> tuple[str, ...]:
    """Those of `names` that a gradient may come to: all that have one, or the `chosen`.

    Raises:
        ValueError: one is chosen that has none, or is not among `names`.
    """
    able = tuple(name for name in names if name in BACKWARD_NEEDS)
    if chosen is None:
        return able
    for name in (chosen,) if isinstance(chosen, str) else chosen:
        if name not in able:
            raise ValueError(f"differentiable: expected some of {', '.join(able) or 'none'}, got {name!r}")
    return tuple(name for name in able if name in chosen)


def reference_of(
    names: Sequence[str], hidden: Tensor | None, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
    """What is given of a reference model; None where no statistic reads it.

    Raises:
        ValueError: a weight or a bias without hidden states.
    """
    if hidden is None:
        for name, value in (("reference_weight", weight), ("reference_bias", bias)):
            if value is not None:
                raise ValueError(f"{name}: given without reference_hidden")
        return None
    return (hidden, weight, bias) if not REFERENCE_STATISTICS.isdisjoint(names) else None


def _reference_operands(
    reference: tuple[Tensor, Tensor | None, Tensor | None], hidden: Tensor, weight: Tensor, wide: bool
) -> list[Tensor]:
    """Hidden states of the reference, then weight and bias if it has its own."""
    states, own_weight, own_bias = reference
    states = _widened(_cast(states, hidden), wide)
    check_tensor("reference_hidden", states, FLOATS, "a floating-point", like=hidden)
    states = states.detach()
    if states.shape[:-1] != hidden.shape[:-1]:
        raise ValueError(f"reference_hidden: expected shape {(*hidden.shape[:-1], 'H')}, got {tuple(states.shape)}")
    if own_weight is None:
        if own_bias is not None:
            raise ValueError("reference_bias: given without reference_weight, whose bias it would be")
        _check_features("reference_hidden", states, "weight", weight)
        if states.dtype != hidden.dtype:
            raise TypeError(
                f"reference_hidden: has dtype {states.dtype} and the weight that it shares {hidden.dtype}; expected one"
            )
        return [states]
    if torch.promote_types(states.dtype, hidden.dtype) != hidden.dtype:
        raise TypeError(
            f"reference_hidden: has dtype {states.dtype}, which {hidden.dtype}, that of hidden, cannot hold; "
            "score the reference by itself and give its log-probabilities, or convert it"
        )
    own_weight = _widened(_cast(_constant(own_weight), hidden), wide)
    _check_weight("reference_weight", own_weight, states)
    if own_weight.shape[0] != weight.shape[0]:
        raise ValueError(
            f"reference_weight: expected {weight.shape[0]} classes as weight has, got {own_weight.shape[0]}"
        )
    if own_bias is None:
        return [states, own_weight]
    own_bias = _widened(_cast(_constant(own_bias), hidden), wide)
    _check_bias("reference_bias", own_bias, own_weight)
    return [states, own_weight, own_bias]


def _constant(parameter: Any) -> Any:
    """A parameter of the reference's, whole and apart from autograd.

    ZeRO-3's stay as they are: what is detached from them would keep the whole of them alive until the backward pass,
    which gives them no gradient either way.
    """
    return parameter if not isinstance(parameter, Tensor) or is_zero3(parameter) else whole(parameter).detach()


def _in_one_dtype(hidden: Any, weight: Any, bias: Any) -> tuple[Any, Any, Any]:
    """Under autocast all three in its dtype, as `torch.nn.functional.linear` takes them."""
    if not isinstance(hidden, Tensor) or not _autocasts(hidden.device) or hidden.dtype == torch.float64:
        return hidden, weight, bias
    like = hidden.new_empty(0, dtype=torch.get_autocast_dtype(hidden.device.type))
    return _cast(hidden, like), _cast(weight, like), _cast(bias, like)


def _cast(value: Any, like: Tensor) -> Any:
    """A float tensor in the dtype that autocast has given `like`; float64 stays, as autocast has it."""
    castable = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
    return value.to(like.dtype) if castable and _autocasts(like.device) else value


def _autocasts(device: torch.device) -> bool:
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def _adapter(lora: Lora, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """scaling·hidden @ A.T, which takes part in autograd by itself, and B."""
    if not isinstance(lora, tuple | list) or len(lora) != 3:
        raise TypeError("lora: expected (A [r, H], B [V, r], scaling)")
    first, second, scaling = lora
    first, second = whole(first), whole(second)
    for name, matrix in (("lora: A", first), ("lora: B", second)):
        check_tensor(name, matrix, FLOATS, "a floating-point", like=hidden)
    first, second = _cast(first, hidden), _cast(second, hidden)
    rank = first.shape[0]
    if first.ndim != 2 or first.shape[1] != hidden.shape[-1] or tuple(second.shape) != (weight.shape[0], rank):
        raise ValueError(
            f"lora: expected A [r, {hidden.shape[-1]}] and B [{weight.shape[0]}, r], "
            f"got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    for name, matrix in (("A", first), ("B", second)):
        if matrix.dtype != hidden.dtype:
            raise TypeError(f"lora: {name} has dtype {matrix.dtype}, expected {hidden.dtype} as hidden has")
    if is_zero3(first):  # autograd would find the parameter itself partitioned when it comes back to this product
        first = first.clone()
    return torch.nn.functional.linear(hidden, first) * scaling, second


def _check_hidden(name: str, hidden: Tensor) -> None:
    check_tensor(name, hidden, FLOATS, "a float16, bfloat16, float32 or float64")
    check_device(name, hidden, DEVICES)
    if hidden.ndim == 0 or hidden.shape[-1] == 0:
        raise ValueError(f"{name}: expected shape (..., H) with H >= 1, got {tuple(hidden.shape)}")


def _check_weight(name: str, weight: Tensor, hidden: Tensor) -> None:
    check_tensor(name, weight, FLOATS, "a floating-point", like=hidden)
    if weight.ndim != 2 or weight.shape[0] == 0:
        sharded = (
            ", the shape of a parameter that FSDP1 has flattened or DeepSpeed ZeRO-3 has partitioned: pass the wrapped "
            "model to prefuse.head, or gather the parameter around the call"
        )
        raise ValueError(
            f"{name}: expected shape (V, H) with V >= 1, got {tuple(weight.shape)}{sharded if weight.ndim == 1 else ''}"
        )
    _check_features("hidden" if name == "weight" else "reference_hidden", hidden, name, weight)
    if weight.dtype != hidden.dtype:
        raise TypeError(
            f"{name}: has dtype {weight.dtype} and the hidden states {hidden.dtype}; "
            "expected one dtype, or torch.autocast around the call"
        )


def _check_features(name: str, hidden: Tensor, weight_name: str, weight: Tensor) -> None:
    if hidden.shape[-1] != weight.shape[-1]:
        turned = f"; if {weight_name} is [H, V], pass {weight_name}.T" if hidden.shape[-1] == weight.shape[0] else ""
        raise ValueError(
            f"{name}: expected {weight.shape[-1]} features, as {weight_name} of shape {tuple(weight.shape)} has, "
            f"got shape {tuple(hidden.shape)}{turned}"
        )


def _check_bias(name: str, bias: Tensor | None, weight: Tensor) -> None:
    if bias is None:
        return
    check_tensor(name, bias, FLOATS, "a floating-point", like=weight)
    if tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"{name}: expected shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    if bias.dtype != weight.dtype:
        raise TypeError(f"{name}: has dtype {bias.dtype}, expected {weight.dtype} as the weight has")


def _check_labels(operands: Operands, classes: int) -> None:
    """Looks at labels and temperatures where that makes no device wait (or `PREFUSE_DEBUG=1` says to); elsewhere a bad
    one makes its row NaN."""
    if torch.compiler.is_compiling():
        return
    if operands.host is not None:
        check_values(operands.host.labels, operands.host.mask, None, operands.ignore_index, classes)
    if operands.labels.device.type != "cpu" and os.environ.get("PREFUSE_DEBUG") != "1":
        return
    check_values(operands.labels, operands.mask, operands.temperatures, operands.ignore_index, classes)


def mean_row(matrix: Tensor) -> Tensor:
    """The mean of the rows in float32, [H]; on the CPU, which would convert 16-bit numbers all at once, by parts."""
    if matrix.device.type != "cpu" or matrix.dtype == torch.float32:
        return matrix.mean(0, dtype=torch.float32)
    rows = max(1, _PART // matrix.shape[-1])
    parts = [part.sum(0, dtype=torch.float32) for part in torch.split(matrix, rows)]
    return torch.stack(parts).sum(0) / len(matrix)


_PART = 1 << 18
"""Numbers that are converted at once."""
