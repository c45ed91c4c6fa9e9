"""Two adapters that chase each other: OFS-DPO, and COFS-DPO's merging of their descendants (arXiv:2406.05534)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import prefuse.objectives as objectives

from ._weights import check_alike, check_count

Logps = Callable[[nn.Module], tuple[Tensor, Tensor]]


@dataclass
class Learner:
    """A module and its optimiser: the fast one's learning rate is the higher.

    The learning rate stays with the module when roles are swapped.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer


class FastSlow:
    """A fast and a slow learner on the same stream of pairs (Qi et al. 2024, OFS-DPO, arXiv:2406.05534).

    Each takes DPO's step against the frozen reference, plus a term that pulls the fast one ahead of the slow one and
    keeps gradients alive where DPO's have faded. Now and then the one with the lower DPO loss takes the fast role.
    """

    def __init__(
        self,
        fast: Learner,
        slow: Learner,
        *,
        beta: float = 0.1,
        alpha: float = 0.2,
        limit: float = 10.0,
        interval: int = 10,
    ) -> None:
        """Pair two learners.

        Args:
            fast, slow: of one architecture, with separate parameters.
            beta, alpha, limit: of `prefuse.objectives.ofs_dpo`.
            interval: steps between two comparisons of the learners.

        Raises:
            ValueError: no interval, the same module twice, or a hyper-parameter outside its bounds.
        """
        check_count("interval", interval)
        if fast.module is slow.module:
            raise ValueError("slow: has the same module as fast; expected one of its own")
        self.fast, self.slow, self.swaps = fast, slow, 0
        self._interval, self._steps, self._lead = interval, 0, 0.0
        self._dpo = objectives.dpo(beta=beta)
        self._losses = {
            role: objectives.ofs_dpo(beta=beta, alpha=alpha, limit=limit, module=role) for role in ("fast", "slow")
        }

    def step(self, logps: Logps, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor) -> tuple[float, float]:
        """Train both on one batch, and swap the roles if it is time and the slow one is ahead.

        Args:
            logps: log-probabilities of the batch's chosen and rejected responses under a module, [B] each, with
                gradients.
            ref_chosen_logps, ref_rejected_logps: under the reference, [B].

        Returns:
            DPO losses of fast and slow before the step.
        """
        reference = {"ref_chosen_logps": ref_chosen_logps, "ref_rejected_logps": ref_rejected_logps}
        fast, slow = logps(self.fast.module), logps(self.slow.module)
        before = []
        for role, learner, own, other in (("fast", self.fast, fast, slow), ("slow", self.slow, slow, fast)):
            columns = {"chosen_logps": own[0], "rejected_logps": own[1], **reference}
            others = {"chosen_other_logps": other[0].detach(), "rejected_other_logps": other[1].detach()}
            before.append(self._dpo(**{name: column.detach() for name, column in columns.items()}).loss.item())
            learner.optimizer.zero_grad()
            self._losses[role](**columns, **others).loss.backward()
            learner.optimizer.step()
        self._compare(*before)
        return before[0], before[1]

    def _compare(self, fast_loss: float, slow_loss: float) -> None:
        self._steps += 1
        self._lead += fast_loss - slow_loss
        if self._steps % self._interval == 0:
            if self._lead > 0.0:
                self.fast, self.slow = self.slow, self.fast
                self.swaps += 1
            self._lead = 0.0


def merge_weights(weights: Sequence[Mapping[str, Tensor]], shares: Sequence[float]) -> dict[str, Tensor]:
    """Weighted mean of several sets of weights: ``Σ_i λ_i θ_i`` with ``Σ λ = 1`` (COFS-DPO).

    Args:
        weights: by name, one mapping per domain's fast module. What is not floating point is taken from the first.
        shares: λ, each in [0, 1].

    Returns:
        New tensors by name.

    Raises:
        ValueError: no weights, another number of shares, shares that do not add up to 1, or names and shapes that
            differ.
    """
    if not weights or len(weights) != len(shares):
        raise ValueError(
            f"shares: expected one for each of {len(weights)} sets of weights (at least 1), got {len(shares)}"
        )
    if min(shares) < 0.0 or abs(sum(shares) - 1.0) > 1e-6:
        raise ValueError(f"shares: expected numbers from 0 that add up to 1, got {list(shares)}")
    for number, others in enumerate(weights):
        check_alike(weights[0], others, ("weights[0]", f"weights[{number}]"))
    return {
        name: sum(
            (share * others[name] for share, others in zip(shares, weights, strict=True)), torch.zeros_like(first)
        )
        if first.is_floating_point()
        else first.clone()
        for name, first in weights[0].items()
    }


def fit_shares(
    weights: Sequence[Mapping[str, Tensor]], loss: Callable[[dict[str, Tensor]], float], *, resolution: int = 10
) -> tuple[float, ...]:
    """The shares of `merge_weights` whose merged weights have the lowest loss on a replay memory (COFS-DPO).

    As reconstructed: the paper minimises over the memory; here every point of a grid on the simplex is tried, which
    has ``C(resolution + n - 1, n - 1)`` points for n sets of weights.

    Args:
        weights: as in `merge_weights`.
        loss: the mean loss of merged weights over the memory; load them with ``load_state_dict`` or
            ``torch.func.functional_call``.
        resolution: steps between 0 and 1.

    Returns:
        λ, one per set; of equally good ones the first.
    """
    check_count("resolution", resolution)
    grid = (tuple(part / resolution for part in parts) for parts in _compositions(resolution, len(weights)))
    return min(grid, key=lambda shares: loss(merge_weights(weights, shares)))


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write `total` as an ordered sum of so many integers from 0."""
    if parts <= 1:
        yield (total,) * parts
        return
    for first in range(total, -1, -1):
        for rest in _compositions(total - first, parts - 1):
            yield (first, *rest)
