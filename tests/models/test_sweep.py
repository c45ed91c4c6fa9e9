"""A part of the table of models: no family may be wrong in silence, or crash."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from tests.models.families import families
from tests.models.sweep import verdict

PART = {
    "llama",
    "gemma2",
    "cohere",
    "granite",
    "bert",
    "modernbert-decoder",
    "roberta",
    "hyperclovax",
    "minicpm3",
    "recurrent_gemma",
    "mpt",
    "falcon_h1",
    "dbrx",
    "jetmoe",
    "gpt2",
    "opt",
    "bloom",
    "phi",
    "gptj",
    "qwen3",
    "mixtral",
    "nemotron",
    "helium",
    "nanochat",
    "mamba",
    "prophetnet",
    "llava",
    "gemma3",
    "qwen2_5_vl",
    "kosmos-2.5",
    "bamba",
    "dory",
    "t5gemma2",
    "inkling_text",
}


BY_LOGITS = {"prophetnet", "inkling_text", "dory"}
"""Those whose logits are several products or a part of one, or whose head is no linear layer."""

IMAGES = {"llava", "gemma3", "qwen2_5_vl"}
"""Those that are tried with an image, too."""

REFUSED = {"t5gemma2"}
"""Encoder-decoder models."""


@pytest.mark.parametrize(("family", "name"), [pair for pair in families() if pair[0] in PART])
def test_family_is_exact_in_the_way_expected_of_it(family: str, name: str) -> None:
    found = verdict(family, name)
    expected = "exact, by logits" if family in BY_LOGITS else "refused" if family in REFUSED else "exact, fused"
    assert (found.what, found.image) == (expected, family in IMAGES), found
