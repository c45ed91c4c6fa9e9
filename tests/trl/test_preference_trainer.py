"""`prefuse.trl.PreferenceTrainer`: TRL's numbers where TRL has the loss, and what TRL does not have."""

from __future__ import annotations

import copy
import importlib
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

import prefuse
import prefuse.trl
from prefuse.language import log_sigmoid, pair_objective
from prefuse.objectives import dpo, sft
from prefuse.trl import PreferenceConfig
from tests.integration.models import causal_lm, vision_language_model
from tests.trl import running
from tests.trl.running import Run, assert_same, make, train

pytestmark = pytest.mark.filterwarnings("ignore")

MORE = ("ranking_accuracy", "gradient_weight")
"""What is logged beside what TRL logs."""


def lora() -> Any:
    peft = pytest.importorskip("peft")
    return peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)


def with_reference(options: dict[str, Any]) -> dict[str, Any]:
    if "peft_config" in options:
        return options | {"peft_config": lora()}
    return {"ref_model": causal_lm(options.get("model", "llama"), seed=1)} | options


def same_as_trl(
    tmp_path: Path, theirs: dict[str, Any], mine: dict[str, Any], kind: str = "DPO", ignored: tuple[str, ...] = ()
) -> Run:
    expected = train(lambda: make(kind, tmp_path / "trl", **theirs), "plain")
    found = train(lambda: make("Preference", tmp_path / "prefuse", **mine), "plain")

    def kept(logs: list[dict[str, float]]) -> list[dict[str, float]]:
        return [{name: entry[name] for name in entry if not name.startswith((*MORE, *ignored))} for entry in logs]

    rounded = {"rtol": 1e-2, "atol": 1e-2} if theirs.get("bf16") else {}
    assert_same(Run(kept(found.logs), found.change), Run(kept(expected.logs), expected.change), **rounded)
    return found


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "soft cap": {"model": "gemma2"},
    "router loss": {"model": "mixtral"},
    "LoRA, accumulation, checkpointing": {
        "model": "qwen3-tied",
        "peft_config": True,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
    },
    "bf16": {"bf16": True},
    "precomputed": {"precompute_ref_log_probs": True},
    "precomputed, LoRA": {"precompute_ref_log_probs": True, "peft_config": True},
    "cut at the end": {"max_length": 7},
    "cut at the beginning": {"max_length": 7, "truncation_mode": "keep_end"},
    "reference that follows": {"sync_ref_model": True, "ref_model_sync_steps": 1},
}


@pytest.mark.parametrize("case", CASES)
def test_dpo_is_trls(case, tmp_path):
    both = [with_reference(CASES[case]) for _ in range(2)]
    found = same_as_trl(tmp_path, both[0], both[1] | {"objective": "dpo"})
    assert 0 < found.logs[0]["gradient_weight/chosen"] < 0.1  # β σ(−βΔ) with β of 0.1


OF_TRL = '{"variant": "trl-1.16"}'
LOSSES: dict[str, dict[str, Any]] = {
    "hinge": {},
    "ipo": {},
    "exo_pair": {"label_smoothing": 1e-3},
    "nca_pair": {},
    "robust": {"label_smoothing": 0.1},
    "bco_pair": {},
    "sppo_hard": {"learning_rate": 1e-4},  # its gradients are in the thousands, and SGD steps are not clipped
    "aot": {},
    "aot_unpaired": {},
    "apo_zero": {},
    "apo_down": {},
    "discopop": {},
    "sft": {},
    "sigmoid_norm": {},
}


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_of_trls(loss, tmp_path):
    options = {"max_steps": 3, **LOSSES[loss]}
    theirs = options | {"loss_type": loss, "beta": 0.2}
    objective = prefuse.objectives.get(loss)
    mine = options | {"objective": loss, "beta": 0.2 if "beta" in objective.parameters else None}
    if loss in ("ipo", "bco_pair"):  # TRL's are not the papers'
        mine |= {"objective_kwargs": OF_TRL}
    if loss == "sft":
        mine |= {"objective": sft(nll="token_mean")}
    same_as_trl(tmp_path, with_reference(theirs), mine if loss == "sft" else with_reference(mine), ignored=("rewards",))


