"""TRL's DPO trainer with other objectives: SimPO, one's own with a column of the data, and a list-wise one.

    python examples/trl_preference_trainer.py

The model is a random Llama of a few thousand weights, the tokenizer knows twenty words and the pairs are made up, so
that it runs anywhere in seconds; with a model of the Hub and a data set of yours the calls stay as they are.
"""

import tempfile

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prefuse.language import log_sigmoid, pair_objective
from prefuse.objectives import sft
from prefuse.trl import PreferenceConfig, PreferenceTrainer

GOOD, BAD = ("kind", "clear", "short", "warm"), ("rude", "vague", "long", "cold")
WORDS = ["<pad>", "</s>", "<unk>", "be", "please", "answer", "now", *GOOD, *BAD]


@pair_objective
def sure(pair, *, beta=0.5):
    """DPO with soft labels: how sure the rater was, from 0 to 1, is a column of the data."""
    margin = beta * (pair.chosen.logratio - pair.rejected.logratio)
    return -pair["confidence"] * log_sigmoid(margin) - (1 - pair["confidence"]) * log_sigmoid(-margin)


def tokenizer() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def pairs() -> Dataset:
    words = [(good, bad) for good in GOOD for bad in BAD]
    return Dataset.from_dict(
        {
            "prompt": [" please answer"] * len(words),
            "chosen": [f" be {good}" for good, _ in words],
            "rejected": [f" be {bad} now" for _, bad in words],
            "confidence": [0.9 if bad != "long" else 0.6 for _, bad in words],
        }
    )


def lists() -> Dataset:
    return Dataset.from_dict(
        {
            "prompt": [" please answer"] * 4,
            "completions": [[f" be {good}", f" be {bad}", " now"] for good, bad in zip(GOOD, BAD, strict=True)],
            "label": [[2.0, 0.0, 1.0]] * 4,
        }
    )


def train(objective, data: Dataset, steps: int) -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        args = PreferenceConfig(
            folder,
            objective=objective,
            max_steps=steps,
            per_device_train_batch_size=4,
            learning_rate=3e-3,
            logging_steps=steps // 2,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            bf16=False,
        )
        trainer = PreferenceTrainer(model(), args=args, train_dataset=data, processing_class=tokenizer())
        trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def main(steps: int = 20) -> dict[str, list[float]]:
    losses = {}
    for name, objective, data in (
        ("simpo", "simpo", pairs()),  # by name, without a reference
        ("sure + sft", sure(beta=0.3) + 0.1 * sft(), pairs()),  # one's own, composed
        ("lipo", "lipo", lists()),  # three responses to a prompt
    ):
        logs = train(objective, data, steps)
        losses[name] = [entry["loss"] for entry in logs]
        accuracy = f"  ranking accuracy {logs[-1]['ranking_accuracy']:.2f}" if "ranking_accuracy" in logs[-1] else ""
        print(f"{name:12} loss {losses[name][0]:.4f} -> {losses[name][-1]:.4f}{accuracy}")
    return losses


if __name__ == "__main__":
    main()
