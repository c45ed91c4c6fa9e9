"""The public functions of the fused head; `prefuse.functional` has the same from logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor

from prefuse._arguments.checks import (
    check_flag,
    check_k,
)
from prefuse._arguments.layout import check_layout, shift_left
from prefuse._arguments.placement import sent
from prefuse._backends.rows import bits_of, names_of
from prefuse._parallel.sharded_weights import gathered_head
from prefuse._parallel.vocabulary import shard_of
from prefuse._statistics.request import check_statistics
from prefuse._statistics.responses import count_scored, sum_responses
from prefuse._statistics.support import Support, check_support
from prefuse.functional import TokenStats
from prefuse.linear.automatic import settle
from prefuse.linear.call import smoothed
from prefuse.linear.operands import (
    Lora,
    Statistics,
    check_group,
    check_operands,
    check_scattered,
    check_smoothing,
    check_workspace,
    differentiable_statistics,
    keeps_wide,
    reference_of,
    run,
)
from prefuse.linear.plans import WORKSPACE_BYTES, Plan, choose
from prefuse.linear.sparse import Sparse
from prefuse.linear.support import check_alone, supported

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from typing_extensions import Unpack

__all__ = ["LinearTokenStats", "linear_sequence_logps", "linear_token_logps", "linear_token_stats"]


class LinearTokenStats(TokenStats[Tensor]):
    """Statistics by name, and the plan that made them: None with a support, or where a model made its logits itself."""

    def __init__(self, values: dict[str, Tensor], plan: Plan | None) -> None:
        super().__init__(values)
        self.plan = plan


def linear_token_stats(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    stats: str | Sequence[str] = ("logp",),
    *,
    bias: Tensor | None = None,
    lora: Lora | None = None,
    reference_hidden: Tensor | None = None,
    reference_weight: Tensor | None = None,
    reference_bias: Tensor | None = None,
    mask: Tensor | None = None,
    ignore_index: int = -100,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    scale: float = 1.0,
    k: int = 10,
    label_smoothing: float = 0.0,
    differentiable: Sequence[str] | None = None,
    gradient_dtype: torch.dtype | None = None,
    plan: str | None = None,
    workspace_bytes: int | None = None,
    group: ProcessGroup | None = None,
    scatter_gradient: bool = False,
    sparse: float | str | Sparse | None = None,
    logits_dtype: torch.dtype | None = None,
    support: Support | None = None,
) -> LinearTokenStats:
    """What `token_stats` gives for the logits ``hidden @ weight.T + bias``, which are never whole in memory.

    Rows that are not scored never meet the weight. `prefuse.linear.plans` describes how it runs and what the gradient
    costs; `prefuse.explain` tells before anything runs, and ``result.plan`` afterwards.

    Args:
        hidden: [*lead, H], float16, bfloat16, float32 or float64.
        weight: [V, H], the dtype of `hidden` (under autocast both are taken in autocast's dtype). An FSDP2 parameter
            (DTensor) is gathered once, its gradient averaged over the processes and cut up again; a DeepSpeed ZeRO-3
            parameter is gathered for the call. Embeddings that are tied to the head are passed as they are.
        labels: [*lead], any integer dtype; with `mask` on the device of the hidden states, or on the CPU, from where
            the scored rows are known without waiting for the device.
        stats: names of `prefuse.functional`'s table. ``mean_logit`` has a gradient as well; that of ``lse`` comes free
            with ``logp``'s.
        bias: [V].
        lora: (A [r, H], B [V, r], scaling): the head's weight is ``weight + scaling·B @ A``, which is not made.
        reference_hidden: the shape of `hidden`: hidden states of the reference model, a constant for the gradient, in
            the dtype of `hidden` or, with a `reference_weight`, a narrower one; for ``ref_logp``, ``ref_lse``, ``kl``
            and ``rkl``.
        reference_weight: [V, H'], of the reference model, in the dtype of `reference_hidden`; None: it shares `weight`
            (and `bias`) without the adapter, and policy and reference rows go through one product.
        reference_bias: [V], beside `reference_weight`.
        mask: [*lead], bool or integer; 0 marks rows to ignore.
        ignore_index: the label that marks rows to ignore.
        temperature: a number above 0, or a tensor of such that expands to [*lead].
        softcap: the cap of ``softcap·tanh(scale·x/softcap)``; None is no cap.
        scale: multiplies the logits.
        k: of ``topk_mass`` and ``topk_entropy``, 1 to 64.
        label_smoothing: ε in [0, 1): ``logp`` becomes ``(1 − ε)·logp + ε·(mean_logit − lse)``, the mean of log p over
            all classes weighed in, at no further product.
        differentiable: of the statistics, those a gradient will come to; the others are constants. None: all that have
            one. Every product saved is a GEMM.
        gradient_dtype: in which the plan "single-pass" keeps d(statistic)/d(hidden). None: float32 (float64 hidden
            states: float64); that of 16-bit hidden states takes half the memory, and rounds once more.
        plan: one of `prefuse.linear.plans.PLANS` but "grouped"; None has it chosen. Without a gradient it is "forward".
        workspace_bytes: how much memory tiles of logits, and logits that are kept, may take. None: 256 MiB; on a GPU
            what makes tiles faster, up to 640 MiB or, with the weight trained, a quarter of its float32 sum.
        group: a process group whose ranks hold the vocabulary's classes in parts, in order of rank: `weight`, `bias`,
            B, `reference_weight` and `reference_bias` are this rank's, everything else, the labels too, is the same on
            all ranks, and so are the statistics and the gradient of `hidden`. ``top1`` and the top-k statistics are not
            given then. The ranks tell each other their number of classes, for which a GPU's host waits.
        scatter_gradient: with `group`, the gradient of `hidden` is summed over the ranks by a reduce-scatter: each has
            its equal share of the rows (the first rank the first), and numbers without a meaning elsewhere. For hidden
            states that were gathered from the ranks along their first dimension; `lora` and `support` are refused.
        sparse: eps in [2^-40, 1], or a `Sparse` with seed and step: gradients from short lists of probabilities, those
            from eps on as they are, smaller ones rounded at random to 0 or eps, so that their expectation is the dense
            gradient. On a GPU from the columns in which some row of 1024 has a probability from eps on, and the mean of
            the rest. Through ``logp``, ``lse``, and exactly ``mean_logit`` and `label_smoothing`; on the CPU through
            ``entropy``, ``kl`` and ``rkl`` too. With a `softcap` not through ``mean_logit`` (nor with
            `label_smoothing`) or ``rkl``, and on a GPU not at all. Statistics are the same. See docs/sparse-head.md for
            the error.
            "auto": with an eps whose error is below the rounding of 16-bit hidden states, by a look at a few rows, and
            dense where lists are long or carry nothing, and on a GPU. None: dense.

        logits_dtype: float32 makes the logits of 16-bit hidden states in float32, where they are rounded to 16 bits
            otherwise, the largest error of the head. Of bfloat16 on an x86-64 CPU ``logp`` and ``lse`` come from
            blocks of float32 logits that are never written, without a gradient and with `sparse`. Otherwise all
            matrices are converted at each call, and products are those of float32, which take 3 to 7 times as long as
            those of bfloat16 where the processor has instructions for these (measured with AMX). None:
            that of `hidden`.
        support: statistics of the probabilities renormalised over the classes that a sampler could have drawn, see
            `prefuse.Support`. The backward pass makes the logits again; `group`, `sparse`, `label_smoothing`, a
            reference and plans but "recompute" are refused beside it, and ``result.plan`` is None.

    Returns:
        A `LinearTokenStats`: one [*lead] tensor per statistic, float32 (float64 for float64 hidden states).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device, layout or range, or a plan that is not possible here.
    """
    names = check_statistics(stats, reference_hidden, "reference_hidden")
    smoothing = check_smoothing(label_smoothing)
    wanted = differentiable_statistics(names, differentiable)
    made = names_of(bits_of(names))
    asked = smoothed(made, smoothing)
    check_group(group, names)
    if check_support(support, names) is not None:
        check_alone(
            {
                "group": group,
                "scatter_gradient": scatter_gradient,
                "sparse": sparse,
                "label_smoothing": smoothing,
                "plan": plan,
            }
        )
    with gathered_head(weight, bias, lora, reference_weight, reference_bias):
        operands = check_operands(
            hidden,
            weight,
            labels,
            bias=bias,
            lora=lora,
            reference=reference_of(names, reference_hidden, reference_weight, reference_bias),
            mask=mask,
            ignore_index=ignore_index,
            temperature=temperature,
            softcap=softcap,
            scale=scale,
            logits_dtype=logits_dtype,
            names=asked,
            plain=group is None and support is None,
            tiles=support is None,
            sparse=sparse,
        )
        if support is not None:
            found = supported(
                operands,
                operands.scored_index(),
                names,
                wanted,
                check_k(k),
                support,
                check_workspace(workspace_bytes) or WORKSPACE_BYTES,
            )
            return LinearTokenStats(found, None)
        check_scattered(scatter_gradient, group, labels, lora)
        statistics = Statistics(
            asked,
            smoothed([name for name in made if name in wanted], smoothing),
            check_k(k),
            smoothing,
            keeps_wide(gradient_dtype, operands.inputs[0]),
            shard_of(group, operands.weights[0], scatter_gradient),
        )
        index = operands.scored_index()
        statistics = settle(sparse, operands, statistics, index)
        chosen = choose(operands.job(index, statistics), check_workspace(workspace_bytes), plan)
        stacked, chosen = run(operands, statistics, index, chosen)
        # The stack is saved for backward; what is handed out may be changed in place.
        values = [value.clone() if stacked.requires_grad else value for value in stacked.unbind(0)]
        found = dict(zip(made, values, strict=True))
    return LinearTokenStats({name: found[name] if name in wanted else found[name].detach() for name in names}, chosen)


class HeadOptions(TypedDict, total=False):
    """How the fused head runs: keyword arguments of `linear_token_stats`, where they are explained."""

    temperature: float | Tensor
    softcap: float | None
    scale: float
    label_smoothing: float
    gradient_dtype: torch.dtype | None
    plan: str | None
    workspace_bytes: int | None
    group: ProcessGroup | None
    scatter_gradient: bool
    sparse: float | str | Sparse | None
    logits_dtype: torch.dtype | None
    support: Support | None


class LogpOptions(HeadOptions, total=False):
    """Those of log-probabilities, beside what says which tokens are scored."""

    bias: Tensor | None
    lora: Lora | None


class TokenLogpOptions(LogpOptions, total=False):
    """Those of log-probabilities by token."""

    mask: Tensor | None
    ignore_index: int


def linear_token_logps(hidden: Tensor, weight: Tensor, labels: Tensor, **options: Unpack[TokenLogpOptions]) -> Tensor:
    """log p(label) of every label token in nats: ``log_softmax(hidden @ weight.T + bias)`` gathered, none of it whole.

    The arguments are those of `linear_token_stats`; with the weight frozen, forward and backward take two GEMMs,
    whatever is computed of the log-probabilities.

    Returns:
        [*lead], float32 (float64 for float64 hidden states); 0 where a row is ignored.
    """
    return linear_token_stats(hidden, weight, labels, "logp", **options).logp


def linear_sequence_logps(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    average: bool = False,
    shift: bool = False,
    ignore_index: int = -100,
    **options: Unpack[LogpOptions],
) -> Tensor:
    """log p(response), one number per response, in nats: `sequence_logps` from hidden states.

    Args:
        hidden: padded [B, T, H], or packed [N, H] or [1, N, H] together with `cu_seqlens`.
        weight: [V, H].
        labels: [B, T], or [N] or [1, N].
        mask: the shape of `labels`; 0 marks tokens to ignore.
        cu_seqlens: [R + 1] integers, where each packed response begins and the last ends.
        average: divide each sum by the response's number of scored tokens (at least 1).
        shift: labels and mask are aligned with the input tokens: position t is scored with the hidden state of t − 1.
        ignore_index: the label that marks tokens to ignore.
        options: further arguments of `linear_token_stats`.

    Returns:
        [B] or [R], float32 (float64 for float64 hidden states).
    """
    check_flag("average", average)
    cu_seqlens = check_layout(labels, mask, cu_seqlens)
    if check_flag("shift", shift):
        labels, mask = shift_left(labels, mask, ignore_index, cu_seqlens)
    logps = linear_token_logps(hidden, weight, labels, mask=mask, ignore_index=ignore_index, **options)
    sums = sum_responses(logps, sent(cu_seqlens, logps.device))
    if not average:
        return sums
    return sums / sent(count_scored(labels, mask, ignore_index, cu_seqlens), logps.device).clamp(min=1)
