"""Self-improvement at inference: answers revised by the policy that gave them (SRPO, arXiv:2406.01660)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ._weights import check_count

Prompts = TypeVar("Prompts")
Answers = TypeVar("Answers")


def self_improve(
    prompts: Prompts,
    answer: Callable[[Prompts], Answers],
    revise: Callable[[Prompts, Answers], Answers],
    *,
    revisions: int = 5,
) -> list[Answers]:
    """Answer, then revise the latest answer again and again (Choi et al. 2024, SRPO, arXiv:2406.01660, section 4).

    ``y_0 ~ π(·|x)``, ``y_{k+1} ~ π(·|x, y_k)``, the same model in both: what `prefuse.objectives.srpo` trains.

    Args:
        prompts: x, in whatever form the two functions take; a batch as a rule.
        answer: first answers.
        revise: answers from the prompts and the answers before.
        revisions: how many, 0 or more; 5 in the paper.

    Returns:
        All answers, ``revisions + 1`` of them, the first first.

    Raises:
        ValueError: fewer than 0 revisions.
    """
    check_count("revisions", revisions, 0)
    answers = [answer(prompts)]
    for _ in range(revisions):
        answers.append(revise(prompts, answers[-1]))
    return answers
