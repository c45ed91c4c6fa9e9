"""On-policy alignment before DPO, for images: OPA-DPO (Yang et al. 2025, arXiv:2501.09695)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple

import numpy as np

from ._rows import Part, Rows, table

SEVERITY_WEIGHTS: Mapping[int, float] = {1: 2.5, 2: 2.0, 3: 1.5, 4: 1.0}
"""What a token weighs in a sentence whose error an expert graded 1 (the worst) to 4, in the authors' code."""


class AlignmentSplit(NamedTuple, Generic[Rows]):
    """What to train on, first by SFT, then by DPO from there with that model as the reference.

    Attributes:
        alignment: `prompt` and `completion`: the ground truth of each row, then the revised response of each.
        preference: `chosen` (the ground truth), `rejected` (the policy's own) and `revised`, as `opa_dpo` reads them.
    """

    alignment: Rows
    preference: Rows


def on_policy_alignment(
    rows: Rows,
    *,
    ground_truth: str = "ground_truth",
    own: str = "response",
    revised: str = "revised",
    prompt: str = "prompt",
    shared: Sequence[str] = (),
) -> AlignmentSplit[Rows]:
    """Split judged responses into what aligns the model with its data and what it prefers afterwards.

    The policy answered, an expert graded its sentences and rewrote what is wrong. Training on ground truth and revised
    responses first makes both likely under the policy, which is what DPO can then compare.

    Args:
        rows: one per prompt.
        ground_truth, own, revised: the columns of the three responses.
        prompt: the column of the prompt.
        shared: further columns of the prompt, such as the image, kept in both; the others only in `preference`.
    """
    given = table(rows)
    given.require(prompt, *shared, ground_truth, own, revised)
    everything = np.arange(len(given))
    kept = {name: name for name in (prompt, *shared)}
    truths, revisions = (
        given.gathered([Part(everything, kept | {response: "completion"})]) for response in (ground_truth, revised)
    )
    roles = {ground_truth: "chosen", own: "rejected", revised: "revised"}
    names = {name: roles.get(name, name) for name in given.names} or kept | roles
    preference = given.gathered([Part(everything, names)])
    return AlignmentSplit(table(truths).followed_by([revisions]), preference)


def severity_weights(severities: Sequence[int | None], lengths: Sequence[int]) -> list[float]:
    """The weight of each token of a response from its sentences' grades: the token column ``severity`` of `opa_dpo`.

    Args:
        severities: grade of each sentence, 1 to 4, or None where nothing is wrong, which weighs 1.
        lengths: tokens of each sentence.

    Raises:
        ValueError: there is no such grade, or not one length per sentence.
    """
    if len(severities) != len(lengths):
        raise ValueError(f"lengths: expected {len(severities)}, one per sentence, got {len(lengths)}")
    weights: list[float] = []
    for index, (grade, length) in enumerate(zip(severities, lengths, strict=True)):
        if grade is not None and grade not in SEVERITY_WEIGHTS:
            raise ValueError(f"severities: expected 1 to 4 or None, got {grade!r} at {index}")
        weights += [1.0 if grade is None else SEVERITY_WEIGHTS[grade]] * length
    return weights
