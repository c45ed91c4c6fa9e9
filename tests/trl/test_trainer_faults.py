"""`prefuse.trl.PreferenceTrainer` where a run would go wrong without a word."""

from __future__ import annotations

import copy
import json
import logging as standard_logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoConfig, AutoModelForCausalLM, BartForCausalLM, TrainerCallback
from transformers.utils import logging

import prefuse
import prefuse.trl
from prefuse.trl import PreferenceConfig, PreferenceTrainer
from prefuse.trl.dropout import DropoutRates
from tests.integration.models import causal_lm, saved
from tests.trl import running
from tests.trl.running import make

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logging.set_verbosity_warning()
    ours = standard_logging.getLogger("prefuse")
    ours.addHandler(caplog.handler)
    yield caplog
    ours.removeHandler(caplog.handler)
    logging.set_verbosity_error()


def liked(count: int, label: Any = True) -> Dataset:
    return running.unpaired(count).remove_columns("label").add_column("label", [label] * count)


# A model by name


@pytest.mark.parametrize("objective", ["dpo", "kto", "simpo"])
def test_a_model_by_name(objective, tmp_path):
    saved("llama", tmp_path / "model")
    running.tokenizer().save_pretrained(tmp_path / "model")
    data = running.unpaired() if objective == "kto" else running.pairs()
    args = PreferenceConfig(
        str(tmp_path / "out"), objective=objective, use_cpu=True, bf16=False, report_to=[], max_steps=1, logging_steps=1
    )
    trainer = PreferenceTrainer(str(tmp_path / "model"), args=args, train_dataset=data)
    trainer.train()
    log = trainer.state.log_history[0]
    if objective == "simpo":
        assert trainer.ref_model is None
    else:
        assert not trainer.ref_model.training
    if objective == "dpo":
        assert log["loss"] == pytest.approx(math.log(2), abs=1e-3)


# In the place of `trl.DPOTrainer`


def test_a_missing_data_set_is_refused_in_the_words_of_trl(tmp_path):
    for kind in ("Preference", "DPO"):
        with pytest.raises(ValueError, match="`train_dataset` is required"):
            make(kind, tmp_path, train_dataset=None)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_dataset": [{"prompt": "a"}]}, "`train_dataset` must be a `Dataset` or `IterableDataset`, got `list`"),
        (
            {"train_dataset": DatasetDict(train=running.pairs())},
            "`train_dataset` must be a `Dataset` or `IterableDataset`, got `DatasetDict`",
        ),
        ({"processing_class": 3}, "The `processing_class` must be either a `PreTrainedTokenizerBase` or a `Processor"),
        (
            {"truncation_mode": "keep_middle"},
            "Unsupported truncation mode: keep_middle, expected 'keep_start' or 'keep_",
        ),
    ],
    ids=str,
)
def test_arguments_are_refused_in_the_words_of_trl(changed, message, tmp_path):
    for kind in ("Preference", "DPO"):
        with pytest.raises((TypeError, ValueError), match=message):
            make(kind, tmp_path, **changed).train()


@pytest.mark.parametrize("streamed", ["train_dataset", "eval_dataset", "eval_dataset, named"])
def test_a_precomputed_reference_of_a_stream_is_refused_in_the_words_of_trl(streamed, tmp_path):
    stream = running.pairs().to_iterable_dataset()
    name, _, named = streamed.partition(", ")
    options = {"precompute_ref_log_probs": True, "max_steps": 1, name: {"other": stream} if named else stream}
    for kind in ("Preference", "DPO"):
        with pytest.raises(ValueError, match=r"precompute_ref_log_probs.*not supported with IterableDataset"):
            make(kind, tmp_path, **options)


@pytest.mark.parametrize(
    ("objective", "own"),
    [("sigmoid", ["dpo"]), ("simpo", ["simpo"]), (prefuse.objectives.dpo() + prefuse.objectives.sft(), [])],
)
def test_tags_name_the_objective(objective, own, tmp_path):
    trainer = make("Preference", tmp_path, objective=objective)
    assert set(trainer.model.model_tags) == {"trl", "prefuse", "preference", *own}


