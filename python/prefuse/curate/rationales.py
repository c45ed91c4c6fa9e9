"""Pairs that say why: preference optimisation with rationales (Just et al. 2024, arXiv:2407.14477)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ._numbers import Seed, generator
from ._rows import Rows, hooked, table

STYLES = {
    "general": "Say in a sentence or two why response {better} is the better one.",
    "detailed": "Explain in detail, point by point, why response {better} is better than response {worse}.",
}
"""What is asked for: a short reason at a high level, or a specific one."""


def add_rationales(
    rows: Rows,
    explain: Callable[[list[str]], Iterable[str]],
    *,
    style: str = "general",
    prompt: str = "prompt",
    chosen: str = "chosen",
    rejected: str = "rejected",
    shuffle: Seed | None = None,
) -> Rows:
    """Add to each pair a rationale, and the prompt it answers, which shows both responses.

    Any model may explain, the policy itself included. Train on both: the objectives `rationale_dpo` and
    `rationale_orpo` take the rationale's log-probability, given its own prompt, as the role ``rationale``.

    Args:
        rows: one per pair, in text.
        explain: given all rationale prompts, one rationale for each.
        style: ``"general"`` or ``"detailed"``.
        prompt, chosen, rejected: the columns' names.
        shuffle: None lists the chosen response first, as the paper's loader does; a seed or a generator puts it first
            or second at random, so that its place does not tell.

    Returns:
        The pairs with the columns `rationale_prompt` and `rationale`.
    """
    if style not in STYLES:
        raise ValueError(f"style: expected one of {', '.join(STYLES)}, got {style!r}")
    given = table(rows)
    swapped = np.zeros(len(given), bool) if shuffle is None else generator(shuffle).random(len(given)) < 0.5
    texts = zip(given.values(prompt), given.values(chosen), given.values(rejected), swapped.tolist(), strict=True)
    prompts = [_rationale_prompt(STYLES[style], *row) for row in texts]
    rationales = hooked("explain", explain, len(prompts), prompts)
    return given.with_columns({"rationale_prompt": prompts, "rationale": rationales})


def _rationale_prompt(task: str, prompt: Any, chosen: Any, rejected: Any, swapped: bool) -> str:
    first, second = (rejected, chosen) if swapped else (chosen, rejected)
    question = task.format(better="BA"[not swapped], worse="AB"[not swapped])
    return f"Prompt:\n{prompt}\n\nResponse A:\n{first}\n\nResponse B:\n{second}\n\n{question}"
