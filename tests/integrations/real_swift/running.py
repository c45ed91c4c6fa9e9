"""Trainings by `swift.pipelines.rlhf_main`, of a tiny model: what was logged, and the weights at the end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.integrations.folders import pair, save_rows
from tests.integrations.runs import Run, noting, run_of

TIMES = ("runtime", "per_second", "total_flos", "time", "speed", "memory", "elapsed", "step", "percentage")
"""Parts of the names of what is logged and differs from run to run, or is text."""


def data_folder(folder: Path) -> Path:
    """Pairs, answers with a thumb up or down, and prompts."""
    folder.mkdir()

    def messages(prompt: str, answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]

    rows = [*map(pair, range(12))]
    pairs = [{"messages": messages(p, c), "rejected_response": r} for p, c, r in rows]
    save_rows(folder / "pairs.jsonl", pairs)
    save_rows(
        folder / "tagged.jsonl",
        [{"messages": messages(p, c), "label": row % 3 != 0} for row, (p, c, _) in enumerate(rows)],
    )
    save_rows(folder / "prompts.jsonl", [{"messages": messages(p, c)[:1]} for p, c, _ in rows])
    return folder


FILES = {"kto": "tagged", "grpo": "prompts"}


def train(model: Path, data: Path, output: Path, rlhf_type: str = "dpo", **arguments: Any) -> Run:
    """A few steps from the same seed."""
    from accelerate.state import AcceleratorState
    from swift.pipelines import rlhf_main
    from swift.trainers import SwiftMixin
    from transformers import Trainer

    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)  # which keeps an earlier training's precision
    AcceleratorState._reset_state(True)
    given = {
        "rlhf_type": rlhf_type,
        "model": str(model),
        "model_type": "llama",
        "template": "dummy",
        "dataset": str(data / f"{FILES.get(rlhf_type, 'pairs')}.jsonl"),
        "output_dir": str(output),
        "tuner_type": "full",
        "torch_dtype": "float32",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "max_steps": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "max_length": 64,
        "seed": 7,
        "use_cpu": True,
        "load_from_cache_file": False,
        "dataset_num_proc": 1,
        "dataloader_num_workers": 0,
        "split_dataset_ratio": 0,
        "add_version": False,
        "check_model": False,  # by the network
        **arguments,
    }
    trainers: list[Any] = []
    losses: list[float] = []
    with noting(SwiftMixin, Trainer, "training_step", trainers, losses):
        rlhf_main([text for name, value in given.items() for text in (f"--{name}", *_texts(value))])
    [trainer] = trainers
    return run_of(trainer, losses, TIMES)


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [str(each).lower() if isinstance(each, bool) else str(each) for each in values]