# Batches of one row


@pytest.mark.parametrize("objective", ["kto", "aot", "bco_pair"])
def test_batches_of_one_row_are_refused(objective, tmp_path):
    data = running.unpaired() if objective == "kto" else running.pairs()
    with pytest.raises(ValueError, match="per_device_train_batch_size: expected 2 or more"):
        make("Preference", tmp_path, objective=objective, train_dataset=data, per_device_train_batch_size=1)
    with pytest.raises(ValueError, match="per_device_eval_batch_size: expected 2 or more"):
        make(
            "Preference",
            tmp_path,
            objective=objective,
            train_dataset=data,
            eval_dataset=data,
            per_device_eval_batch_size=1,
        )


@pytest.mark.parametrize("objective", ["dpo", "sft", "orpo"])
def test_a_mean_over_tokens_needs_no_second_row(objective, tmp_path):
    make("Preference", tmp_path, objective=objective, per_device_train_batch_size=1)


def test_a_last_batch_of_one_row_gets_a_completion_of_the_batch_before(tmp_path):
    trainer = make("Preference", tmp_path, objective="kto", train_dataset=liked(7))
    batches = list(trainer.get_train_dataloader())
    assert [len(batch["input_ids"]) for batch in batches] == [2, 2, 2, 1]
    last = batches[-1]
    mismatched = last["mismatched"]
    assert not torch.equal(mismatched["input_ids"], last["input_ids"])
    before = batches[-2]
    scored = mismatched["input_ids"][mismatched["completion_mask"] == 1]
    assert torch.equal(scored, before["input_ids"][1][before["completion_mask"][1] == 1])


def test_one_row_alone_has_no_divergence(tmp_path, warnings):
    trainer = make("Preference", tmp_path, objective="kto", train_dataset=liked(1), max_steps=1)
    trainer.train()
    assert "estimate of the divergence is taken as 0" in warnings.text


def test_lists_are_mismatched_with_another_row(tmp_path):
    texts = [[running.text(2 + k, seed=40 + 3 * row + k) for k in range(3)] for row in range(2)]
    data = Dataset.from_dict(
        {"prompt": [running.text(2, seed=row) for row in range(2)], "completions": texts, "label": [[1, 0, 1]] * 2}
    )
    trainer = make("Preference", tmp_path, objective="kto", train_dataset=data, train_sampling_strategy="sequential")
    (batch,) = trainer.get_train_dataloader()

    def answers(part: Any) -> list[list[int]]:
        both = zip(part["input_ids"], part["completion_mask"], strict=True)
        return [ids[mask == 1].tolist() for ids, mask in both]

    own = answers(batch)
    assert answers(batch["mismatched"]) == own[3:] + own[:3]


def test_a_last_batch_of_one_row_is_left_out_where_rows_are_compared(tmp_path, warnings):
    trainer = make("Preference", tmp_path, objective="aot", train_dataset=running.pairs(7))
    assert len(list(trainer.get_train_dataloader())) == 3
    assert "the last batch is left out" in warnings.text
    assert not trainer.args.dataloader_drop_last
    with pytest.raises(ValueError, match="train_dataset: expected 2 rows or more"):
        make("Preference", tmp_path, objective="aot", train_dataset=running.pairs(1)).train()


def test_a_streamed_batch_of_one_row_changes_nothing(tmp_path, warnings):
    data = running.pairs(3).to_iterable_dataset()
    trainer = make("Preference", tmp_path, objective="alpha_dpo", train_dataset=data, max_steps=2, learning_rate=0.1)
    weights = []
    trainer.add_callback(Watch(lambda: weights.append(trainer.model.lm_head.weight.detach().clone())))
    trainer.train()
    assert "step 2: a batch of one row is left out" in warnings.text
    assert torch.equal(weights[0], weights[1])


class Watch(TrainerCallback):
    """Calls something after each step."""

    def __init__(self, seen: Any) -> None:
        self.seen = seen

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seen()


# Logs


