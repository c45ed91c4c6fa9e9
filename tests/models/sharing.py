"""`prefuse.head(model, share_prompts=True)` beside the same head without, family by family."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

import prefuse
from prefuse.models.sharing import counts, way_of
from tests.models.cases import Case
from tests.models.families import VOCABULARY, build
from tests.models.sweep import GRADIENT, NATS, PADDINGS, Outcome, Verdict, difference, fused, line

PROMPT, RESPONSES = 24, (9, 6)

NARROW = {
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "window_size", "local_attention"), 8),
    **dict.fromkeys(("index_topk", "keep_window_size"), 4),
    "use_sliding_window": True,
}
"""Windows that are shorter than a row, where a configuration has them."""


def case(padding: str) -> Case:
    """Two prompts with two responses each, all chosen before all rejected; only responses are scored."""
    generator = torch.Generator().manual_seed(3)

    def tokens(length: int) -> torch.Tensor:
        return torch.randint(4, VOCABULARY - 19, (2, length), generator=generator)

    prompts, longest = tokens(PROMPT), max(RESPONSES)
    rows, masks = [], []
    for length in RESPONSES:
        filled = longest if padding == "no" else length
        row = torch.cat([prompts, tokens(filled)], 1)
        blank = row.new_full((2, longest - filled), 0)
        parts, ones = (row, blank), (torch.ones_like(row), blank)
        rows.append(torch.cat(parts if padding == "right" else parts[::-1], 1))
        masks.append(torch.cat(ones if padding == "right" else ones[::-1], 1))
    ids, mask = torch.cat(rows), torch.cat(masks)
    labels = ids.masked_fill((mask == 0) | (mask.cumsum(1) <= PROMPT), -100)
    weights = torch.randn(ids.shape, generator=generator)
    inputs = {"input_ids": ids} if padding == "no" else {"input_ids": ids, "attention_mask": mask}
    return Case(inputs, labels, weights)


def verdict(family: str, name: str) -> Verdict:
    """Whether a family shares prompts, and why not; "wrong" where its numbers are others in float64, too.

    With windows longer than the rows, and shorter.
    """
    wide = _verdict(family, name, torch.float32, {})
    narrow = _verdict(family, name, torch.float32, NARROW)
    if wide.what == "wrong":
        wide = _verdict(family, name, torch.float64, {})
    if narrow.what == "wrong":
        narrow = _verdict(family, name, torch.float64, NARROW)
    if narrow.what in ("wrong", "crash"):
        return Verdict(family, name, narrow.what, f"with windows: {narrow.why}")
    if wide.what.startswith("shared") and narrow.what == "whole":
        return Verdict(family, name, wide.what, f"with windows, whole: {narrow.why}")
    return wide


def _verdict(family: str, name: str, dtype: torch.dtype, instead: dict[str, Any]) -> Verdict:
    try:
        model = build(family, name, **instead).to(dtype).eval()
        cases = [case(padding) for padding in PADDINGS]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            wanted = [_outcome(model, each, False) for each in cases]
    except Exception as error:
        return Verdict(family, name, "not built", line(error))
    if any("by its logits" in str(each.message) for each in caught):
        return Verdict(family, name, "by logits")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            errors = [difference(_outcome(model, each, True), right) for each, right in zip(cases, wanted, strict=True)]
        except Exception as error:
            return Verdict(family, name, "crash", line(error))
    value, gradient = (max(column) for column in zip(*errors, strict=True))
    if not (value < NATS and gradient < GRADIENT):
        return Verdict(family, name, "wrong", f"{value:.2g} nats, gradients {gradient:.2g}")
    said = [str(each.message) for each in caught if "share_prompts" in str(each.message)]
    if said:
        return Verdict(family, name, "whole", said[0].partition("computed whole: ")[2])
    causal_lm = prefuse.head(model).causal_lm
    if not counts(causal_lm).spared > 0.2:
        return Verdict(family, name, "wrong", f"nothing spared: {counts(causal_lm)}")
    ways = way_of(causal_lm)
    return Verdict(family, name, "shared, by a mask" if any(way.dense for way in ways) else "shared")


def _outcome(model: nn.Module, given: Case, share: bool) -> Outcome:
    with prefuse.head(model, share_prompts=share) as head:
        return fused(head, model, given)
