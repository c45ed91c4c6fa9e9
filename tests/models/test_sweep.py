"""A part of the table of models: no family may be wrong in silence, or crash."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from tests.models import sharing
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


BY_A_MASK = {"falcon", "gpt_neo", "gpt_neox_japanese"}
"""Whose attention does not go through transformers' interface."""

WHOLE = {"mamba", "bamba", "recurrent_gemma", "bloom", "mpt", "bart", "paligemma", "camembert", "deepseek_v32"}
"""Whose tokens pass a state on, take no positions, count tokens, or attend otherwise where nothing is padded."""

SHARING = {
    "llama",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "mixtral",
    "gpt2",
    "opt",
    "gpt_neox",
    "cohere",
    "phi",
    "gpt_oss",
    "qwen2_5_vl",
    "deepseek_v3",
    "llama4_text",
    "flex_olmo",
}


@pytest.mark.parametrize(("family", "name"), [pair for pair in families() if pair[0] in SHARING | BY_A_MASK | WHOLE])
def test_family_shares_prompts_in_the_way_expected_of_it(family: str, name: str) -> None:
    found = sharing.verdict(family, name)
    expected = "shared, by a mask" if family in BY_A_MASK else "whole" if family in WHOLE else "shared"
    assert found.what == expected, found
