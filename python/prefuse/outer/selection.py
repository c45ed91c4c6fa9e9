"""Pairs from win matrices ``P[b, i, j]``: how likely response i to prompt b beats response j. Plain PyTorch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Selection(NamedTuple):
    """Pairs by index, [N] each.

    Attributes:
        prompts: which prompt each pair answers.
        chosen: which of its responses is chosen.
        rejected: which is rejected.
        chosen_win_prob: the chosen response's mean win probability against all K, itself included at ½: the policy's
            own win rate is estimated by its samples (SPPO, DNO).
        rejected_win_prob: the same of the rejected one.
    """

    prompts: Tensor
    chosen: Tensor
    rejected: Tensor
    chosen_win_prob: Tensor
    rejected_win_prob: Tensor


def win_matrix(scores: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Win probabilities under Bradley and Terry's model: ``σ((s_i - s_j)/T)``, ½ on the diagonal; [..., K, K].

    Args:
        scores: one per response, [..., K].
        temperature: T above 0.

    Raises:
        ValueError: a temperature that is not above 0.
    """
    if temperature <= 0.0:
        raise ValueError(f"temperature: expected a number above 0, got {temperature!r}")
    return torch.sigmoid((scores[..., :, None] - scores[..., None, :]) / temperature)


def best_and_worst(wins: Tensor) -> Selection:
    """Pair each prompt's response of the highest mean win rate with that of the lowest; ties go to the first.

    A prompt whose responses all tie has no pair.

    Args:
        wins: [B, K, K].

    Raises:
        ValueError: not win matrices.
    """
    rates = _rates(wins)
    chosen, rejected = rates.argmax(1), rates.argmin(1)
    prompts = (rates.amax(1) > rates.amin(1)).nonzero()[:, 0]
    return _selection(rates, prompts, chosen[prompts], rejected[prompts])


def all_pairs(wins: Tensor, *, gap: float = 0.0) -> Selection:
    """Every pair of responses whose mean win rates differ by more than `gap`, the better one chosen (DNO).

    Args:
        wins: [B, K, K].
        gap: 0 or more.

    Raises:
        ValueError: not win matrices, or a negative gap.
    """
    if gap < 0.0:
        raise ValueError(f"gap: expected 0 or more, got {gap!r}")
    rates = _rates(wins)
    prompts, chosen, rejected = (rates[:, :, None] - rates[:, None, :] > gap).nonzero(as_tuple=True)
    return _selection(rates, prompts, chosen, rejected)


def knockout(wins: Tensor) -> Selection:
    """Best and worst of each prompt's responses by knock-out, as INPO judges them (arXiv:2407.00617, section 4).

    Responses meet in input order; the winners of the first round play on for the best, its losers for the worst, and
    the pair is kept if the best beats the worst: of 8 responses that is 11 comparisons instead of 28. A tie goes to
    the first.

    Args:
        wins: [B, K, K] with K a power of two, at least 2; only the entries of matches that take place are looked at,
            except by the win rates in the result.

    Raises:
        ValueError: not win matrices, or another K.
    """
    rates = _rates(wins)
    count, size = rates.shape
    if size < 2 or size & (size - 1):
        raise ValueError(f"wins: a knock-out needs a power of two of responses, at least 2; got {size}")
    players = torch.arange(size, device=wins.device).expand(count, size)
    winners, losers = _match(wins, players)
    while winners.shape[1] > 1:
        winners, losers = _match(wins, winners)[0], _match(wins, losers)[1]
    best, worst = winners[:, 0], losers[:, 0]
    prompts = (wins[torch.arange(count, device=wins.device), best, worst] > 0.5).nonzero()[:, 0]
    return _selection(rates, prompts, best[prompts], worst[prompts])


def _match(wins: Tensor, players: Tensor) -> tuple[Tensor, Tensor]:
    """Winners and losers where neighbours play each other, [B, n/2] each."""
    home, away = players[:, 0::2], players[:, 1::2]
    rows = torch.arange(len(wins), device=wins.device)[:, None]
    home_wins = wins[rows, home, away] >= 0.5
    return torch.where(home_wins, home, away), torch.where(home_wins, away, home)


def _rates(wins: Tensor) -> Tensor:
    if wins.ndim != 3 or wins.shape[1] != wins.shape[2]:
        raise ValueError(f"wins: expected shape [prompts, K, K], got {tuple(wins.shape)}")
    if not bool(((wins >= 0.0) & (wins <= 1.0)).all()):
        raise ValueError("wins: expected probabilities in [0, 1]; at least one is not")
    return wins.mean(2)


def _selection(rates: Tensor, prompts: Tensor, chosen: Tensor, rejected: Tensor) -> Selection:
    return Selection(prompts, chosen, rejected, rates[prompts, chosen], rates[prompts, rejected])
