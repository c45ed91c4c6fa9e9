"""TRL's log-probability functions (`trl` 1.16.0) over prefuse's engine.

`ChunkedLogProbFunction` is `trl.kernels.ChunkedLogProbFunction`, the one seam through which TRL's DPO, KTO, GRPO, RLOO
and SFT trainers reach their LM head; `selective_log_softmax` and `selective_log_softmax_and_entropy` are those of
`trl.trainer.utils`. Their results have the dtypes of TRL's: of float16 and bfloat16 logits, float32 on a GPU and the
logits' dtype on the CPU, where log-probabilities have the bits of torch's ``log_softmax``, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prefuse.compat._shared import NO_LABEL_IGNORED, check_chunk_size
from prefuse.functional import TokenStats, token_stats
from prefuse.linear.functions import LinearTokenStats, linear_token_stats
from prefuse.linear.operands import Lora
from prefuse.linear.plans import Plan
from prefuse.linear.sparse import by_columns

__all__ = [
    "OPTIONAL_OUTPUTS",
    "TOKEN_CHUNK_SIZE",
    "ChunkedLogProbFunction",
    "selective_log_softmax",
    "selective_log_softmax_and_entropy",
]

OPTIONAL_OUTPUTS = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
"""What `ChunkedLogProbFunction` returns after the log-probabilities, where it is asked to."""

TOKEN_CHUNK_SIZE = 4096
"""Tokens in a tile of TRL's, whose other side is ``chunk_size``."""

LOG_SOFTMAX_BYTES = 2**20
"""What rows of 16-bit log-probabilities may take on the CPU, where they are made as torch makes them."""

_STATISTICS = dict(zip(OPTIONAL_OUTPUTS, ("entropy", "log_sum_sq", "mean_logit", "top1"), strict=True))

Outputs = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class ChunkedLogProbFunction:
    """TRL's log-probabilities from hidden states: `apply` in the place of its autograd function's."""

    @staticmethod
    def apply(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        final_logit_softcapping: float | None = None,
        logit_scale: float = 1.0,
        outputs: Sequence[str] = OPTIONAL_OUTPUTS,
    ) -> Outputs:
        """Log-probabilities of `targets` under ``z = cap·tanh(scale·(hidden @ weight.T + bias)/cap)/temperature``.

        Logits are made in autocast's dtype, outside of it in that of `hidden`; weight and bias are converted to it.
        Log-probabilities and entropy have a gradient. That of the entropy costs nothing unless one comes to it: then
        the logits are made again (under ``torch.compile`` it is prepared for in the forward pass instead).

        Args:
            hidden: [N, H]. N may be 0.
            weight: [V, H]; a DeepSpeed ZeRO-3 parameter is gathered, in the backward pass too.
            bias: [V] or None.
            targets: [N] integers in [0, V).
            temperature: above 0.
            chunk_size: classes in a tile of TRL's, whose memory is then ``4096 x chunk_size`` logits: here, that much
                is what tiles of logits, and logits kept for the backward pass, may take (``workspace_bytes`` of
                `linear_token_stats`). How they are cut is chosen by `prefuse.linear.plans`.
            final_logit_softcapping: cap, above 0; None: none.
            logit_scale: scale, above 0.
            outputs: some of `OPTIONAL_OUTPUTS`; "log_probs" may stand among them.

        Returns:
            ``(log_probs, entropy, log_sum_sq_probs, mean_logits, is_top1)``, [N] each: float32, the last one bool; None
            for what `outputs` does not name.

        Raises:
            TypeError: an argument of the wrong type or dtype.
            ValueError: a wrong shape, device or range, a target that is no class, or an unknown name in `outputs`.
        """
        dtype = _compute_dtype(hidden)
        return token_outputs(
            hidden.to(dtype),
            targets,
            outputs,
            weight=weight.to(dtype),
            bias=None if bias is None else bias.to(dtype),
            softcap=final_logit_softcapping,
            scale=logit_scale,
            temperature=temperature,
            ignore_index=NO_LABEL_IGNORED,
            workspace_bytes=TOKEN_CHUNK_SIZE * check_chunk_size(chunk_size) * dtype.itemsize,
        )


