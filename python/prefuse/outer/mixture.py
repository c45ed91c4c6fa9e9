"""The geometric mixture of policy and reference that IPO-MD and Nash-MD sample from."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ._weights import check_share


def geometric_mixture(policy: Tensor, reference: Tensor, weight: float) -> Tensor:
    """Log-probabilities of ``π^{1-b} π_ref^b``, normalised, [..., V] (Munos et al. 2023, Nash-MD, arXiv:2312.00886).

    Mixed token by token, as in IPO-MD (Calandriello et al. 2024, arXiv:2403.08635, section 4) and in TRL.

    Args:
        policy: logits or log-probabilities [..., V]. −inf (a banned token) stays banned.
        reference: those of the reference, [..., V].
        weight: b, the share of the reference, in [0, 1]; 0 is the policy, 1 the reference. IPO-MD's is 0.125.

    Raises:
        ValueError: the shapes differ, or a weight outside [0, 1].
    """
    check_share("weight", weight)
    if policy.shape != reference.shape:
        raise ValueError(f"reference: expected shape {tuple(policy.shape)}, got {tuple(reference.shape)}")
    parts = [
        share * torch.log_softmax(logits, -1)
        for share, logits in ((1.0 - weight, policy), (weight, reference))
        if share > 0.0  # 0 · −inf would be NaN
    ]
    return torch.log_softmax(torch.stack(parts).sum(0), -1)


class ReferenceMixture:
    """A logits processor for ``model.generate``: samples from the geometric mixture of the model and a reference.

        policy.generate(**prompts, do_sample=True, logits_processor=[ReferenceMixture(reference, 0.125)])

    `generate` applies it before temperature, top-k and top-p. The reference keeps a cache of keys and values from one
    token to the next, and starts anew where the sequences are not those of the last call with one more token (a new
    prompt, or beams that changed places).
    """

    def __init__(self, reference: nn.Module, weight: float, *, attention_mask: Tensor | None = None) -> None:
        """Mix a reference in.

        Args:
            reference: a causal model of `transformers` with the policy's vocabulary.
            weight: b, the share of the reference, in [0, 1].
            attention_mask: that of the prompts, [R, T], where they are padded (on the left); None: nothing is. It must
                have the rows that the processor sees: with ``num_return_sequences`` or beams, each repeated so often.

        Raises:
            ValueError: a weight outside [0, 1].
        """
        check_share("weight", weight)
        self._reference, self._weight, self._mask = reference, weight, attention_mask
        # `transformers` renamed the argument and the output in 5.x.
        self._name = "cache" if "cache" in inspect.signature(reference.forward).parameters else "past_key_values"
        self._seen: Tensor | None = None
        self._cache: Any = None

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return log-probabilities of the next token, [R, V], from ids [R, T] and the policy's scores [R, V]."""
        return geometric_mixture(scores, self._next_logits(input_ids).to(scores), self._weight)

    def _next_logits(self, ids: Tensor) -> Tensor:
        mask = self._mask_for(ids)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        known = self._seen
        follows = known is not None and known.shape == ids[:, :-1].shape and bool((known == ids[:, :-1]).all())
        new = slice(-1, None) if follows else slice(None)
        output = self._reference(
            input_ids=ids[:, new],
            attention_mask=mask,
            position_ids=positions[:, new],
            use_cache=True,
            **{self._name: self._cache if follows else None},
        )
        self._seen, self._cache = ids, getattr(output, self._name)
        logits: Tensor = output.logits[:, -1]
        return logits

    def _mask_for(self, ids: Tensor) -> Tensor:
        if self._mask is None:
            return torch.ones_like(ids)
        rows, length = self._mask.shape
        if rows != len(ids) or length > ids.shape[1]:
            raise ValueError(
                f"attention_mask: has shape {(rows, length)}, expected that of the prompts of these {len(ids)} "
                f"sequences of {ids.shape[1]} tokens"
            )
        mask = self._mask.to(ids)
        return torch.cat([mask, mask.new_ones(rows, ids.shape[1] - length)], 1)