def test_simpo_is_that_of_trls_cpo_trainer(tmp_path):
    theirs = {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 0.5, "max_length": 64}
    mine = {"objective": "simpo", "objective_kwargs": '{"gamma": 0.5}', "beta": 2.0, "max_length": 64}
    begun = running.pairs().map(lambda row: {"prompt": f"<s>{row['prompt']}"})  # as that trainer begins them
    mine |= {"train_dataset": begun}
    ignored = ("logps", "logits", "nll_loss", "entropy", "num_tokens", "mean_token", "num_input_tokens")
    same_as_trl(tmp_path, theirs, mine, "CPO", ignored)


def test_kto_is_that_of_trls_kto_trainer(tmp_path):
    both = {"train_dataset": running.unpaired(), "per_device_train_batch_size": 4, "beta": 0.3}
    sequential = {"train_sampling_strategy": "sequential"}
    same_as_trl(
        tmp_path,
        with_reference(both | sequential),
        with_reference(both | sequential | {"objective": "kto"}),
        "KTO",
        ("kl", "mean_token_accuracy"),
    )


def test_tpo_is_that_of_trls_tpo_trainer(tmp_path):
    theirs = {"beta": 0.1, "tpo_alpha": 0.7}
    mine = {
        "objective": "tpo",
        "beta": 0.1,
        "objective_kwargs": {"alpha": 0.7},
        "train_dataset": running.pairs().rename_column("reference", "gold"),
    }
    ignored = ("logps", "logits", "nll", "entropy", "num_tokens", "mean_token", "num_input_tokens", "aux")
    same_as_trl(tmp_path, theirs, mine, "TPO", ignored)


def illustrated(**columns: list[Any]) -> dict[str, Any]:
    data = running.illustrated()
    for name, values in columns.items():
        data = data.add_column(name, values)
    models = {"model": vision_language_model(), "ref_model": vision_language_model(seed=1)}
    return models | {"train_dataset": data, "processing_class": running.processor(), "max_length": None}


def test_dpo_of_images_is_trls(tmp_path):
    same_as_trl(tmp_path, illustrated(), illustrated() | {"objective": "dpo"})