@pytest.mark.parametrize("objective", ["kto", "bco", "apo_zero_unpaired"])
@pytest.mark.parametrize("label", [True, False])
def test_no_nan_in_logs(objective, label, tmp_path):
    trainer = make("Preference", tmp_path, objective=objective, train_dataset=liked(8, label))
    trainer.train()
    trainer.save_state()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads((tmp_path / "trainer_state.json").read_text(), parse_constant=refuse)
    first = trainer.state.log_history[0]
    present, absent = ("chosen", "rejected") if label else ("rejected", "chosen")
    assert f"rewards/{present}" in first
    assert f"rewards/{absent}" not in first
    assert "rewards/margins" not in first


# Losses that are not finite


def broken() -> Any:
    model = causal_lm("llama")
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    return model


def test_a_nan_loss_stops_the_training(tmp_path):
    trainer = make("Preference", tmp_path, broken(), objective="simpo")
    with pytest.raises(FloatingPointError, match=r"step 1: the loss is nan, .*log-probability of response 'chosen' of"):
        trainer.train()


@pytest.mark.parametrize(
    ("objective", "cause"),
    [
        ("dpo", "the reference's log-probability of response 'chosen' of row 0"),
        ("tdpo1", "the reference's hidden states or LM head"),
        ("kto", "the reference's log-probability of response 0"),
    ],
)
def test_a_broken_reference_is_named(objective, cause, tmp_path):
    data = running.unpaired() if objective == "kto" else running.pairs()
    trainer = make("Preference", tmp_path, objective=objective, train_dataset=data, ref_model=broken())
    with pytest.raises(FloatingPointError, match=cause):
        trainer.train()


def test_a_nan_in_a_column_is_named(tmp_path):
    data = running.pairs().add_column("ref_chosen_logps", [-1.0] * 7 + [float("nan")])
    data = data.add_column("ref_rejected_logps", [-1.0] * 8)
    trainer = make(
        "Preference",
        tmp_path,
        objective="dpo",
        train_dataset=data,
        precompute_ref_log_probs=True,
        train_sampling_strategy="sequential",
        max_steps=8,
    )
    with pytest.raises(
        FloatingPointError, match=r"step 4: .*reference's log-probability of response 'chosen' of row 1"
    ):
        trainer.train()


def test_a_nan_loss_may_be_logged_as_what_it_is(tmp_path):
    trainer = make("Preference", tmp_path, broken(), objective="simpo", on_nonfinite_loss="log")
    trainer.train()
    assert [str(entry["loss"]) for entry in trainer.state.log_history[:3]] == ["nan"] * 3


def test_options_for_losses_that_are_not_finite(tmp_path):
    with pytest.raises(ValueError, match='on_nonfinite_loss: expected "error" or "log"'):
        PreferenceConfig(str(tmp_path), use_cpu=True, bf16=False, on_nonfinite_loss="ignore")
    with pytest.raises(ValueError, match="logging_nan_inf_filter: expected False"):
        PreferenceConfig(str(tmp_path), use_cpu=True, bf16=False, logging_nan_inf_filter=True)


def test_a_batch_without_a_scored_token_is_said(tmp_path, warnings):
    data = Dataset.from_dict({"prompt_ids": [[5, 6]] * 4, "chosen_ids": [[]] * 4, "rejected_ids": [[]] * 4})
    make("Preference", tmp_path, objective="dpo", train_dataset=data, max_steps=1).train()
    assert "step 1: a batch without one scored token" in warnings.text


# Prompts that are too long


def test_prompts_that_are_too_long(tmp_path, warnings):
    data = Dataset.from_dict(
        {"prompt_ids": [[5] * n for n in (3, 8, 9, 10)], "chosen_ids": [[6, 2]] * 4, "rejected_ids": [[7, 2]] * 4}
    )
    trainer = make("Preference", tmp_path, objective="dpo", train_dataset=data, max_length=8)
    assert len(trainer.train_dataset) == 1
    assert "3 of 4 rows of the data set 'train' are dropped" in warnings.text
    with pytest.raises(ValueError, match=r"max_length: .* in all 4 rows of the data set 'train'"):
        make("Preference", tmp_path, objective="dpo", train_dataset=data, max_length=3)


