"""ms-swift's own function on random logits is what is measured beside prefuse."""

from __future__ import annotations

import types

import torch
from torch.nn import functional as F

from prefuse.bench import trainers
from tests.devices import integers, normal


def test_what_is_measured():
    from swift.rlhf_trainers.rlhf_mixin import RLHFTrainerMixin

    labels = integers(30, 4, 9, seed=1)
    for row, (start, end) in enumerate([(2, 9), (1, 5), (3, 6), (4, 8)]):
        labels[row, :start] = labels[row, end:] = -100
    hidden, weight = normal(4, 9, 8, seed=3), normal(30, 8, seed=4)
    trainer = types.SimpleNamespace(template=types.SimpleNamespace(sequence_parallel_size=1))
    logits = F.linear(hidden, weight)
    theirs, _, _ = RLHFTrainerMixin.get_per_token_logps(trainer, logits, labels.roll(-1, 1))
    torch.testing.assert_close(trainers.swift(hidden, weight, labels), theirs[:, :-1])
