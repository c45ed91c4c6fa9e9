"""Each trainer of the installed TRL, whichever it is: trained with and without prefuse where it fits, left where not.

CI has one version; `make test-trl VERSION=…` runs this folder with another one.
"""

from __future__ import annotations

import contextlib
import inspect
import tempfile
from typing import Any

import pytest
from datasets import load_from_disk

import prefuse.trl
from prefuse.trl import compatibility, fused, gathered
from tests.trl import running
from tests.trl.running import assert_same, make, no_logits, train
from tests.trl.versions.plain_kernel import on_the_cpu

pytestmark = pytest.mark.filterwarnings("ignore")

PLACES = {each.trainer.name: each for each in compatibility.places()}
KINDS = {each.name: each.name.removesuffix("Trainer") for each in compatibility.TRAINERS}

GENERATED = {"train_dataset": running.prompts, "reward_funcs": running.reward, "num_generations": 2}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dpo": ("DPO", {}),
    "dpo, softcap, accumulation, checkpointing": (
        "DPO",
        {"model": "gemma2", "gradient_accumulation_steps": 2, "gradient_checkpointing": True},
    ),
    "dpo, precomputed reference": ("DPO", {"precompute_ref_log_probs": True}),
    "kto": ("KTO", {"train_dataset": running.unpaired, "per_device_train_batch_size": 4}),
    "grpo": ("GRPO", {**GENERATED, "max_completion_length": 5, "beta": 0.1, "temperature": 0.7}),
    "grpo, quantile of entropy": (
        "GRPO",
        {**GENERATED, "max_completion_length": 5, "model": "qwen3-tied", "beta": 0.0, "top_entropy_quantile": 0.5},
    ),
    "rloo": ("RLOO", {**GENERATED, "max_completion_length": 5, "beta": 0.1}),
    "sft": ("SFT", {"train_dataset": running.unpaired}),
    "cpo": ("CPO", {}),
    "simpo": ("CPO", {"loss_type": "simpo", "cpo_alpha": 0.0}),
    "orpo": ("ORPO", {}),
    "tpo": ("TPO", {}),
    "online dpo": (
        "OnlineDPO",
        {"train_dataset": running.prompts, "reward_funcs": running.reward, "max_new_tokens": 5},
    ),
}


def attributes(name: str) -> dict[str, Any]:
    """All of a trainer's class and of its module."""
    place = PLACES[name]
    return {**vars(place.home), **vars(place.cls)}


@pytest.mark.parametrize("case", CASES)
def test_the_same_training(case, tmp_path, monkeypatch, record_property):
    kind, options = CASES[case]
    place = PLACES.get(f"{kind}Trainer")
    if place is None or place.reason:
        pytest.skip(place.reason if place else f"trl {compatibility.installed()} has no {kind}Trainer")

    def made() -> Any:
        own = {
            name: value() if callable(value) and name != "reward_funcs" else value for name, value in options.items()
        }
        if "precompute_ref_log_probs" in own:  # which some versions keep beside the data set
            folder = tempfile.mkdtemp(dir=tmp_path)
            running.pairs().save_to_disk(folder)
            own["train_dataset"] = load_from_disk(folder)
        with on_the_cpu():  # a reference may be computed here
            return make(kind, tmp_path, **own)

    with on_the_cpu():
        expected = train(made, "plain")
    calls = []
    for module in (fused, gathered):
        counted = module.token_outputs
        monkeypatch.setattr(module, "token_outputs", lambda *a, f=counted, **k: calls.append(1) or f(*a, **k))
    generates = "reward_funcs" in options
    largest = 0.0
    for how in ("before", "after"):
        calls.clear()
        found = train(made, how, contextlib.nullcontext if generates else no_logits)
        assert_same(found, expected)
        assert len(calls) >= 3
        losses = zip(found.logs, expected.logs, strict=True)
        largest = max([largest, *(abs(mine["loss"] - its["loss"]) for mine, its in losses if "loss" in its)])
    record_property("largest difference of losses", largest)


def test_every_trainer_is_taken_or_left():
    before = {name: attributes(name) for name in PLACES}
    with prefuse.trl.accelerate() as handle:
        assert {*handle.places, *handle.left} == PLACES.keys()
        assert not set(handle.places) & set(handle.left)
        for name, place in PLACES.items():
            inside = attributes(name)
            changed = {each for each in inside if inside[each] is not before[name].get(each)}
            assert bool(changed) == (name in handle.places)
            assert not place.reason or (handle.left[name] == place.reason and place.reason in repr(handle))
    assert {name: attributes(name) for name in PLACES} == before


def test_a_trainer_that_is_left(tmp_path):
    """Named, refused by itself, and trains as before."""
    left = [name for name, place in PLACES.items() if place.reason]
    if not left:
        pytest.skip("every trainer of this TRL fits")
    for name in left:
        case = next((case for case in CASES if CASES[case][0] == KINDS[name]), None)
        if case is None:
            continue
        kind, options = CASES[case]
        own = {
            key: value() if inspect.isfunction(value) and key != "reward_funcs" else value
            for key, value in options.items()
        }
        trainer = make(kind, tmp_path, **own)
        with pytest.raises(RuntimeError, match=f"{name}: .*Nothing was changed"):
            prefuse.trl.accelerate(trainer)
        with prefuse.trl.accelerate():
            trainer.train()
