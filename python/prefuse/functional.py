"""Statistics of label tokens, from logits, in one pass and without temporaries of the logits' size.

For a row of raw logits x (V classes) with label y::

    z   = softcap·tanh(scale·x/softcap)/temperature          (softcap None: z = scale·x/temperature)
    lse = log Σ exp(z),   p = exp(z − lse)

========================= ======================================================= =====================
name                      value (nats where it is a logarithm)                    gradient
========================= ======================================================= =====================
``logp``                  z_y − lse                                               yes
``lse``                   lse                                                     yes
``entropy``               lse − Σ p z                                             yes
``log_sum_sq``            log Σ p²                                                none
``mean_logit``            mean of z                                               yes
``top1``                  1 where y is the first argmax, otherwise 0              none
``topk_mass``             sum of the k largest p                                  none
``topk_entropy``          entropy of those k, renormalised                        none
``ref_logp``, ``ref_lse`` ``logp`` and ``lse`` of the reference logits            none
``kl``                    KL(policy‖reference)                                    yes, to the policy
``rkl``                   KL(reference‖policy)                                    yes, to the policy
========================= ======================================================= =====================

Arithmetic is float32 for float16, bfloat16 and float32 logits and float64 for float64 logits; the same row gives the
same bits regardless of the rest of the batch and the number of threads. A row is *scored* unless its mask is 0 or its
label is ``ignore_index``; other rows are never read: their values and gradients are 0 even where their logits are NaN.
NaN in a scored row stays in that row. A label outside [0, V) is a ``ValueError``.

Torch tensors take part in autograd (once differentiable), ``torch.compile`` and autocast (logits are taken in the dtype
they come in). NumPy arrays give NumPy arrays and no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefuse._arguments.checks import check_flag, check_values, has_contiguous_rows
from prefuse._arguments.layout import check_layout, scored_tokens, shift_left
from prefuse._arguments.transforms import refuse_transforms
from prefuse._backends import DEVICES
from prefuse._backends.arrays import from_numpy
from prefuse._backends.rows import BACKWARD_NEEDS, STATISTICS, Rows, position, with_backward_needs
from prefuse._statistics import operators
from prefuse._statistics.eager import is_observed, statistics
from prefuse._statistics.request import check_rows
from prefuse._statistics.responses import count_scored, sum_responses
from prefuse._statistics.support import Support, check_support, spread, transformed

__all__ = ["STATISTICS", "TokenStats", "response_lengths", "sequence_logps", "token_logps", "token_stats"]

Array = TypeVar("Array", Tensor, NDArray[Any])


class TokenStats(Mapping[str, Array], Generic[Array]):
    """Statistics by name: ``stats.logp`` or ``stats["logp"]``, each of the labels' shape, in the order asked for."""

    def __init__(self, values: dict[str, Array]) -> None:
        self._values: dict[str, Array] = values

    def __getitem__(self, name: str) -> Array:
        return self._values[name]

    def __getattr__(self, name: str) -> Array:
        values: dict[str, Array] = self.__dict__.get("_values", {})
        if name in values:
            return values[name]
        raise AttributeError(f"no statistic {name!r} here; asked for were {', '.join(values)}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"TokenStats({', '.join(f'{name}={value!r}' for name, value in self._values.items())})"


@overload
def token_stats(
    logits: Tensor,
    labels: Tensor,
    stats: str | Sequence[str] = ...,
    *,
    reference_logits: Tensor | None = ...,
    mask: Tensor | None = ...,
    ignore_index: int = ...,
    temperature: float | Tensor = ...,
    softcap: float | None = ...,
    scale: float = ...,
    k: int = ...,
    inplace: bool = ...,
    support: Support | None = ...,
) -> TokenStats[Tensor]: ...


@overload
def token_stats(
    logits: NDArray[Any],
    labels: NDArray[Any],
    stats: str | Sequence[str] = ...,
    *,
    reference_logits: NDArray[Any] | None = ...,
    mask: NDArray[Any] | None = ...,
    ignore_index: int = ...,
    temperature: float | NDArray[Any] = ...,
    softcap: float | None = ...,
    scale: float = ...,
    k: int = ...,
    inplace: bool = ...,
    support: Support | None = ...,
) -> TokenStats[NDArray[Any]]: ...


def token_stats(
    logits: Any,
    labels: Any,
    stats: str | Sequence[str] = ("logp",),
    *,
    reference_logits: Any = None,
    mask: Any = None,
    ignore_index: int = -100,
    temperature: Any = 1.0,
    softcap: float | None = None,
    scale: float = 1.0,
    k: int = 10,
    inplace: bool = False,
    support: Support | None = None,
) -> TokenStats[Any]:
    """The statistics `stats` of every label token, from one sweep over the logits; the module has their table.

    Args:
        logits: [*lead, V], any number of leading dimensions (none as well), float16, bfloat16, float32 or float64. Rows
            may be strided or expanded; only where the V elements of a row do not lie next to each other is a contiguous
            copy made.
        labels: [*lead], any integer dtype.
        stats: one name or several.
        reference_logits: logits of the reference model, the shape of `logits`, any float dtype; needed by ``ref_logp``,
            ``ref_lse``, ``kl`` and ``rkl``. They go through the same transform and are a constant: no gradient flows to
            them.
        mask: [*lead], bool or integer; 0 marks rows to ignore.
        ignore_index: the label that marks rows to ignore.
        temperature: a number above 0, or a float tensor of such that expands to [*lead]; a constant for autograd.
        softcap: the cap of ``softcap·tanh(scale·x/softcap)``, above 0; None is no cap.
        scale: multiplies the logits, above 0.
        k: for ``topk_mass`` and ``topk_entropy``, 1 to 64; where V is less, all V classes are taken.
        inplace: let the backward pass write the gradient over `logits`, so that no second tensor of that size exists.
            For the caller who knows that nothing reads the logits afterwards; PyTorch's version counter turns most
            mistakes, a second backward among them, into a RuntimeError. Logits that are a leaf (or a view of one), that
            overlap themselves, or whose rows are not contiguous are refused.
        support: statistics of the probabilities renormalised over the classes that a sampler could have drawn, see
            `prefuse.Support`; the scored logits are copied in float32 then.

    Returns:
        A `TokenStats` with one [*lead] tensor per statistic, float32 (float64 for float64 logits).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device, layout or range; the message names the argument, what came and what was
            expected.
    """
    if isinstance(logits, np.ndarray):
        result: TokenStats[Any] = _through_torch(
            token_stats,
            {
                "logits": logits,
                "labels": labels,
                "reference_logits": reference_logits,
                "mask": mask,
                "temperature": temperature,
            },
            {
                "stats": stats,
                "ignore_index": ignore_index,
                "softcap": softcap,
                "scale": scale,
                "k": k,
                "inplace": inplace,
                "support": support,
            },
        )
        return result
    rows, asked = check_rows(
        logits,
        labels,
        stats,
        reference_logits=reference_logits,
        mask=mask,
        ignore_index=ignore_index,
        temperature=temperature,
        softcap=softcap,
        scale=scale,
        k=k,
        devices=DEVICES,
    )
    check_flag("inplace", inplace)
    refuse_transforms((logits,))
    if check_support(support, asked) is not None:
        if inplace:
            raise ValueError("inplace: with a support the gradient is not made where the logits are; leave it out")
        return _on_support(logits, rows, asked, support, k)
    differentiates = torch.is_grad_enabled() and logits.requires_grad
    if differentiates:
        rows = rows._replace(stats=with_backward_needs(rows.stats))
        if inplace:
            _check_overwritable(logits)
    inplace = inplace and differentiates
    compute = _through_the_dispatcher if is_observed(rows) else statistics
    values = compute(rows, asked, inplace)
    return TokenStats(dict(zip(asked, values, strict=True)))


def _on_support(
    logits: Tensor, rows: Rows, names: Sequence[str], support: Support | None, k: int
) -> TokenStats[Tensor]:
    """The statistics over a support: of a copy of the scored rows, in which the other classes have no mass."""
    assert support is not None
    labels = rows.labels.reshape(-1)
    scored = scored_tokens(rows.labels, rows.mask, rows.ignore_index).reshape(-1).nonzero().reshape(-1)
    temperature: float | Tensor = rows.temperature
    if rows.temperatures is not None:
        temperature = rows.temperatures.reshape(-1)[scored]
    check_values(rows.labels, rows.mask, rows.temperatures, rows.ignore_index, logits.shape[-1])
    own = logits.reshape(-1, logits.shape[-1])[scored]
    z = transformed(own, labels[scored], support, temperature, rows.softcap, rows.scale)
    found = token_stats(z, labels[scored], names, k=k)
    return TokenStats({name: spread(value, scored, rows.labels.shape) for name, value in found.items()})


def _through_the_dispatcher(rows: Rows, asked: Sequence[str], inplace: bool) -> tuple[Tensor, ...]:
    """`statistics` by the operator."""
    stacked = operators.token_stats(*rows.operands, inplace)
    # The stack is saved for backward; what is handed out may be changed in place.
    found = stacked.unbind(0)
    values = [found[position(name, rows.stats)] for name in asked]
    values = [value.clone() for value in values] if stacked.requires_grad else values
    return tuple(v if name in BACKWARD_NEEDS else v.detach() for name, v in zip(asked, values, strict=True))


@overload
def token_logps(
    logits: Tensor,
    labels: Tensor,
    *,
    mask: Tensor | None = ...,
    ignore_index: int = ...,
    temperature: float | Tensor = ...,
    softcap: float | None = ...,
    scale: float = ...,
    inplace: bool = ...,
    support: Support | None = ...,
) -> Tensor: ...


@overload
def token_logps(
    logits: NDArray[Any],
    labels: NDArray[Any],
    *,
    mask: NDArray[Any] | None = ...,
    ignore_index: int = ...,
    temperature: float | NDArray[Any] = ...,
    softcap: float | None = ...,
    scale: float = ...,
    inplace: bool = ...,
    support: Support | None = ...,
) -> NDArray[Any]: ...


def token_logps(
    logits: Any,
    labels: Any,
    *,
    mask: Any = None,
    ignore_index: int = -100,
    temperature: Any = 1.0,
    softcap: float | None = None,
    scale: float = 1.0,
    inplace: bool = False,
    support: Support | None = None,
) -> Any:
    """log p(label) of every label token in nats: ``log_softmax(z, -1).gather(-1, labels[..., None])`` and no such
    tensor.

    The arguments are those of `token_stats`.

    Returns:
        [*lead], float32 (float64 for float64 logits); 0 where a row is ignored, −inf where the label's logit is −inf.
    """
    options: dict[str, Any] = {"mask": mask, "ignore_index": ignore_index, "temperature": temperature}
    options |= {"softcap": softcap, "scale": scale, "inplace": inplace, "support": support}
    return token_stats(logits, labels, "logp", **options).logp


@overload
def sequence_logps(
    logits: Tensor,
    labels: Tensor,
    *,
    mask: Tensor | None = ...,
    cu_seqlens: Tensor | None = ...,
    average: bool = ...,
    shift: bool = ...,
    ignore_index: int = ...,
    temperature: float | Tensor = ...,
    softcap: float | None = ...,
    scale: float = ...,
    inplace: bool = ...,
    support: Support | None = ...,
) -> Tensor: ...


@overload
def sequence_logps(
    logits: NDArray[Any],
    labels: NDArray[Any],
    *,
    mask: NDArray[Any] | None = ...,
    cu_seqlens: NDArray[Any] | None = ...,
    average: bool = ...,
    shift: bool = ...,
    ignore_index: int = ...,
    temperature: float | NDArray[Any] = ...,
    softcap: float | None = ...,
    scale: float = ...,
    inplace: bool = ...,
    support: Support | None = ...,
) -> NDArray[Any]: ...


def sequence_logps(
    logits: Any,
    labels: Any,
    *,
    mask: Any = None,
    cu_seqlens: Any = None,
    average: bool = False,
    shift: bool = False,
    ignore_index: int = -100,
    temperature: Any = 1.0,
    softcap: float | None = None,
    scale: float = 1.0,
    inplace: bool = False,
    support: Support | None = None,
) -> Any:
    """log p(response): the log-probabilities of its scored tokens, summed in float64, one number per response, in nats.

    Args:
        logits: padded [B, T, V], or packed [N, V] or [1, N, V] together with `cu_seqlens`.
        labels: [B, T], or [N] or [1, N].
        mask: the shape of `labels`; 0 marks tokens to ignore (the prompt, the padding).
        cu_seqlens: [R + 1] integers: response r is tokens ``cu_seqlens[r]`` up to ``cu_seqlens[r + 1]``; it begins with
            0, never decreases and ends with N.
        average: divide each sum by the response's number of scored tokens (at least 1).
        shift: `labels` and `mask` are aligned with the input tokens, as Hugging Face models return logits: position t
            is scored with the logits of t − 1. The labels are moved, not the logits; the first token of a response is
            not scored.
        ignore_index: as in `token_stats`, and so are `temperature`, `softcap`, `scale`, `inplace` and
            `support`.

    Returns:
        [B] or [R], float32 (float64 for float64 logits). A response with no scored token gives 0 and no gradient.

    Raises:
        TypeError, ValueError: as `token_stats`.
    """
    if isinstance(logits, np.ndarray):
        return _through_torch(
            sequence_logps,
            {"logits": logits, "labels": labels, "mask": mask, "cu_seqlens": cu_seqlens, "temperature": temperature},
            {
                "average": average,
                "shift": shift,
                "ignore_index": ignore_index,
                "softcap": softcap,
                "scale": scale,
                "inplace": inplace,
                "support": support,
            },
        )
    check_flag("average", average)
    cu_seqlens = check_layout(labels, mask, cu_seqlens)
    if check_flag("shift", shift):
        labels, mask = shift_left(labels, mask, ignore_index, cu_seqlens)
    logps = token_logps(
        logits,
        labels,
        mask=mask,
        ignore_index=ignore_index,
        temperature=temperature,
        softcap=softcap,
        scale=scale,
        inplace=inplace,
        support=support,
    )
    sums: Tensor = sum_responses(logps, cu_seqlens)
    return sums / count_scored(labels, mask, ignore_index, cu_seqlens).clamp(min=1) if average else sums


def response_lengths(
    labels: Array,
    *,
    mask: Array | None = None,
    cu_seqlens: Array | None = None,
    shift: bool = False,
    ignore_index: int = -100,
) -> Array:
    """The number of scored tokens of each response, [R] int64; the arguments are those of `sequence_logps`."""
    if isinstance(labels, np.ndarray):
        arrays = {"labels": labels, "mask": mask, "cu_seqlens": cu_seqlens}
        lengths: Array = _through_torch(response_lengths, arrays, {"shift": shift, "ignore_index": ignore_index})
        return lengths
    offsets = check_layout(labels, mask, cu_seqlens)
    if check_flag("shift", shift):
        labels, mask = shift_left(labels, mask, ignore_index, offsets)
    return count_scored(labels, mask, ignore_index, offsets)


def _check_overwritable(logits: Tensor) -> None:
    """Refuses logits whose layout forbids that the backward pass of `inplace=True` writes its gradient over them."""
    if not has_contiguous_rows(logits):
        raise ValueError(f"inplace: expected logits whose rows are contiguous, got strides {logits.stride()}")
    if _overlaps_itself(logits):
        raise ValueError(f"inplace: expected logits whose rows do not share memory, got strides {logits.stride()}")


def _overlaps_itself(tensor: Tensor) -> bool:
    """Whether two elements may lie at one address: dimensions by rising stride must each step over all before."""
    reach = 0
    for stride, size in sorted(
        (stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1
    ):
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def _through_torch(function: Callable[..., Any], arrays: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """Calls `function` with NumPy arrays as tensors that share their memory, and turns what comes back into NumPy."""
    if options.get("inplace"):
        raise ValueError("inplace: expected torch tensors, got NumPy arrays, which have no gradient to write")
    tensors = {}
    for name, array in arrays.items():
        if isinstance(array, np.ndarray):
            tensors[name] = from_numpy(name, array)
        elif array is None or name == "temperature":
            tensors[name] = array
        else:
            raise TypeError(f"{name}: expected a numpy.ndarray like the other arguments, got {type(array).__name__}")
    with torch.no_grad():
        result = function(**tensors, **options)
    if isinstance(result, TokenStats):
        return TokenStats({name: value.numpy() for name, value in result.items()})
    return result.numpy()