# Dropout that is not a module


DROPOUTS: dict[str, dict[str, Any]] = {
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16, "layerdrop": 0.5},
    "biogpt": {},
    "gpt_bigcode": {},
    "xglm": {"d_model": 16, "num_layers": 2, "attention_heads": 2, "ffn_dim": 32},
    "bart": {"d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32},
    "llama": {"attention_dropout": 0.5, "intermediate_size": 32},
}


def dropping(family: str) -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0}
    sizes |= {"bos_token_id": 1, "eos_token_id": 2, "vocab_size": len(running.tokenizer())}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **sizes, **DROPOUTS[family])
    return (BartForCausalLM if family == "bart" else AutoModelForCausalLM.from_config)(config)


@pytest.mark.parametrize("family", DROPOUTS)
def test_the_reference_is_the_policy_at_first(family, tmp_path):
    model = dropping(family)
    rates = DropoutRates(model)._rates
    assert rates
    trainer = make("Preference", tmp_path, model, objective="dpo", learning_rate=0.0)
    before = [(name, getattr(owner, name)) for owner, name, _ in rates]
    assert not trainer.ref_model.training
    trainer.train()
    logs = trainer.state.log_history[:3]
    assert [log["rewards/margins"] for log in logs] == pytest.approx([0.0] * 3, abs=1e-6)
    assert [log["loss"] for log in logs] == pytest.approx([math.log(2)] * 3, abs=1e-4)
    assert [(name, getattr(owner, name)) for owner, name, _ in rates] == before


def test_checkpoints_keep_the_rates(tmp_path):
    make("Preference", tmp_path, dropping("opt"), save_strategy="steps", save_steps=3).train()
    assert AutoConfig.from_pretrained(tmp_path / "checkpoint-3").dropout == 0.1


def test_dropout_may_stay(tmp_path):
    trainer = make("Preference", tmp_path, dropping("opt"), learning_rate=0.0, disable_dropout=False)
    trainer.train()
    assert any(abs(log["rewards/margins"]) > 1e-6 for log in trainer.state.log_history[:3])


def test_precomputed_references_are_without_dropout(tmp_path):
    model = dropping("opt")
    trainer = make("Preference", tmp_path, model, learning_rate=0.0, precompute_ref_log_probs=True)
    trainer.train()
    assert [log["rewards/margins"] for log in trainer.state.log_history[:3]] == pytest.approx([0.0] * 3, abs=1e-6)


def test_trls_trainers_without_dropout(tmp_path):
    model = dropping("opt")
    trainer = make("DPO", tmp_path, model, learning_rate=0.0, ref_model=copy.deepcopy(model))
    with prefuse.trl.accelerate(trainer, disable_dropout=True) as made:
        assert made.places[-1].startswith("dropout rates of 0 (")
        assert "layerdrop" in made.places[-1]
        trainer.train()
    assert [log["rewards/margins"] for log in trainer.state.log_history[:3]] == pytest.approx([0.0] * 3, abs=1e-6)
    assert model.config.dropout == 0.1
    with pytest.raises(ValueError, match="disable_dropout: expected a trainer"):
        prefuse.trl.accelerate(disable_dropout=True)


