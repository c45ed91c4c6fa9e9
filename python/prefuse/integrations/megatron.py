"""Megatron-core's cross entropy over a vocabulary in parts, by prefuse; and log-probabilities from hidden states.

``prefuse.integrations.megatron.accelerate()`` replaces `vocab_parallel_cross_entropy` and its fused form, which take
logits. `token_stats` takes the hidden states as Megatron-core and NeMo-RL have them at the end of their model,
sequence-parallel or not, and this rank's rows of the output layer, and makes no logits.

The line is called in each process that torchrun starts, before the model is built: at the top of the training script.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from prefuse._parallel.data import all_gather, check_process_group
from prefuse._parallel.vocabulary import Shard
from prefuse._patches import Acceleration, Patch
from prefuse.functional import token_stats as logits_token_stats
from prefuse.integrations._functions import replace
from prefuse.integrations._places import Framework
from prefuse.linear.functions import LinearTokenStats, linear_token_stats

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["MEGATRON", "accelerate", "token_stats", "vocab_parallel_cross_entropy"]

MEGATRON = Framework("megatron-core", "megatron", ("0.19.2",))

_PLAIN = "megatron.core.tensor_parallel.cross_entropy"
_FUSED = "megatron.core.fusions.fused_cross_entropy"
_STATE = "megatron.core.parallel_state"
IGNORED = -100


def accelerate() -> Acceleration:
    """Runs Megatron-core's vocabulary-parallel cross entropy of this process on prefuse.

    Losses are float32, the gradient has the dtype of the logits (the fused form's own is bfloat16 always). Logits are
    not overwritten, a target of −100 gives 0 and no gradient, and label smoothing is that of the whole vocabulary,
    where Megatron-core 0.19.2 takes this rank's part for it and its ranks get different losses. Tensors of other
    devices than CPU and CUDA go to Megatron's own functions, and so does TransformerEngine's cross entropy.

    Returns:
        An `Acceleration`, whose `remove` puts Megatron's functions back.

    Raises:
        ImportError: megatron-core is not installed.
        RuntimeError: the installed one has other functions; nothing was changed.
    """
    MEGATRON.version()
    plain, fused, state = (MEGATRON.find(path) for path in (_PLAIN, _FUSED, _STATE))
    MEGATRON.check(
        plain, "vocab_parallel_cross_entropy", ("vocab_parallel_logits", "target", "label_smoothing", "tp_group")
    )
    MEGATRON.check(fused, "fused_vocab_parallel_cross_entropy", ("vocab_parallel_logits", "target", "tp_group"))
    if not hasattr(state, "get_tensor_model_parallel_group"):
        raise MEGATRON.moved(f"{_STATE}.get_tensor_model_parallel_group")

    def make_plain(patch: Patch) -> Any:
        def run(
            vocab_parallel_logits: Tensor, target: Tensor, label_smoothing: float = 0.0, tp_group: Any = None
        ) -> Any:
            if not _ours(patch, vocab_parallel_logits):
                return patch.original(vocab_parallel_logits, target, label_smoothing, tp_group)
            group = state.get_tensor_model_parallel_group() if tp_group is None else tp_group
            return vocab_parallel_cross_entropy(vocab_parallel_logits, target, label_smoothing, group)

        return run

    def make_fused(patch: Patch) -> Any:
        def run(vocab_parallel_logits: Tensor, target: Tensor, tp_group: Any) -> Any:
            if not _ours(patch, vocab_parallel_logits):
                return patch.original(vocab_parallel_logits, target, tp_group)
            return vocab_parallel_cross_entropy(vocab_parallel_logits, target, 0.0, tp_group)

        return run

    acceleration = Acceleration()
    name = "vocab_parallel_cross_entropy"
    replace(acceleration, plain, name, make_plain, f"{_PLAIN}.{name}")
    replace(acceleration, fused, f"fused_{name}", make_fused, f"{_FUSED}.fused_{name}")
    return acceleration


def vocab_parallel_cross_entropy(
    vocab_parallel_logits: Tensor, target: Tensor, label_smoothing: float = 0.0, tp_group: ProcessGroup | None = None
) -> Tensor:
    """−log p(target) of each token in nats, from logits whose classes lie over the ranks of a group.

    Args:
        vocab_parallel_logits: [*lead, V / P] of this rank, whose first class is its rank times V / P: all ranks have as
            many. They are not changed.
        target: [*lead], ids of the whole vocabulary, the same on all ranks; −100 is not scored.
        label_smoothing: ε in [0, 1): with ``s = ε·V/(V − 1)`` the loss is ``−(1 − s)·log p(target) − s·mean log p``,
            the mean over all V classes.
        tp_group: the process group; None: the logits are whole.

    Returns:
        [*lead], the same on all ranks, float32 (float64 for float64 logits); 0 where the target is −100.

    Raises:
        TypeError, ValueError: as `prefuse.token_stats`; a smoothing out of its range.
    """
    check_process_group("tp_group", tp_group)
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing: expected a number in [0, 1), got {label_smoothing!r}")
    width = vocab_parallel_logits.shape[-1]
    rank, size = (0, 1) if tp_group is None else (dist.get_rank(tp_group), dist.get_world_size(tp_group))
    shard = Shard("" if tp_group is None else tp_group.group_name, rank * width, size * width, width)
    smoothing = label_smoothing * shard.classes / (shard.classes - 1) if label_smoothing else 0.0  # type: ignore[operator]
    scored = target != IGNORED
    if target.device.type == "cpu" and (wrong := target[scored & ((target < 0) | (target >= size * width))]).numel():
        raise ValueError(f"target: expected ids in [0, {size * width}) or {IGNORED}, got {int(wrong[0])}")
    local = target - shard.first_class
    held = scored & (local >= 0) & (local < width)
    names = ("logp", "lse", "mean_logit") if smoothing else ("logp", "lse")
    labels = torch.where(scored, torch.where(held, local, 0), IGNORED)
    own = logits_token_stats(vocab_parallel_logits, labels, names)
    loss: Tensor = _Loss.apply(held, scored, shard, smoothing, width, *own.values())
    return loss


class _Loss(torch.autograd.Function):
    """The loss over the whole vocabulary, from each rank's log p, lse and mean logit over its own classes."""

    @staticmethod
    def forward(
        ctx: Any, held: Tensor, scored: Tensor, shard: Shard, smoothing: float, width: int, *own: Tensor
    ) -> Tensor:
        names = ("logp", "lse", "mean_logit")[: len(own)]
        own_lse = own[1]
        table = torch.stack([torch.where(held, own[0], -torch.inf), *own[1:]]).flatten(1)
        whole = dict(zip(names, shard.combine(names, table, width).view(-1, *held.shape), strict=True))
        loss = -(1 - smoothing) * whole["logp"]
        if smoothing:
            loss = loss - smoothing * (whole["mean_logit"] - whole["lse"])
        ctx.save_for_backward(held, scored, own_lse, whole["lse"])
        ctx.smoothing, ctx.part = smoothing, width / (shard.classes or width)
        return torch.where(scored, loss, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        held, scored, own_lse, lse = ctx.saved_tensors
        gradient = torch.where(scored, gradient, 0.0)
        of_label = (1 - ctx.smoothing) * held
        share = torch.where(own_lse == -torch.inf, 0.0, (own_lse - lse).exp())
        found = [-gradient * of_label, gradient * (share - of_label)]
        if ctx.smoothing:
            found.append(gradient * (-ctx.smoothing * ctx.part))
        return None, None, None, None, None, *found


def token_stats(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    stats: str | Sequence[str] = ("logp",),
    *,
    group: ProcessGroup | None = None,
    sequence_parallel: bool = False,
    bias: Tensor | None = None,
    ignore_index: int = IGNORED,
    differentiable: Sequence[str] | None = None,
    **options: Any,
) -> LinearTokenStats:
    """`prefuse.linear_token_stats` in the layout of Megatron-core and NeMo-RL, tensor- and sequence-parallel.

    Args:
        hidden: [S, B, H], the same on all ranks; or, sequence-parallel, [S / P, B, H]: this rank's positions, which
            follow those of the lower ranks.
        weight: [V / P, H] of this rank, or a DTensor [V, H] that is cut along its rows, ``Shard(0)``, over one
            dimension of a mesh, whose group is `group` then.
        labels: [B, S], the token that each position is to predict (already shifted), the same on all ranks; −100 is
            not scored.
        stats: names of `prefuse.functional`'s table.
        group: the tensor-parallel process group; None: one process has all.
        sequence_parallel: the hidden states are cut along their positions over `group`.
        bias: [V / P] of this rank.
        ignore_index: the label that is not scored.
        differentiable: see `prefuse.linear_token_stats`, and so are the `options`.

    Returns:
        [B, S] tensors by name, in nats, the same on all ranks. The gradient of `hidden` is the whole one for its
        positions, summed over the ranks in float32 and rounded once.

    Raises:
        TypeError, ValueError: as `prefuse.linear_token_stats`; shapes that do not fit each other or the group.
    """
    if hidden.ndim != 3:
        raise ValueError(f"hidden: expected [S, B, H], got {tuple(hidden.shape)}")
    weight, group = _own_rows(weight, group)
    if sequence_parallel:
        if group is None:
            raise ValueError("sequence_parallel: hidden states that are cut need the process group they are cut over")
        hidden = _Gathered.apply(hidden, group)
    expected = (hidden.shape[1], hidden.shape[0])
    if tuple(labels.shape) != expected:
        raise ValueError(f"labels: expected [B, S] = {expected}, got {tuple(labels.shape)}")
    given = {name: _by_position(name, value, expected) for name, value in options.items()}
    made = linear_token_stats(
        hidden,
        weight,
        labels.t(),
        stats,
        group=group,
        bias=bias,
        ignore_index=ignore_index,
        differentiable=differentiable,
        scatter_gradient=sequence_parallel and options.get("lora") is None and options.get("support") is None,
        **given,
    )
    return LinearTokenStats({name: value.t() for name, value in made.items()}, made.plan)


def _by_position(name: str, value: Any, shape: tuple[int, int]) -> Any:
    """An option [B, S] as [S, B], the order in which a rank's positions follow each other."""
    if not isinstance(value, Tensor):
        return value
    if name == "reference_hidden":
        return value.transpose(0, 1)
    if name in ("mask", "temperature"):
        return value.expand(shape).t()
    return value


def _own_rows(weight: Tensor, group: ProcessGroup | None) -> tuple[Tensor, ProcessGroup | None]:
    """This rank's rows, and the group over which they are cut."""
    if not hasattr(weight, "placements"):
        return weight, group
    from torch.distributed.tensor import Shard as Rows

    weight_: Any = weight
    if tuple(weight_.placements) != (Rows(0),):
        raise ValueError(
            f"weight: expected a DTensor whose rows are cut over one dimension, (Shard(0),), got {weight_.placements}"
        )
    own_group = weight_.device_mesh.get_group()
    if group is not None and dist.get_process_group_ranks(group) != dist.get_process_group_ranks(own_group):
        raise ValueError("group: is not the group of the weight's mesh; leave it out")
    rows: Tensor = weight_.to_local()
    return rows, own_group


class _Gathered(torch.autograd.Function):
    """The positions of all ranks, [S, B, H]; back, this rank's part of a gradient, which is summed there."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, group: Any) -> Tensor:
        ctx.own = slice(dist.get_rank(group) * hidden.shape[0], (dist.get_rank(group) + 1) * hidden.shape[0])
        return all_gather(hidden.contiguous(), group).flatten(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient[ctx.own].contiguous(), None


def _ours(patch: Patch, tensor: Tensor) -> bool:
    return patch.active and tensor.device.type in ("cpu", "cuda")
