"""A run of DPO on the demo's data: TRL's trainer, the same on prefuse, and `PreferenceTrainer`, from one seed.

    python benchmarks/trl_side_by_side.py [--steps 30] [--pairs 16] [--vocabulary 4096] [--rounds 3] [--results DIR]

The demo's pairs (the standard library's docstrings) and its model of two layers, float32, AdamW, all weights trained,
a reference model beside it. Trained `--rounds` times by each in turn; the time is the median of whole runs. Peak
memory is what three steps add to what the process holds before them, in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

import prefuse.trl
from prefuse.bench import machine, memory, results
from prefuse.demo.batches import encode
from prefuse.demo.job import Settings, read
from prefuse.demo.model import small_model
from prefuse.demo.pairs import make_pairs
from prefuse.demo.tokens import Tokenizer as DemoTokenizer

SPECIAL = ("<pad>", "<bos>", "<sep>", "<eos>")
HANDS = ("TRL", "TRL + prefuse.trl.accelerate()", "PreferenceTrainer")
MEMORY_STEPS = 3
MEBIBYTE = 1 << 20


def main() -> None:
    options = parse()
    quiet()
    about = machine.describe() | {"trl": trl.__version__, "transformers": transformers.__version__}
    print(about)
    sizes = {"pairs": options.pairs, "vocabulary": options.vocabulary}
    data, tokenizer = demo_data(options.vocabulary)
    runs: dict[str, list[tuple[list[float], float]]] = {hand: [] for hand in HANDS}
    for _ in range(options.rounds):
        for hand in HANDS:
            runs[hand].append(train(hand, data, tokenizer, options.steps, options.pairs))
    peaks = {
        hand: memory.peak_extra_bytes("trl_side_by_side:memory_case", hand=hand, **sizes) if options.memory else None
        for hand in HANDS
    }
    cases = [
        {
            "hand": hand,
            "seconds": statistics.median(seconds for _, seconds in runs[hand]),
            "all_seconds": [seconds for _, seconds in runs[hand]],
            "peak_bytes": peaks[hand],
            "losses": runs[hand][0][0],
        }
        for hand in HANDS
    ]
    print_table(cases)
    report = {"comparison": "DPO on the demo's data", "steps": options.steps, **sizes, "machine": about, "cases": cases}
    print(results.write(options.results, "trl_side_by_side", report))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--pairs", type=int, default=16, help="per step")
    parser.add_argument("--vocabulary", type=int, default=4096, help="classes of the model's head, at least")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


def quiet() -> None:
    datasets.disable_progress_bars()
    logging.set_verbosity_error()


def demo_data(vocabulary: int) -> tuple[Dataset, PreTrainedTokenizerFast]:
    """The demo's training pairs as text of one word per token, and a tokenizer that reads it."""
    functions = read(Settings()).parts.training
    tokens = DemoTokenizer((text for each in functions for text in (each.prompt, each.summary)), vocabulary)
    words = [*SPECIAL, *(f"t{number}" for number in range(len(SPECIAL), max(vocabulary, len(tokens))))]

    def text(ids: list[int]) -> str:
        return "".join(f" {words[number]}" for number in ids)

    encoded = encode(make_pairs(functions, seed=0), tokens)
    data = Dataset.from_dict(
        {
            "prompt": [f"<bos>{text(pair.prompt)} <sep>" for pair in encoded],
            "chosen": [text(pair.responses[0]) for pair in encoded],
            "rejected": [text(pair.responses[1]) for pair in encoded],
        }
    )
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return data, PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>")


def trainer(hand: str, data: Dataset, tokenizer: PreTrainedTokenizerFast, steps: int, pairs: int, folder: str) -> Any:
    """A trainer by one of `HANDS`, always from the same weights."""
    model = small_model(len(tokenizer), width=128, layers=2, seed=0)
    reference = copy.deepcopy(model)
    settings = {
        "max_steps": steps,
        "per_device_train_batch_size": pairs,
        "learning_rate": 3e-4,
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 0,
    }
    own = hand == "PreferenceTrainer"
    cls, config = (
        (prefuse.trl.PreferenceTrainer, prefuse.trl.PreferenceConfig) if own else (trl.DPOTrainer, trl.DPOConfig)
    )
    made = cls(model, reference, config(folder, beta=0.1, **settings), train_dataset=data, processing_class=tokenizer)
    made.remove_callback(transformers.trainer_callback.PrinterCallback)
    return made


def with_prefuse(hand: str) -> contextlib.AbstractContextManager[object]:
    return prefuse.trl.accelerate() if hand == HANDS[1] else contextlib.nullcontext()


def train(
    hand: str, data: Dataset, tokenizer: PreTrainedTokenizerFast, steps: int, pairs: int
) -> tuple[list[float], float]:
    """Losses by step and seconds of one run."""
    with tempfile.TemporaryDirectory() as folder, with_prefuse(hand):
        made = trainer(hand, data.select(range(steps * pairs)), tokenizer, steps, pairs, folder)
        made.train()
    logs = made.state.log_history
    return [entry["loss"] for entry in logs if "loss" in entry], logs[-1]["train_runtime"]


def memory_case(hand: str, pairs: int, vocabulary: int) -> Callable[[], None]:
    """For `prefuse.bench.memory`: some steps of a trainer that is there already."""
    quiet()
    data, tokenizer = demo_data(vocabulary)
    folder = tempfile.mkdtemp()
    if hand == HANDS[1]:
        prefuse.trl.accelerate()
    made = trainer(hand, data.select(range(MEMORY_STEPS * pairs)), tokenizer, MEMORY_STEPS, pairs, folder)

    def run() -> None:
        made.train()
        made.model.zero_grad()

    return run


def print_table(cases: list[dict[str, Any]]) -> None:
    """As Markdown, for the documentation."""
    first = torch.tensor(cases[0]["losses"])
    print("| DPO, demo data | seconds | peak memory | first loss | last loss | furthest from TRL's curve |")
    print("| --- | --- | --- | --- | --- | --- |")
    for case in cases:
        losses = torch.tensor(case["losses"])
        peak = "" if case["peak_bytes"] is None else f"{case['peak_bytes'] / MEBIBYTE:.0f} MiB"
        apart = (losses - first).abs().max().item()
        print(f"| {case['hand']} | {case['seconds']:.1f} | {peak} | {losses[0]:.4f} | {losses[-1]:.4f} | {apart:.1e} |")


if __name__ == "__main__":
    main()
