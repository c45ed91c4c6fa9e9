"""A vocabulary cut over the processes of a group: each holds some classes, and statistics are put together.

With s the processes, statistics over their own classes combine as

    lse = log Σ_s e^{lse_s},   share_s = e^{lse_s − lse},   logp = log Σ_s e^{logp_s + lse_s − lse}

(the label is one process's class; for the others logp_s = −inf), and expectations under p are weighted by the shares.
The exchange is one all-gather of a few numbers per token; the hidden states' gradient is a sum over the processes.
All processes gather tile by tile, so tiles must have the same rows everywhere: plans are made for the widest part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from prefuse._backends.rows import REFERENCE_STATISTICS
from prefuse._parallel.data import all_gather

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

UNSUPPORTED = frozenset({"top1", "topk_mass", "topk_entropy"})
"""Statistics that do not follow from each process's own."""


@dataclass(frozen=True)
class Shard:
    """Which classes this process holds: from `first_class` on, of `classes` in all; `name` is the group's, or empty.

    `widest` is the largest number of classes that one process holds; `scattered` says that of a sum over the processes
    each gets its own share of rows alone: the first process the first, and so on.
    """

    name: str = ""
    first_class: int = 0
    classes: int | None = None
    widest: int | None = None
    scattered: bool = False

    @property
    def group(self) -> ProcessGroup | None:
        """The process group; None where the vocabulary is not cut."""
        found: ProcessGroup | None = _resolve(self.name) if self.name else None
        return found

    def combine(self, names: Sequence[str], table: Tensor, width: int) -> Tensor:
        """Statistics over the whole vocabulary from `table` [S, N], those over this process's `width` classes."""
        if not self.name:
            return table
        parts = dict(zip(names, table.unbind(0), strict=True))
        if "mean_logit" in parts and self.classes:
            parts["mean_logit"] = parts["mean_logit"] * (width / self.classes)
        everyone = all_gather(torch.stack([parts[name] for name in names]), self.group)
        combined = combine(dict(zip(names, everyone.double().unbind(1), strict=True)))
        return torch.stack([combined[name] for name in names]).to(table.dtype)

    def reduce(self, total: Tensor) -> Tensor:
        """`total` summed over the processes, in place; scattered: outside of this process's rows it is anything."""
        if self.name and not (self.scattered and self._scatter(total)):
            dist.all_reduce(total, group=self.group)
        return total

    def _scatter(self, total: Tensor) -> bool:
        """Puts the sums of this process's rows into `total`; False where the backend cannot (gloo of old versions)."""
        rank, rows = dist.get_rank(self.group), total.shape[0] // dist.get_world_size(self.group)
        own = total.new_empty(rows, *total.shape[1:])
        try:
            dist.reduce_scatter_tensor(own, total.contiguous(), group=self.group)
        except RuntimeError as error:
            if "does not support reduce_scatter" not in str(error):
                raise
            return False
        total[rank * rows : (rank + 1) * rows] = own
        return True


def shard_of(group: ProcessGroup | None, weight: Tensor, scattered: bool = False) -> Shard:
    """The shard of this process, whose classes follow those of the lower ranks; they tell each other how many.

    On a GPU the host waits for the answer, at every call: a size remembered from an earlier one may be another
    process's no longer, and that process would wait for an exchange in which this one takes no part.
    """
    if group is None:
        return Shard()
    rank, width = dist.get_rank(group), weight.shape[0]
    if weight.is_meta:  # nothing to exchange: as if all held as many
        counts = [width] * dist.get_world_size(group)
    else:
        counts = all_gather(torch.tensor([width], device=weight.device), group).flatten().tolist()
    return Shard(group.group_name, sum(counts[:rank]), sum(counts), max(counts), scattered)


def needs(names: Sequence[str]) -> tuple[str, ...]:
    """The statistics that tell how much each part weighs."""
    return ("lse", "ref_lse") if not REFERENCE_STATISTICS.isdisjoint(names) else ("lse",)


def combine(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Statistics of the whole vocabulary from those of its P parts, each [P, N].

    `mean_logit` comes as each part's share of the mean: its own times its number of classes over that of all.
    """
    lse, log_share = _normalise(parts["lse"])
    ref_lse, ref_log_share = _normalise(parts["ref_lse"]) if "ref_lse" in parts else (lse, log_share)
    rules: dict[str, Callable[[Tensor], Tensor]] = {
        "lse": lambda part: lse,
        "ref_lse": lambda part: ref_lse,
        "logp": lambda part: torch.logsumexp(part + log_share, 0),
        "ref_logp": lambda part: torch.logsumexp(part + ref_log_share, 0),
        "entropy": lambda part: _expected(log_share, part - log_share),
        "log_sum_sq": lambda part: torch.logsumexp(part + 2 * log_share, 0),
        "mean_logit": lambda part: part.sum(0),
        "kl": lambda part: _expected(log_share, part + log_share - ref_log_share),
        "rkl": lambda part: _expected(ref_log_share, part + ref_log_share - log_share),
    }
    return {name: rules[name](part) for name, part in parts.items()}


def _normalise(lse: Tensor) -> tuple[Tensor, Tensor]:
    """The whole's lse, and the logarithm of each part's share, −inf where it has none."""
    total = torch.logsumexp(lse, 0)
    return total, torch.where(lse == -math.inf, -math.inf, lse - total)


def _expected(log_share: Tensor, values: Tensor) -> Tensor:
    """Σ share·value, where a share of 0 takes no part."""
    return torch.where(log_share == -math.inf, 0.0, log_share.exp() * values).sum(0)


def _resolve(name: str) -> Any:
    return dist.distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined, arg-type]