def test_answers_that_did_not_see_the_image(tmp_path):
    """`bpo` where the blind answer is the rejected one: the mean of its two terms is `dpo`."""
    once = train(lambda: make("Preference", tmp_path, objective="dpo", **illustrated()), "plain")
    given = illustrated(blind=[*running.illustrated()["rejected"]])
    options = {"objective": "bpo", "objective_kwargs": {"combine": "mean"}} | given
    twice = train(lambda: make("Preference", tmp_path, **options), "plain")
    for mine, theirs in zip(twice.logs[:-1], once.logs[:-1], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["logps/blind"] == pytest.approx(theirs["logps/rejected"], rel=1e-4)


# Packed, evaluated, without a reference


@pytest.mark.parametrize("objective", ["simpo", "tis_dpo"])
def test_packed_batches_are_padded_ones(objective, tmp_path):
    data = running.pairs()
    if objective == "tis_dpo":
        for role in ("chosen", "rejected"):
            lengths = [len(text.split()) + 1 for text in data[role]]  # and the EOS token
            data = data.add_column(f"{role}_token_contrast", [[0.1 * t for t in range(n)] for n in lengths])
    options = {"objective": objective, "train_dataset": data, "max_length": 9}
    if objective == "tis_dpo":
        options = with_reference(options)
    runs = [
        train(lambda packed=packed: make("Preference", tmp_path, padding_free=packed, **options), "plain")
        for packed in (False, True)
    ]
    for run in runs:  # padding is counted in the one and is not there in the other
        for entry in run.logs:
            entry.pop("num_tokens", None)
    assert_same(runs[1], runs[0])


def test_evaluation_is_trls(tmp_path):
    data = {"eval_dataset": {"first": running.pairs(5), "second": running.pairs(3)}}
    theirs = make("DPO", tmp_path / "trl", **with_reference(data))
    mine = make("Preference", tmp_path / "prefuse", **with_reference(data))
    for arguments in ({}, {"eval_dataset": running.pairs(4)}):
        wanted, found = theirs.evaluate(**arguments), mine.evaluate(**arguments)
        names = [name for name in wanted if not any(part in name for part in running.TIMES)]
        assert len(names) > 10
        for name in names:
            assert found[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-5), name


def conversations() -> Dataset:
    def said(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    data = running.pairs()
    made = {name: [said("assistant", text) for text in data[name]] for name in ("chosen", "rejected")}
    return Dataset.from_dict({"prompt": [said("user", text) for text in data["prompt"]], **made})


def chatting() -> Any:
    tokenizer = copy.deepcopy(running.tokenizer())
    turn = "{% for message in messages %} {{ message.role }}{{ message.content }} </s>{% endfor %}"
    tokenizer.chat_template = f"{turn}{{% if add_generation_prompt %}} assistant{{% endif %}}"
    return tokenizer


def without_prompts() -> Dataset:
    """The prompt is what both responses begin with."""
    data = running.pairs()
    joined = {
        name: [prompt + text for prompt, text in zip(data["prompt"], data[name], strict=True)]
        for name in ("chosen", "rejected")
    }
    return Dataset.from_dict(joined)


@pytest.mark.parametrize(
    "data",
    [
        lambda: {"train_dataset": conversations(), "processing_class": chatting()},
        lambda: {"train_dataset": without_prompts()},
        lambda: {"train_dataset": running.pairs().to_iterable_dataset()},
    ],
    ids=["conversations", "prompts in the responses", "streamed"],
)
def test_data_is_read_as_trl_reads_it(data, tmp_path):
    same_as_trl(tmp_path, with_reference(data()), with_reference(data() | {"objective": "dpo"}))


def test_beside_an_accelerated_trl(tmp_path):
    runs = [train(lambda: make("Preference", tmp_path, objective="simpo"), how) for how in ("plain", "before")]
    assert_same(runs[1], runs[0])


def test_logits_where_somebody_computes_metrics_of_them(tmp_path):
    data = running.pairs(4)
    trainer = make("Preference", tmp_path, objective="simpo", eval_dataset=data, per_device_eval_batch_size=4)
    shapes: list[Any] = []
    trainer.compute_metrics = lambda given: (
        shapes.append((given.predictions.shape, given.label_ids.shape)) or {"a": 1.0}
    )
    assert trainer.evaluate()["eval_a"] == 1.0
    (logits, tokens), *rest = shapes
    assert logits == (*tokens, 96) and tokens[0] == 8 and not rest


def test_model_card_names_the_paper(tmp_path):
    trainer = make("Preference", tmp_path, objective="simpo")
    trainer.create_model_card(model_name="tiny")
    card = (tmp_path / "README.md").read_text()
    assert "trained with simpo" in card and "2405.14734" in card and "prefuse" in card


def test_no_reference_is_loaded_or_run_where_none_is_read(tmp_path):
    trainer = make("Preference", tmp_path, objective="simpo")
    calls: list[str] = []
    trainer.model.model.register_forward_hook(lambda *_: calls.append("forward"))
    trainer.train()
    assert trainer.ref_model is None
    assert len(calls) == 3 + 2  # three steps, and the few tokens with which the head is proven


def test_reference_of_a_model_that_is_given_is_its_copy(tmp_path):
    trainer = make("Preference", tmp_path, objective="dpo")
    first = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert trainer.state.log_history[-2]["loss"] != pytest.approx(0.693147, abs=1e-6)
    for name, value in trainer.ref_model.state_dict().items():
        assert torch.equal(value, first[name])


# Columns


def loss_of(trainer: Any) -> float:
    return float(trainer.evaluate()["eval_loss"])


def logps(prompts: list[str], responses: list[str], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and lengths of responses by plain PyTorch, one at a time."""
    model, tokenizer = causal_lm("llama", seed=seed).eval(), running.tokenizer()
    sums, lengths = [], []
    for prompt, response in zip(prompts, responses, strict=True):
        start = tokenizer(prompt)["input_ids"]
        ids = torch.tensor([tokenizer(f"{prompt}{response}</s>")["input_ids"]])
        with torch.no_grad():
            tokens = model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
        sums.append(tokens[len(start) - 1 :].sum())
        lengths.append(ids.shape[1] - len(start))
    return torch.stack(sums), torch.tensor(lengths)


def of_pairs(data: Dataset, roles: tuple[str, ...], reference: bool) -> dict[str, torch.Tensor]:
    columns = {}
    for role in roles:
        columns[f"{role}_logps"], columns[f"{role}_lengths"] = logps(data["prompt"], data[role], 0)
        if reference:
            columns[f"ref_{role}_logps"] = logps(data["prompt"], data[role], 1)[0]
    return columns


def scored(objective: Any, columns: dict[str, torch.Tensor]) -> float:
    return float(objective(**{name: value for name, value in columns.items() if name in objective.columns}).loss)


def evaluated(tmp_path: Path, objective: Any, data: Dataset, **options: Any) -> float:
    reads_reference = any(name.startswith("ref_") for name in objective.columns)
    given = {"ref_model": causal_lm("llama", seed=1)} if reads_reference else {}
    options = {"train_dataset": data, "eval_dataset": data, "per_device_eval_batch_size": len(data)} | options
    return loss_of(make("Preference", tmp_path, objective=objective, **given, **options))


@pair_objective
def confident(pair, *, beta=0.1):
    """One's own: a margin and a soft label from the data."""
    gap = beta * (pair.chosen.logratio - pair.rejected.logratio) - pair["gap"]
    return -pair["confidence"] * log_sigmoid(gap) - (1.0 - pair["confidence"]) * log_sigmoid(-gap)


OBJECTIVES: dict[str, tuple[Any, dict[str, list[Any]]]] = {
    "margin": (prefuse.objectives.odpo, {"margin": [0.1, 0.7, 0.3, 0.2]}),
    "one's own": (confident, {"gap": [1, 2, 0, 1], "confidence": [0.9, 0.5, 0.8, 1.0]}),
    "composition": (0.8 * dpo(beta=0.3) + 0.2 * sft(), {}),
    "weight": (dpo.weighted_by("trust"), {"trust": [0.5, 1.0, 2.0, 0.0]}),
    "scores, named after": (
        prefuse.objectives.reward_distillation,
        {"score_chosen": [1.0, 2.0, 0.5, 0.1], "score_rejected": [0.0, 1.0, 0.2, 0.3]},
    ),
}


@pytest.mark.parametrize("case", OBJECTIVES)
def test_columns_reach_the_objective_by_name(case, tmp_path):
    objective, extra = OBJECTIVES[case]
    data = running.pairs(4)
    for name, values in extra.items():
        data = data.add_column(name, values)
    columns = of_pairs(data, ("chosen", "rejected"), reference=True)
    for name, values in extra.items():
        title, _, role = name.partition("_")
        columns[f"{role}_{title}" if role else name] = torch.tensor(values)
    assert evaluated(tmp_path, objective, data) == pytest.approx(scored(objective, columns), rel=1e-5)


def test_further_responses_and_prompts_of_their_own(tmp_path):
    data = running.pairs(4).rename_column("reference", "blind")
    columns = of_pairs(data, ("chosen", "rejected", "blind"), reference=True)
    found = evaluated(tmp_path, prefuse.objectives.bpo, data, precompute_ref_log_probs=True)
    assert found == pytest.approx(scored(prefuse.objectives.bpo, columns), rel=1e-5)
    own = [running.text(3, seed=row) for row in range(50, 54)]
    data = data.rename_column("blind", "rationale").add_column("rationale_prompt", own)
    columns |= dict(zip(("rationale_logps", "rationale_lengths"), logps(own, data["rationale"], 0), strict=True))
    found = evaluated(tmp_path, prefuse.objectives.rationale_dpo, data)
    assert found == pytest.approx(scored(prefuse.objectives.rationale_dpo, columns), rel=1e-5)


@pytest.mark.parametrize("precomputed", [False, True])
def test_lists(precomputed, tmp_path):
    prompts = [running.text(3, seed=row) for row in range(3)]
    lists = [[running.text(2 + row, seed=60 + 5 * row + k) for k in range(2 + row)] for row in range(3)]
    scores = [[0.3 * k - row for k in range(2 + row)] for row in range(3)]
    data = Dataset.from_dict({"prompt": prompts, "completions": lists, "scores": scores, "unread": [1, 2, 3]})
    flat = [(prompt, text) for prompt, texts in zip(prompts, lists, strict=True) for text in texts]
    objective = prefuse.objectives.info_nca
    columns = {
        "logps": logps(*map(list, zip(*flat, strict=True)), 0)[0],
        "ref_logps": logps(*map(list, zip(*flat, strict=True)), 1)[0],
        "score": torch.tensor([score for row in scores for score in row]),
        "groups": torch.arange(3).repeat_interleave(torch.tensor([2, 3, 4])),
    }
    found = evaluated(tmp_path, objective, data, precompute_ref_log_probs=precomputed)
    assert found == pytest.approx(scored(objective, columns), rel=1e-5)


def test_statistics_of_a_reference_by_token(tmp_path):
    """`tdpo1` reads a divergence, which is made of hidden states of both models."""
    data = running.pairs(4)
    model, reference, tokenizer = causal_lm("llama").eval(), causal_lm("llama", seed=1).eval(), running.tokenizer()
    texts = [f"{p}{r}</s>" for role in ("chosen", "rejected") for p, r in zip(data["prompt"], data[role], strict=True)]
    batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    for row, prompt in enumerate([*data["prompt"], *data["prompt"]]):
        labels[row, : len(tokenizer(prompt)["input_ids"])] = -100
    with torch.no_grad():
        logits = [made(**inputs).logits for made in (model, reference)]
        wanted = prefuse.preference_loss("tdpo1", logits=logits[0], reference=logits[1], labels=labels, shift=True)
    found = loss_of(
        make(
            "Preference",
            tmp_path,
            objective="tdpo1",
            ref_model=reference,
            train_dataset=data,
            eval_dataset=data,
            per_device_eval_batch_size=4,
        )
    )
    assert found == pytest.approx(float(wanted.loss), rel=1e-5)


def test_tokens_instead_of_text(tmp_path):
    trainer = make("Preference", tmp_path, objective="simpo", eval_dataset=running.pairs(4))
    kept = trainer.eval_dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])
    assert trainer.evaluate(kept)["eval_loss"] == trainer.evaluate()["eval_loss"]


def test_top_k_mass_where_it_is_asked_for(tmp_path):
    statistics = ["topk_mass", "topk_entropy"]
    trainer = make("Preference", tmp_path, objective="simpo", log_statistics=statistics, max_steps=1)
    trainer.train()
    entry = trainer.state.log_history[0]
    assert 10 / 96 < entry["topk_mass/chosen"] < 1.0 and entry["topk_entropy"] > 0
    assert not {"entropy", "mean_token_accuracy", "gradient_weight/chosen"} & entry.keys()


# The configuration


def test_configuration_is_saved(tmp_path):
    args = PreferenceConfig(str(tmp_path), objective=dpo(beta=0.3), use_cpu=True, bf16=False)
    assert json.loads(args.to_json_string())["objective"] == "dpo(beta=0.3, label_smoothing=None)"
    again = pickle.loads(pickle.dumps(args))
    assert again.objective == "dpo(beta=0.3, label_smoothing=None)" and again.learning_rate == args.learning_rate
    assert args.resolved_objective().parameters["beta"] == 0.3


def test_command_line(tmp_path):
    from transformers import HfArgumentParser

    line = ["--objective", "simpo", "--objective_kwargs", '{"gamma": 0.3}', "--beta", "1.5", "--use_cpu", "--bf16", "0"]
    (args,) = HfArgumentParser(PreferenceConfig).parse_args_into_dataclasses(["--output_dir", str(tmp_path), *line])
    assert args.resolved_objective().parameters.items() >= {"beta": 1.5, "gamma": 0.3}.items()


ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no such objective": ({"objective": "dpoo"}, ValueError, "dpo"),
    "no such hyper-parameter": ({"objective": "dpo", "objective_kwargs": {"gamma": 1}}, TypeError, "gamma: dpo has no"),
    "no beta": ({"objective": "sft", "beta": 0.1}, TypeError, "beta: sft has no such"),
    "beta twice": ({"objective_kwargs": {"beta": 1.0}, "beta": 0.1}, ValueError, "beta: given twice"),
    "a loss type": ({"loss_type": ["ipo"]}, ValueError, "loss_type: .* give objective="),
    "length weighting": ({"ld_alpha": 0.5}, ValueError, "ld_alpha: .*ld_dpo"),
    "unknown statistic": ({"log_statistics": ["perplexity"]}, ValueError, "log_statistics: .* 'perplexity'"),
    "a missing column": ({"objective": "odpo"}, ValueError, r"train_dataset: odpo reads margin \(one value per pair\)"),
    "a missing response": ({"objective": "bpo"}, ValueError, r"bpo reads blind \(a response\), .* prompt, chosen"),
    "pairs for points": ({"objective": "kto"}, ValueError, "trl.unpair_preference_dataset"),
    "singles for lists": (
        {"objective": "lipo", "train_dataset": running.unpaired},
        ValueError,
        r"completions \(the list of responses",
    ),
    "a reference nobody reads": (
        {"objective": "simpo", "ref_model": lambda: causal_lm("llama")},
        ValueError,
        "ref_model: simpo reads nothing of a reference",
    ),
    "precomputed for nobody": (
        {"objective": "simpo", "precompute_ref_log_probs": True},
        ValueError,
        "precompute_ref_log_probs: simpo",
    ),
    "precomputed tokens": (
        {"objective": "ld_dpo", "precompute_ref_log_probs": True},
        ValueError,
        "precompute_ref_log_probs: ld_dpo reads the reference of single tokens",
    ),
    "images of single responses": (
        {
            "objective": "simnpo",
            "train_dataset": lambda: running.illustrated().rename_column("chosen", "completion"),
            "processing_class": running.processor,
        },
        ValueError,
        "only pairs come with images",
    ),
    "packed images": (
        {"padding_free": True, "train_dataset": running.illustrated, "processing_class": running.processor},
        ValueError,
        "padding_free: expected False for data with images",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case, tmp_path):
    options, error, message = ERRORS[case]
    given = {name: value() if isinstance(value, Callable) else value for name, value in options.items()}
    with pytest.raises(error, match=message):
        make("Preference", tmp_path, **given)


def test_a_row_without_a_value(tmp_path):
    data = running.pairs(4).add_column("margin", [0.1, None, 0.2, 0.3])
    trainer = make("Preference", tmp_path, objective="odpo", train_dataset=data)
    with pytest.raises(ValueError, match="margin: a row has no value"):
        trainer.train()


def test_another_trl(monkeypatch):
    for name in ("trainer", "images", "batches", "rows"):
        monkeypatch.delitem(sys.modules, f"prefuse.trl.{name}", raising=False)
    importlib.import_module("trl.trainer.dpo_trainer")  # which is whole; prefuse's modules alone are imported anew
    monkeypatch.delattr("trl.data_utils.common_prefix_length")
    with pytest.raises(ImportError, match=r"PreferenceTrainer needs TRL 1.16, and finds .*prefix_length"):
        prefuse.trl.PreferenceTrainer  # noqa: B018


def test_another_configuration(tmp_path):
    from trl import DPOConfig

    from prefuse.trl import PreferenceTrainer

    args = DPOConfig(str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(TypeError, match=r"args: expected a prefuse.trl.PreferenceConfig, got DPOConfig"):
        PreferenceTrainer(causal_lm("llama"), args=args, train_dataset=running.pairs())