def token_outputs(
    hidden: Tensor,
    targets: Tensor,
    outputs: Sequence[str],
    tensors: Any = None,
    *,
    tell: Callable[[Plan | None], None] | None = None,
    **options: Any,
) -> Outputs:
    """What `ChunkedLogProbFunction` returns, of any layout, labels to ignore, and adapters.

    Args:
        hidden: [*lead, H].
        targets: [*lead].
        outputs: some of `OPTIONAL_OUTPUTS`; "log_probs" may stand among them.
        tensors: the `prefuse.models.head.HeadTensors` of the model; None: `options` say the same.
        tell: called with the plan, or None where the logits were there.
        options: further arguments of `prefuse.linear_token_stats`.

    Returns:
        As `ChunkedLogProbFunction.apply`, [*lead] each.

    Raises:
        TypeError, ValueError: as `prefuse.linear_token_stats`, or an unknown name in `outputs`.
    """
    _check_outputs(outputs)
    names = {name: _STATISTICS[name] for name in OPTIONAL_OUTPUTS if name in outputs}
    of_logits = tensors is not None and tensors.weight is None
    on_demand = "entropy" in names and not torch.compiler.is_compiling() and not of_logits
    options["differentiable"] = ("logp", "entropy") if "entropy" in names and not on_demand else ("logp",)
    statistics = ("logp", *names.values())
    if tensors is None:
        made: TokenStats[Tensor] = linear_token_stats(hidden, labels=targets, stats=statistics, **options)
    else:
        made = tensors.token_stats(hidden, targets, statistics, **options)
        options |= tensors.arguments
    del options["differentiable"]
    if tell is not None:
        tell(made.plan if isinstance(made, LinearTokenStats) else None)
    found = {name: made[statistic].float() for name, statistic in names.items()}
    if on_demand:
        if by_columns(hidden.device):
            options.pop("sparse", None)  # columns do not carry the entropy's gradient
        found["entropy"] = _EntropyOnDemand.of(found["entropy"], targets, hidden, **options)
    if "is_top1" in found:
        found["is_top1"] = found["is_top1"].bool()
    log_sum_sq_probs, mean_logits, is_top1 = (found.get(name) for name in OPTIONAL_OUTPUTS[1:])
    return made.logp.float(), found.get("entropy"), log_sum_sq_probs, mean_logits, is_top1


class _EntropyOnDemand(torch.autograd.Function):
    """An entropy whose gradient is made where one comes: most trainers only log it, and its products are dear."""

    @classmethod
    def of(
        cls,
        entropy: Tensor,
        targets: Tensor,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        lora: Lora | None = None,
        **options: Any,
    ) -> Tensor:
        """The entropy, with its gradient to whichever of the tensors want one."""
        first, second, scaling = (None, None, None) if lora is None else lora
        settings = options | {"targets": targets, "scaling": scaling}
        found: Tensor = cls.apply(entropy, settings, hidden, weight, bias, first, second)
        return found

    @staticmethod
    def forward(ctx: Any, entropy: Tensor, settings: dict[str, Any], *tensors: Tensor | None) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.settings = settings
        return entropy.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor | None) -> Any:
        wanted = ctx.needs_input_grad[2:]
        if upstream is None:
            return (None,) * (2 + len(wanted))
        hidden, *others = ctx.saved_tensors
        # Apart from the model, whose embeddings may be the weight: a gradient must not come to it by way of these.
        hidden = hidden.detach().requires_grad_(wanted[0])
        weight, bias, first, second = others
        options = dict(ctx.settings)
        targets, scaling = options.pop("targets"), options.pop("scaling")
        lora = None if first is None else (first, second, scaling)
        with torch.enable_grad():
            made = linear_token_stats(hidden, weight, targets, "entropy", bias=bias, lora=lora, **options)
        asked = [tensor for tensor, wants in zip((hidden, *others), wanted, strict=True) if wants]
        grads = iter(torch.autograd.grad(made.entropy, asked, upstream.to(made.entropy.dtype)))
        return None, None, *(next(grads) if wants else None for wants in wanted)


