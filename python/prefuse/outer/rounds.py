"""Rounds of sampling, judging and training: iterative DPO, SPPO, INPO, DNO, Accelerated PO, VPO."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from torch import Tensor, nn

from ._weights import check_count, copied, load
from .extrapolation import extrapolate_weights
from .reference import frozen_copy, refresh_reference
from .selection import Selection

R = TypeVar("R")
Responses = TypeVar("Responses")
Pair = TypeVar("Pair")


class Round(NamedTuple):
    """What a round has to work with.

    Attributes:
        number: from 0.
        policy: to sample from and to train in place.
        previous: the policy as the round began, frozen: π_t, the reference of iterative DPO, SPPO and DNO.
    """

    number: int
    policy: nn.Module
    previous: nn.Module


def run_rounds(policy: nn.Module, step: Callable[[Round], R], *, rounds: int = 3, acceleration: float = 0.0) -> list[R]:
    """Train a policy in rounds, each of which starts with a fresh reference: the policy as the last one left it.

    Args:
        policy: trained in place.
        step: does a round, from sampling to training, and returns whatever is worth keeping of it.
        rounds: how many; 3 in most papers.
        acceleration: α of Accelerated PO (He et al. 2024, arXiv:2410.06293), 0.3 there: between rounds the policy is
            extrapolated, ``θ_{t+1} = θ̂_{t+1} + α (θ̂_{t+1} - θ̂_t)``, and the next round samples from, starts at and
            refers to θ_{t+1}. Not after the last: the result is what it trained.

    Returns:
        What the steps returned, in order.

    Raises:
        ValueError: no rounds, or a negative acceleration.
    """
    check_count("rounds", rounds)
    if acceleration < 0.0:
        raise ValueError(f"acceleration: expected 0 or more, got {acceleration!r}")
    previous, results = frozen_copy(policy), []
    trained = copied(policy) if acceleration else {}
    for number in range(rounds):
        if number > 0:
            if acceleration:
                current = copied(policy)
                load(policy, extrapolate_weights(current, trained, alpha=acceleration))
                trained = current
            refresh_reference(previous, policy)
        results.append(step(Round(number, policy, previous)))
    return results


def preference_rounds(
    policy: nn.Module,
    *,
    sample: Callable[[Round], Responses],
    judge: Callable[[Responses], Tensor],
    select: Callable[[Tensor], Selection],
    train: Callable[[Round, Responses, Selection], R],
    rounds: int = 3,
    acceleration: float = 0.0,
) -> list[R]:
    """Rounds of sample, judge, select, train: the loop that iterative DPO, SPPO, INPO and DNO share.

    | method | `select` | objective in `train` | reference |
    | --- | --- | --- | --- |
    | iterative DPO | `best_and_worst` | `dpo` | ``round.previous`` |
    | SPPO (arXiv:2405.00675) | `best_and_worst` | `sppo` with its win rates | ``round.previous`` |
    | DNO (arXiv:2404.03715) | `all_pairs` | `dno` with its win rates | ``round.previous`` |
    | DNO-Prct | `all_pairs` with a gap | `dpo` | ``round.previous`` |
    | INPO (arXiv:2407.00617) | `knockout` | `inpo`, ``round.previous`` in its ``previous_logps`` | the first policy |

    Args:
        policy: trained in place.
        sample: draws K responses to each of the round's prompts from ``round.policy``; papers use new prompts each
            round, and K of 5 (SPPO, DNO) or 8 (INPO).
        judge: the win matrices [B, K, K] of those responses (`win_matrix` makes them from scores).
        select: pairs from win matrices.
        train: trains ``round.policy`` on the pairs.
        rounds, acceleration: as in `run_rounds`.

    Returns:
        What `train` returned, round by round.
    """

    def step(current: Round) -> R:
        responses = sample(current)
        return train(current, responses, select(judge(responses)))

    return run_rounds(policy, step, rounds=rounds, acceleration=acceleration)


def growing_rounds(collect: Callable[[int], Iterable[Pair]], fit: Callable[[list[Pair]], R], *, rounds: int) -> list[R]:
    """Rounds that refit on all preferences collected so far: online VPO (Cen et al. 2024, arXiv:2405.19320).

    Args:
        collect: given the round's number from 0, samples two responses to each of its prompts from the policy, has
            them labelled, and returns the pairs.
        fit: minimises the loss over all pairs so far: `prefuse.objectives.vpo` with ``mode="online"``, whose
            calibration responses come from a fixed policy such as the reference. The list is the loop's own: it grows.
        rounds: how many.

    Returns:
        What `fit` returned, round by round.

    Raises:
        ValueError: no rounds.
    """
    check_count("rounds", rounds)
    pairs: list[Pair] = []
    results = []
    for number in range(rounds):
        pairs.extend(collect(number))
        results.append(fit(pairs))
    return results
