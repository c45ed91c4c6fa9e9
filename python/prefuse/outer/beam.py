"""Likelihood search on a DPO policy: beam search (from r to Q*, arXiv:2404.12358)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ._weights import check_count


class Beams(NamedTuple):
    """What a beam search found, best first.

    Attributes:
        tokens: [W, T] generated tokens, without the prompt; after its end a sequence repeats the end token.
        logps: [W] their log-probabilities, in nats, the end token included.
        lengths: [W] tokens generated, the end token included.
    """

    tokens: Tensor
    logps: Tensor
    lengths: Tensor


@torch.no_grad()
def beam_search(
    next_logps: Callable[[Tensor], Tensor],
    prompt: Tensor,
    *,
    width: int = 5,
    length: int,
    end: int | None = None,
) -> Beams:
    """The likeliest continuations, found with a beam (Rafailov et al. 2024, from r to Q*, arXiv:2404.12358, section 5).

    For a policy trained by DPO, ``β log π`` summed to a prefix is its return so far plus the value of where it leads,
    less a constant of the prompt: searching by likelihood is searching by reward and value. The paper found a width of
    5 best, and wider beams wordy. No length normalisation: that sum is the score.

    `transformers` has the same as ``generate(num_beams=5, length_penalty=0.0)``; here the model is any function.

    Args:
        next_logps: log-probabilities of the next token, [W, V], from tokens [W, prompt + generated].
        prompt: [T] integers.
        width: W, at least 1; 1 is greedy.
        length: tokens to generate at most.
        end: token after which a sequence is complete; None: all have the full length.

    Returns:
        `width` sequences, or as many as there are.

    Raises:
        ValueError: a width or length below 1.
    """
    check_count("width", width)
    check_count("length", length)
    tokens = prompt.new_empty((1, 0))
    scores = torch.zeros(1, dtype=torch.float64, device=prompt.device)
    lengths = torch.zeros(1, dtype=torch.int64, device=prompt.device)
    done = torch.zeros(1, dtype=torch.bool, device=prompt.device)
    for _ in range(length):
        if bool(done.all()):
            break
        logps = next_logps(torch.cat([prompt.expand(len(tokens), -1), tokens], 1)).to(scores)
        if end is not None:  # a complete sequence goes on in one way only, which costs nothing
            logps = torch.where(done[:, None], -torch.inf, logps)
            logps[:, end] = torch.where(done, 0.0, logps[:, end])
        totals = (scores[:, None] + logps).flatten()
        best = totals.topk(min(width, int((totals > -torch.inf).sum()))).indices
        beam, token = best // logps.shape[1], best % logps.shape[1]
        tokens = torch.cat([tokens[beam], token[:, None].to(tokens)], 1)
        scores, lengths = totals[best], lengths[beam] + ~done[beam]
        done = done[beam] if end is None else done[beam] | (token == end)
    return Beams(tokens, scores, lengths)
