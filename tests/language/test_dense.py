"""Columns that do not hold their numbers one by one: an error with the argument's name, wherever they come in."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import prefuse
from prefuse import objectives

LOGPS = torch.tensor([-3.0, -2.0, -4.0])
PLAIN = {"chosen_logps": LOGPS, "rejected_logps": LOGPS - 1, "ref_chosen_logps": LOGPS, "ref_rejected_logps": LOGPS}
LABELS = torch.zeros(6, 2, dtype=torch.long)
LOGITS = torch.zeros(6, 2, 5)


def quantised() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(LOGPS, 0.1, 0, torch.qint8)


def nested(layout: torch.layout) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([LOGPS, LOGPS[:2]], layout=layout)


def compressed() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LOGPS.reshape(1, 3).to_sparse_csr()


ODD: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "sparse": (LOGPS.to_sparse, r"layout torch.sparse_coo; pass its .to_dense\(\)"),
    "compressed": (compressed, "layout torch.sparse_csr"),
    "mkldnn": (LOGPS.reshape(1, 3).to_mkldnn, "layout torch._mkldnn"),
    "nested": (lambda: nested(torch.strided), "a nested tensor; pad it"),
    "jagged": (lambda: nested(torch.jagged), "a nested tensor; pad it"),
    "quantised": (quantised, r"torch.qint8; pass its .dequantize\(\)"),
}

WAYS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "a call": ("chosen_logps", lambda odd: objectives.dpo(**PLAIN | {"chosen_logps": odd})),
    "a gradient": ("rejected_logps", lambda odd: objectives.dpo.value_and_grad(**PLAIN | {"rejected_logps": odd})),
    "lengths": (
        "rejected_lengths",
        lambda odd: objectives.simpo(
            chosen_logps=LOGPS, rejected_logps=LOGPS, chosen_lengths=torch.ones(3), rejected_lengths=odd
        ),
    ),
    "a hyper-parameter": ("beta", lambda odd: objectives.dpo(beta=odd, **PLAIN)),
    "a weight": ("weight", lambda odd: objectives.dpo.weighted_by(odd)(**PLAIN)),
    "three arrays": ("ref_chosen_logps", lambda odd: prefuse.dpo_loss(LOGPS, LOGPS, odd, LOGPS)),
    "from logits": (
        "ref_chosen_logps",
        lambda odd: prefuse.preference_loss(
            "dpo", logits=LOGITS, labels=LABELS, ref_chosen_logps=odd, ref_rejected_logps=LOGPS
        ),
    ),
    "a reference": (
        "reference",
        lambda odd: prefuse.preference_loss("dpo", logits=LOGITS, labels=LABELS, reference=odd),
    ),
    "metrics": ("chosen_logps", lambda odd: prefuse.metrics.ranking_accuracy(odd, LOGPS)),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("way", WAYS)
def test_the_argument_is_named(way, kind):
    name, use = WAYS[way]
    make, said = ODD[kind]
    with pytest.raises(TypeError, match=rf"^{name}: expected a dense \(strided\) (tensor|array), got {said}"):
        use(make())


def test_masked_arrays():
    values = {name: column.numpy() for name, column in PLAIN.items()}
    right = objectives.dpo(**values).loss
    whole = np.ma.masked_array(values["chosen_logps"])
    assert objectives.dpo(**values | {"chosen_logps": whole}).loss == right
    hidden = np.ma.masked_array(values["chosen_logps"], mask=[False, True, False])
    with pytest.raises(TypeError, match=r"chosen_logps: expected a dense .* got masked values; leave their rows out"):
        objectives.dpo(**values | {"chosen_logps": hidden})


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float16, torch.int32])
def test_any_real_dtype_is_read(dtype):
    found = objectives.dpo(**PLAIN | {"chosen_logps": LOGPS.to(dtype)})
    torch.testing.assert_close(found.loss, objectives.dpo(**PLAIN).loss)
    beta = torch.tensor([1, 2, 4]).to(dtype)
    torch.testing.assert_close(objectives.dpo(beta=beta, **PLAIN).loss, objectives.dpo(beta=beta.float(), **PLAIN).loss)


def test_words_are_no_hyper_parameters():
    with pytest.raises(TypeError, match=r"beta: expected real numbers, got dtype .U1"):
        objectives.dpo(beta=np.array(["a", "b", "c"]))
    with pytest.raises(TypeError, match=r"beta: expected real numbers, got dtype torch.complex64"):
        objectives.dpo(beta=torch.ones(3, dtype=torch.complex64))