def selective_log_softmax(
    logits: Tensor, index: Tensor, temperature: float = 1.0, row_mask: Tensor | None = None
) -> Tensor:
    """``log_softmax(logits / temperature, -1)`` gathered at `index`, and no such tensor.

    Args:
        logits: [*lead, V], float16, bfloat16, float32 or float64.
        index: [*lead] integers, one label per row, or [*lead, K], several.
        temperature: above 0.
        row_mask: the shape of `index`; where it is 0, the result is 0 and `index` is not looked at.

    Returns:
        The shape of `index`, in nats and float32 (float64 for float64 logits). Of float16 and bfloat16 logits on the
        CPU, what TRL returns there, bit for bit: ``log_softmax`` in their dtype, made of a few rows at a time; its
        gradient is rounded to that dtype once. ``prefuse.token_logps(logits, index)`` keeps float32.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device or range, or a label that is no class where it counts.
    """
    _check_temperature(temperature)
    mask = None if row_mask is None else row_mask != 0
    if index.ndim == logits.ndim:
        found = _several_log_softmax(logits, index, temperature, mask)
        return _with_bits_of_trl(found, logits, index, temperature, mask)
    made = token_stats(logits, index, "logp", mask=mask, temperature=temperature, ignore_index=NO_LABEL_IGNORED)
    return _with_bits_of_trl(made.logp, logits, index, temperature, mask)