def change(folder: Path, size: int, **options: Any) -> torch.Tensor:
    """What one SGD step on 8 rows changes, in micro-batches of `size` rows."""
    model = causal_lm("llama")
    before = model.lm_head.weight.detach().clone()
    options = {"gradient_accumulation_steps": 8 // size, "max_steps": 1, "optim": "sgd"} | options
    make("Preference", folder, model, per_device_train_batch_size=size, **options).train()
    return model.lm_head.weight.detach() - before


def scored() -> Dataset:
    return running.unpaired().remove_columns("label").add_column("score", [0.1 + 0.1 * row for row in range(8)])


TOKEN_MEANS = {
    "sft": {"objective": "sft"},
    "orpo": {"objective": "orpo"},
    "orpo, packed": {"objective": "orpo", "padding_free": True},
    "cpo as TRL": {"objective": prefuse.objectives.cpo(nll="token_mean")},
    "a sum": {"objective": prefuse.objectives.simpo + 0.3 * prefuse.objectives.sft},
    "single responses": {"objective": prefuse.objectives.crraft(average="tokens"), "train_dataset": scored},
    "tokens": {"objective": "ppo", "train_dataset": running.sampled},
}


@pytest.mark.parametrize("case", TOKEN_MEANS)
def test_one_step_does_not_depend_on_the_micro_batches(case, tmp_path):
    options = dict(TOKEN_MEANS[case])
    if "train_dataset" in options:
        options["train_dataset"] = options["train_dataset"]()
    whole = change(tmp_path, 8, **options)
    close = {"rtol": 1e-4, "atol": 1e-5 * whole.abs().max().item()}
    for size in (4, 2, 1):
        assert torch.allclose(change(tmp_path, size, **options), whole, **close)
    apart = change(tmp_path, 1, token_mean="micro_batch", **options)
    assert not torch.allclose(apart, whole, rtol=0, atol=0.02 * whole.abs().max().item())


def test_a_last_step_of_fewer_micro_batches(tmp_path):
    """Of 7 rows the last 3 make a step of their own at the end of the epoch."""
    options = {"objective": "orpo", "train_dataset": running.pairs(7), "max_steps": -1, "num_train_epochs": 1}
    options |= {"train_sampling_strategy": "sequential"}
    whole = change(tmp_path, 4, **options, gradient_accumulation_steps=1)
    spread = change(tmp_path, 1, **options, gradient_accumulation_steps=4)
    torch.testing.assert_close(spread, whole, rtol=1e-4, atol=1e-5 * whole.abs().max().item())


def test_token_mean_has_two_values(tmp_path):
    with pytest.raises(ValueError, match=r"token_mean: expected .*, got 'epoch'"):
        make("Preference", tmp_path, token_mean="epoch")


@pytest.mark.parametrize("objective", ["simpo", "dpo", "tdpo2"])
def test_a_model_that_makes_its_logits_itself_logs_its_own_numbers(tmp_path, objective):
    def trained(change) -> list[dict[str, float]]:
        trainer = make("Preference", tmp_path, objective=objective, max_steps=2, logging_steps=1)
        for model in {id(m): m for m in (trainer.model, trainer.ref_model) if m is not None}.values():
            change(model)
        trainer.train()
        return [log for log in trainer.state.log_history if "loss" in log]

    plain = trained(lambda model: None)
    with pytest.warns(UserWarning, match="by its logits"):
        hooked = trained(lambda model: model.lm_head.register_forward_hook(lambda module, args, output: output * 1.0))
    assert len(plain) == len(hooked) == 2
    for left, right in zip(plain, hooked, strict=True):
        for name in ("loss", "logps/chosen", "logps/rejected"):
            assert right[name] == pytest.approx(left[name], rel=1e-4, abs=1e-5)


def scaled_head() -> Any:
    """A model whose head does more than one product."""
    model = causal_lm("llama")
    model.lm_head.register_forward_hook(lambda module, args, output: output * 2.0)
    return model


def test_fallback_error_refuses_instead_of_making_logits(tmp_path):
    with pytest.raises(ValueError, match="is hooked onto it"):
        make("Preference", tmp_path, scaled_head(), objective="simpo", fallback="error").train()
    for kind in ("DPO", "CPO"):
        with prefuse.trl.accelerate(fallback="error"), pytest.raises(ValueError, match="is hooked onto it"):
            make(kind, tmp_path, scaled_head()).train()
    with prefuse.trl.accelerate(fallback="error"):  # nothing is refused where the head can be fused
        make("DPO", tmp_path, max_steps=1).train()
    for wrong in (
        lambda: prefuse.trl.accelerate(fallback="none"),
        lambda: make("Preference", tmp_path, fallback="none"),
    ):
        with pytest.raises(ValueError, match="fallback: expected 'logits' or 'error', got 'none'"):
            wrong()
