"""Process groups: what is asked of them here, and the batch that the processes of a data-parallel group have together.

Every process scores the whole batch: of each column it has its own part, in which gradients flow, and the values of the
others, which are constants to it. With P processes and L the loss of the whole batch, process r passes back

    P · dL/d(its own part)

since data-parallel training (DDP, FSDP) averages the gradients of parameters over the processes: the mean over r is
Σ_r dL/d(part r) · d(part r)/d(parameter), the gradient of L.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def check_process_group(name: str, group: Any) -> None:
    """Refuses what is neither None nor a process group that this process belongs to.

    Raises:
        TypeError: names the argument and what came.
    """
    if group is not None and not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        raise TypeError(
            f"{name}: expected a torch.distributed.ProcessGroup that this process belongs to, got {group!r}"
        )


def all_gather(mine: Tensor, group: Any) -> Tensor:
    """[P, *shape] of every process's tensor, by rank."""
    size = dist.get_world_size(group)
    everyone = mine.new_empty(size * mine.numel())  # flat: gloo takes no further dimension
    dist.all_gather_into_tensor(everyone, mine.reshape(-1), group=group)
    return everyone.view(size, *mine.shape)


class WholeBatch:
    """How the batches of all processes of a group lie end to end, in order of rank.

    Args:
        group: the process group; making this is a collective call, for whose result the host waits.
        items: how many this process has.
        device: where its columns are.
    """

    def __init__(self, group: Any, items: int, device: torch.device) -> None:
        self.group = group
        self.counts: list[int] = all_gather(torch.tensor([items], device=device), group).flatten().tolist()
        self.first = sum(self.counts[: dist.get_rank(group)])

    def exchange(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The columns [items] of all processes, [Σ items] each, detached: a collective call."""
        if not columns:
            return {}
        words = torch.stack([_to_words(column.detach()) for column in columns.values()])
        room = max(self.counts) - words.shape[1]
        everyone = all_gather(torch.nn.functional.pad(words, (0, room)), self.group)
        parts = [part[:, :count] for part, count in zip(everyone, self.counts, strict=True)]
        whole = torch.cat(parts, 1)
        return {name: _from_words(row, columns[name].dtype) for name, row in zip(columns, whole, strict=True)}

    def blank(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Zeros in the place of `exchange`: for values that nobody looks at."""
        return {name: column.new_zeros(sum(self.counts)) for name, column in columns.items()}

    def with_own(self, whole: Tensor, own: Tensor) -> Tensor:
        """`whole` with `own` as this process's part, to which gradients flow, times the number of processes."""
        joined: Tensor = _Joined.apply(whole, own, self.first, len(self.counts))
        return joined


class _Joined(torch.autograd.Function):
    """A part put into a whole of constants; back, the part's gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, own: Tensor, first: int, factor: int) -> Tensor:
        ctx.part, ctx.factor = slice(first, first + own.shape[0]), factor
        joined = whole.clone()
        joined[ctx.part] = own
        return joined

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return None, gradient[ctx.part] * ctx.factor, None, None


def _to_words(column: Tensor) -> Tensor:
    """Any column as int64, so that all go in one exchange; no bit of a value is lost."""
    return column.double().view(torch.int64) if column.is_floating_point() else column.to(torch.int64)


def _from_words(words: Tensor, dtype: torch.dtype) -> Tensor:
    return words.view(torch.float64).to(dtype) if dtype.is_floating_point else words.to(dtype)
