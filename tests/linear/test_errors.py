"""Bad input to the fused head: each error names the argument, what came and what was expected."""

from __future__ import annotations

import pytest
import torch

import prefuse
from tests.devices import normal

from .oracle import problem

pytestmark = pytest.mark.usefixtures("device")


def bad(**changes):
    return problem(dtype=torch.float32) | changes


BAD = {
    "hidden is no tensor": (lambda: {"hidden": [1.0]}, TypeError, r"hidden: expected a torch\.Tensor, got list"),
    "hidden of integers": (lambda: {"hidden": torch.zeros(37, 8, dtype=torch.int64)}, TypeError, "hidden: .*int64"),
    "hidden without features": (
        lambda: {"hidden": torch.zeros(37, 0)},
        ValueError,
        r"hidden: expected shape \(\.\.\., H\)",
    ),
    "weight of another width": (
        lambda: {"weight": torch.zeros(53, 9)},
        ValueError,
        r"hidden: expected 9 features.*\(37, 8\)",
    ),
    "weight of another rank": (
        lambda: {"weight": torch.zeros(53)},
        ValueError,
        r"weight: expected shape \(V, H\).*\(53,\)",
    ),
    "weight without classes": (lambda: {"weight": torch.zeros(0, 8)}, ValueError, r"weight: expected shape .*V >= 1"),
    "weight of another dtype": (
        lambda: {"weight": torch.zeros(53, 8).double()},
        TypeError,
        "weight: .*float64.*autocast",
    ),
    "bias of another size": (
        lambda: {"bias": torch.zeros(52)},
        ValueError,
        r"bias: expected shape \(53,\), got \(52,\)",
    ),
    "bias of another dtype": (lambda: {"bias": torch.zeros(53).double()}, TypeError, "bias: .*float64"),
    "labels of another shape": (
        lambda: {"labels": torch.zeros(36, dtype=torch.int64)},
        ValueError,
        r"labels: .*\(37,\).*\(36,\)",
    ),
    "labels of floats": (lambda: {"labels": torch.zeros(37)}, TypeError, "labels: expected an integer"),
    "mask of another shape": (lambda: {"mask": torch.ones(36, dtype=torch.bool)}, ValueError, r"mask: .*\(36,\)"),
    "an unknown statistic": (lambda: {"stats": "logprob"}, ValueError, "stats: unknown statistic 'logprob'"),
    "no statistic": (lambda: {"stats": ()}, ValueError, "stats: expected at least one"),
    "no reference": (lambda: {"stats": "kl"}, ValueError, "reference_hidden: missing"),
    "a reference weight alone": (
        lambda: {"reference_weight": torch.zeros(53, 8)},
        ValueError,
        "reference_weight: given without",
    ),
    "a reference of another shape": (
        lambda: {"stats": "kl", "reference_hidden": torch.zeros(36, 8)},
        ValueError,
        r"reference_hidden: expected shape \(37, 'H'\), got \(36, 8\)",
    ),
    "a reference of another vocabulary": (
        lambda: {"stats": "kl", "reference_hidden": torch.zeros(37, 4), "reference_weight": torch.zeros(52, 4)},
        ValueError,
        "reference_weight: expected 53 classes",
    ),
    "an adapter of two": (lambda: {"lora": (torch.zeros(2, 8), torch.zeros(53, 2))}, TypeError, "lora: expected"),
    "an adapter that does not fit": (
        lambda: {"lora": (torch.zeros(2, 7), torch.zeros(53, 2), 1.0)},
        ValueError,
        r"lora: expected A \[r, 8\] and B \[53, r\]",
    ),
    "smoothing of 1": (lambda: {"label_smoothing": 1.0}, ValueError, "label_smoothing: expected 0 <= ε < 1, got 1"),
    "smoothing that is no number": (lambda: {"label_smoothing": "a"}, TypeError, "label_smoothing: expected a number"),
    "no workspace": (lambda: {"workspace_bytes": 0}, ValueError, "workspace_bytes: expected at least 1"),
    "workspace of a float": (lambda: {"workspace_bytes": 1e9}, TypeError, "workspace_bytes: expected an int"),
    "an unknown plan": (lambda: {"plan": "fused"}, ValueError, "plan: expected one of"),
    "a gradient dtype": (lambda: {"gradient_dtype": torch.float16}, ValueError, "gradient_dtype: expected"),
    "differentiable that is not": (
        lambda: {"stats": ("logp", "top1"), "differentiable": ("top1",)},
        ValueError,
        "differentiable: expected some of logp, got 'top1'",
    ),
    "a temperature of 0": (lambda: {"temperature": 0.0}, ValueError, "temperature: expected a finite number above 0"),
    "temperatures of another shape": (
        lambda: {"temperature": torch.ones(36)},
        ValueError,
        "temperature: expected a shape",
    ),
    "a softcap below 0": (lambda: {"softcap": -1.0}, ValueError, "softcap: expected a finite number above 0"),
    "k of 65": (lambda: {"stats": "topk_mass", "k": 65}, ValueError, "k: expected 1 to 64, got 65"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    make, error, message = BAD[case]
    with pytest.raises(error, match=message):
        prefuse.linear_token_stats(**bad(**make()))


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


BAD_LOSS = {
    "neither": ({}, TypeError, "logits: missing; give logits, or hidden and weight"),
    "both": (
        lambda: {"logits": torch.zeros(4, 3, 53), "hidden": torch.zeros(4, 3, 8), "weight": torch.zeros(53, 8)},
        TypeError,
        "one of the two",
    ),
    "no weight": (lambda: {"hidden": torch.zeros(4, 3, 8)}, TypeError, "weight: missing beside hidden"),
    "a weight beside logits": (
        lambda: {"logits": torch.zeros(4, 3, 53), "weight": torch.zeros(53, 8)},
        TypeError,
        "weight: given without hidden",
    ),
    "a plan beside logits": (
        lambda: {"logits": torch.zeros(4, 3, 53), "plan": "keep"},
        TypeError,
        "plan: given without hidden",
    ),
    "inplace": (
        lambda: {"hidden": torch.zeros(4, 3, 8), "weight": torch.zeros(53, 8), "inplace": True},
        ValueError,
        "inplace: expected False",
    ),
    "a reference weight for log-probabilities": (
        lambda: {"hidden": torch.zeros(4, 3, 8), "weight": torch.zeros(53, 8), "reference_weight": torch.zeros(53, 8)},
        ValueError,
        "reference_weight: given without hidden states",
    ),
}


@pytest.mark.parametrize("case", BAD_LOSS)
def test_bad_arguments_of_the_loss(case):
    make, error, message = BAD_LOSS[case]
    arguments = make() if callable(make) else make
    with pytest.raises(error, match=message):
        prefuse.preference_loss(
            "dpo", labels=torch.zeros(4, 3, dtype=torch.int64), reference=torch.zeros(4), **arguments
        )


def test_a_reference_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r"reference: expected the shape of hidden states, \(4, 3, 8\), of labels"):
        prefuse.preference_loss(
            "dpo",
            labels=torch.zeros(4, 3, dtype=torch.int64),
            hidden=normal(4, 3, 8, seed=1),
            weight=normal(53, 8, seed=2),
            reference=torch.zeros(4, 3, 9),
        )
