"""Columns whose negation torch has put off: memory holds the other sign."""

from __future__ import annotations

import pytest
import torch

import prefuse
from prefuse import objectives


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_negated_values_are_scored(dtype: torch.dtype):
    values = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=dtype)
    zeros = torch.zeros(4, dtype=dtype)
    others = dict.fromkeys(("rejected_logps", "ref_chosen_logps", "ref_rejected_logps"), zeros)
    found = objectives.dpo(chosen_logps=torch._neg_view(values), **others, reduction="none").loss
    torch.testing.assert_close(
        found.double(), -torch.nn.functional.logsigmoid(-0.1 * values.double()), rtol=1e-5, atol=0
    )


def test_their_gradients_and_references():
    zeros = torch.zeros(4)
    others = dict.fromkeys(("rejected_logps", "ref_chosen_logps", "ref_rejected_logps"), zeros)
    gradients = []
    for negated in (torch._neg_view, torch.neg):
        leaf = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
        objectives.dpo(chosen_logps=negated(leaf), **others).loss.backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(4, 5, 7, generator=generator), torch.randint(7, (4, 5), generator=generator)
    reference = torch.randn(4, generator=generator)
    losses = [
        prefuse.preference_loss("dpo", logits=logits, labels=labels, reference=negated(reference)).loss
        for negated in (torch._neg_view, torch.neg)
    ]
    assert torch.equal(*losses)
