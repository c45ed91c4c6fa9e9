"""Bad input to the fused head, row by row of docs/errors.md: the message is compared in full."""

from __future__ import annotations

import pytest
import torch

import prefuse
from tests.devices import normal
from tests.error_page import HEAD, PAGE, rows

from .oracle import problem

pytestmark = pytest.mark.usefixtures("device")


def bad(**changes):
    return problem(dtype=torch.float32) | changes


BAD = {
    "hidden is no tensor": lambda: {"hidden": [1.0]},
    "hidden of integers": lambda: {"hidden": torch.zeros(37, 8, dtype=torch.int64)},
    "hidden without features": lambda: {"hidden": torch.zeros(37, 0)},
    "weight of another width": lambda: {"weight": torch.zeros(53, 9)},
    "weight the wrong way round": lambda: {"weight": torch.zeros(8, 53)},
    "the head itself as weight": lambda: {"weight": torch.nn.Linear(8, 53)},
    "weight of another rank": lambda: {"weight": torch.zeros(53)},
    "weight partitioned": lambda: {"weight": torch.zeros(0)},
    "weight without classes": lambda: {"weight": torch.zeros(0, 8)},
    "weight of another dtype": lambda: {"weight": torch.zeros(53, 8).double()},
    "bias of another size": lambda: {"bias": torch.zeros(52)},
    "bias of another dtype": lambda: {"bias": torch.zeros(53).double()},
    "labels of another shape": lambda: {"labels": torch.zeros(36, dtype=torch.int64)},
    "labels of floats": lambda: {"labels": torch.zeros(37)},
    "mask of another shape": lambda: {"mask": torch.ones(36, dtype=torch.bool)},
    "an unknown statistic": lambda: {"stats": "logprob"},
    "no statistic": lambda: {"stats": ()},
    "no reference": lambda: {"stats": "kl"},
    "a reference weight alone": lambda: {"reference_weight": torch.zeros(53, 8)},
    "a reference of another shape": lambda: {"stats": "kl", "reference_hidden": torch.zeros(36, 8)},
    "a reference of another vocabulary": lambda: {
        "stats": "kl",
        "reference_hidden": torch.zeros(37, 4),
        "reference_weight": torch.zeros(52, 4),
    },
    "a reference of a wider dtype": lambda: {
        "stats": "kl",
        "reference_hidden": torch.zeros(37, 4, dtype=torch.float64),
        "reference_weight": torch.zeros(53, 4, dtype=torch.float64),
    },
    "a reference of another dtype that shares the weight": lambda: {
        "stats": "kl",
        "reference_hidden": torch.zeros(37, 8, dtype=torch.bfloat16),
    },
    "a reference weight of another dtype": lambda: {
        "stats": "kl",
        "reference_hidden": torch.zeros(37, 4, dtype=torch.bfloat16),
        "reference_weight": torch.zeros(53, 4),
    },
    "an adapter of two": lambda: {"lora": (torch.zeros(2, 8), torch.zeros(53, 2))},
    "an adapter that does not fit": lambda: {"lora": (torch.zeros(2, 7), torch.zeros(53, 2), 1.0)},
    "smoothing of 1": lambda: {"label_smoothing": 1.0},
    "smoothing that is no number": lambda: {"label_smoothing": "a"},
    "no workspace": lambda: {"workspace_bytes": 0},
    "workspace of a float": lambda: {"workspace_bytes": 1e9},
    "an unknown plan": lambda: {"plan": "fused"},
    "a gradient dtype": lambda: {"gradient_dtype": torch.float16},
    "differentiable that is not": lambda: {"stats": ("logp", "top1"), "differentiable": ("top1",)},
    "a temperature of 0": lambda: {"temperature": 0.0},
    "temperatures of another shape": lambda: {"temperature": torch.ones(36)},
    "a softcap below 0": lambda: {"softcap": -1.0},
    "k of 65": lambda: {"stats": "topk_mass", "k": 65},
    "a group that is none": lambda: {"group": "world"},
}


BAD_LOSS = {
    "neither": dict,
    "both": lambda: {"logits": torch.zeros(4, 3, 53), "hidden": torch.zeros(4, 3, 8), "weight": torch.zeros(53, 8)},
    "no weight": lambda: {"hidden": torch.zeros(4, 3, 8)},
    "a weight with logits": lambda: {"logits": torch.zeros(4, 3, 53), "weight": torch.zeros(53, 8)},
    "a plan with logits": lambda: {"logits": torch.zeros(4, 3, 53), "plan": "keep"},
    "inplace": lambda: {"hidden": torch.zeros(4, 3, 8), "weight": torch.zeros(53, 8), "inplace": True},
    "a data group that is none": lambda: {
        "hidden": torch.zeros(4, 3, 8),
        "weight": torch.zeros(53, 8),
        "data_group": 3,
    },
    "a reference weight for log-probabilities": lambda: {
        "hidden": torch.zeros(4, 3, 8),
        "weight": torch.zeros(53, 8),
        "reference_weight": torch.zeros(53, 8),
    },
}


PART = PAGE[PAGE.index(HEAD) : PAGE.index("## What is not an error")]
TABLE = rows(PART)


@pytest.mark.cpu
def test_every_row_of_the_page_is_tested_and_every_case_documented():
    assert [passed for passed, *_ in TABLE] == [*BAD, *BAD_LOSS]


@pytest.mark.parametrize("passed,raises,message,more", TABLE, ids=[row[0] for row in TABLE])
def test_message(passed, raises, message, more):
    with pytest.raises(Exception) as caught:
        if passed in BAD:
            prefuse.linear_token_stats(**bad(**BAD[passed]()))
        else:
            labels, reference = torch.zeros(4, 3, dtype=torch.int64), torch.zeros(4)
            prefuse.preference_loss("dpo", labels=labels, reference=reference, **BAD_LOSS[passed]())
    assert type(caught.value).__name__ == raises
    assert str(caught.value) == message and more is None


@pytest.mark.cpu
@pytest.mark.parametrize("label", [53, -1])
def test_a_label_out_of_range(label):
    given = bad()
    given["labels"][11] = label
    with pytest.raises(ValueError, match=rf"labels: {label} at \[11\], expected 0 <= label < 53"):
        prefuse.linear_token_stats(**given)


@pytest.mark.cpu
def test_a_temperature_out_of_range():
    temperature = torch.ones(37)
    temperature[12] = 0
    with pytest.raises(ValueError, match=r"temperature: 0\.0 at \[12\]"):
        prefuse.linear_token_stats(**bad(temperature=temperature))


def test_a_reference_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r"reference: expected the shape of hidden states, \(4, 3, 8\), of labels"):
        prefuse.preference_loss(
            "dpo",
            labels=torch.zeros(4, 3, dtype=torch.int64),
            hidden=normal(4, 3, 8, seed=1),
            weight=normal(53, 8, seed=2),
            reference=torch.zeros(4, 3, 9),
        )
