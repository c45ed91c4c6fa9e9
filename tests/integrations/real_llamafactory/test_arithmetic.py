"""LLaMA-Factory's own functions on random logits: what prefuse has in their place, and what is measured beside it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from prefuse.bench import trainers
from prefuse.integrations.llamafactory import sequence_logps
from tests.devices import integers, normal


def batch():
    labels = integers(30, 4, 9, seed=1)
    for row, (start, end) in enumerate([(2, 9), (1, 5), (3, 6), (4, 8)]):
        labels[row, :start] = labels[row, end:] = -100
    return normal(4, 9, 30, seed=2), labels


@pytest.mark.parametrize("ld_alpha", [None, 0.0, 0.3, 1.0])
def test_sums_of_responses(ld_alpha):
    from llamafactory.train.trainer_utils import get_batch_logps

    logits, labels = batch()
    targets, scored = labels[:, 1:].clamp(min=0), labels[:, 1:] != -100
    logps = logits[:, :-1].log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1) * scored
    ours, lengths = sequence_logps(logps, scored, ld_alpha)
    theirs, counts = get_batch_logps(logits, labels, ld_alpha=ld_alpha)
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(lengths, counts)


def test_what_is_measured():
    from llamafactory.train.trainer_utils import get_batch_logps

    _, labels = batch()
    hidden, weight = normal(4, 9, 8, seed=3), normal(30, 8, seed=4)
    theirs, _ = get_batch_logps(F.linear(hidden, weight), labels)
    torch.testing.assert_close(trainers.llamafactory(hidden, weight, labels), theirs)