def selective_log_softmax_and_entropy(
    logits: Tensor,
    index: Tensor,
    entropy_requires_grad: bool = True,
    temperature: float = 1.0,
    row_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`selective_log_softmax` and the entropy of each row, in one sweep over the logits.

    Args:
        logits: [*lead, V], float16, bfloat16, float32 or float64.
        index: [*lead] integers.
        entropy_requires_grad: whether a gradient may flow through the entropy.
        temperature: above 0.
        row_mask: [*lead]; where it is 0, both results are 0 and `index` is not looked at.

    Returns:
        log-probabilities and entropies in nats, [*lead] each: those of `selective_log_softmax`, and entropies in the
        same dtype, rounded to it once.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device or range, or a label that is no class where it counts.
    """
    _check_temperature(temperature)
    mask = None if row_mask is None else row_mask != 0
    made = token_stats(
        logits, index, ("logp", "entropy"), mask=mask, temperature=temperature, ignore_index=NO_LABEL_IGNORED
    )
    logps = _with_bits_of_trl(made.logp, logits, index, temperature, mask)
    entropy = made.entropy.to(logps.dtype)
    return logps, entropy if entropy_requires_grad else entropy.detach()


def _check_temperature(temperature: float) -> None:
    """Refuses 0 and less in TRL's words."""
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")


def _with_bits_of_trl(found: Tensor, logits: Tensor, index: Tensor, temperature: float, mask: Tensor | None) -> Tensor:
    """`found`; in 16 bits on the CPU, where TRL has no kernel, with the values of torch's ``log_softmax``."""
    if logits.device.type != "cpu" or logits.dtype not in (torch.float16, torch.bfloat16):
        return found
    rounded: Tensor = _OtherValues.apply(found, _rounded_log_softmax(logits.detach(), index, temperature, mask))
    return rounded


@torch.no_grad()
def _rounded_log_softmax(logits: Tensor, index: Tensor, temperature: float, mask: Tensor | None) -> Tensor:
    """``log_softmax`` in the logits' dtype at `index`, of as many rows at a time as `LOG_SOFTMAX_BYTES` hold."""
    labels = index.long() if mask is None else index.long().where(mask, 0)
    classes = logits.shape[-1]
    rows = logits.reshape(-1, classes)
    labels = labels.reshape(rows.shape[0], index.shape[-1] if index.ndim == logits.ndim else 1)
    at_once = max(LOG_SOFTMAX_BYTES // (classes * logits.element_size()), 1)
    if torch.compiler.is_compiling():  # which makes no such tensor, and would write out every turn of the loop
        at_once = rows.shape[0]
    found = [
        torch.log_softmax(some if temperature == 1.0 else some / temperature, -1).gather(-1, at)
        for some, at in zip(torch.split(rows, at_once), torch.split(labels, at_once), strict=True)
    ]
    values = torch.cat(found).reshape(index.shape)
    return values if mask is None else values.where(mask, 0.0)


class _OtherValues(torch.autograd.Function):
    """Values of one tensor with the gradient of another, which is more exact."""

    @staticmethod
    def forward(ctx: Any, found: Tensor, values: Tensor) -> Tensor:
        ctx.dtype = found.dtype
        return values

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return upstream.to(ctx.dtype), None


def _several_log_softmax(logits: Tensor, index: Tensor, temperature: float, mask: Tensor | None) -> Tensor:
    """Log-probabilities of several labels per row, [*lead, K]."""
    if index.shape[:-1] != logits.shape[:-1]:
        raise ValueError(f"index: expected shape {(*logits.shape[:-1], 'K')}, got {tuple(index.shape)}")
    if mask is not None and mask.shape != index.shape:
        raise ValueError(f"row_mask: expected the shape of index, {tuple(index.shape)}, got {tuple(mask.shape)}")
    index = index.long() if mask is None else index.long().where(mask, 0)
    if index.device.type == "cpu" and bool(((index < 0) | (index >= logits.shape[-1])).any()):
        raise ValueError(f"index: expected 0 <= label < {logits.shape[-1]} (the number of classes)")
    found: Tensor = _SeveralLabels.apply(logits, index, temperature)
    return found if mask is None else found.where(mask, 0.0)


class _SeveralLabels(torch.autograd.Function):
    """z[label] − lse for K labels of each row."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor, temperature: float) -> Tensor:
        lse = _log_sum_exp(logits, temperature)
        found = logits.gather(-1, index).to(lse.dtype) / temperature - lse.unsqueeze(-1)
        ctx.save_for_backward(logits, index, found)
        ctx.temperature = temperature
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        logits, index, found = ctx.saved_tensors
        total = upstream.sum(-1)
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            lse = _log_sum_exp(leaf, ctx.temperature)
        (gradient,) = torch.autograd.grad(lse, leaf, -total)
        # At the labels 1 − p is taken before rounding to the logits' dtype, where p ≈ 1 would leave nothing of it.
        same = (index.unsqueeze(-1) == index.unsqueeze(-2)).to(upstream.dtype)
        own = (same @ upstream.unsqueeze(-1)).squeeze(-1)
        at_labels = (own - total.unsqueeze(-1) * found.exp()) / ctx.temperature
        return gradient.scatter_(-1, index, at_labels.to(gradient.dtype)), None, None


def _log_sum_exp(logits: Tensor, temperature: float) -> Tensor:
    """log Σ exp of each row of ``logits / temperature``."""
    no_labels = logits.new_zeros(logits.shape[:-1], dtype=torch.long)
    return token_stats(logits, no_labels, "lse", temperature=temperature).lse


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype that logits are made in."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _check_outputs(outputs: Sequence[str]) -> None:
    for name in outputs:
        if name not in (*OPTIONAL_OUTPUTS, "log_probs"):
            raise ValueError(f"outputs: expected some of {', '.join(OPTIONAL_OUTPUTS)}, got {name!r}")
