"""Trains with `PreferenceTrainer` in every process that is launched and keeps what came of it: a script.

accelerate launch tests/trl/two_processes.py FOLDER BATCH CASE …
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.distributed.tensor import DTensor

from tests.integration.models import causal_lm
from tests.trl import running
from tests.trl.running import TIMES, make


def lists() -> Dataset:
    """Lists of three responses with scores."""
    return Dataset.from_dict(
        {
            "prompt": [running.text(2, seed=row) for row in range(8)],
            "completions": [[running.text(2 + k, seed=40 + 3 * row + k) for k in range(3)] for row in range(8)],
            "label": [[(row + 2 * k) % 3 for k in range(3)] for row in range(8)],
        }
    )


CASES: dict[str, dict[str, Any]] = {
    "dpo": {"reference": True},
    "aot": {"reference": True},  # sorts the whole batch
    "simpo, packed": {"objective": "simpo", "padding_free": True},
    "kto": {"reference": True, "train_dataset": running.unpaired, "objective_kwargs": {"kl": 0.1}},
    "lipo": {"reference": True, "train_dataset": lists},
    "tdpo1": {"reference": True},  # reads hidden states of the reference
    "orpo": {"gradient_accumulation_steps": 2},  # means over the tokens of both batches of both processes
    "ppo": {"gradient_accumulation_steps": 2, "train_dataset": running.sampled},  # each process scores its own tokens
    "precomputed": {"reference": True, "objective": "dpo", "precompute_ref_log_probs": True},
}


def run(case: str, folder: Path, batch: int) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Weights and logs after three steps."""
    options = dict(CASES[case])
    options["train_dataset"] = options.get("train_dataset", running.pairs)()
    if options.pop("reference", False):
        options["ref_model"] = causal_lm("llama", seed=1)
    options = {"objective": case, "train_sampling_strategy": "sequential"} | options
    trainer = make("Preference", folder, per_device_train_batch_size=batch, **options)
    trainer.train()
    sharded = all(isinstance(value, DTensor) for value in trainer.model.parameters())
    assert sharded == uses_fsdp(), f"expected FSDP2: {uses_fsdp()}, every parameter is a part: {sharded}"
    weights = {}
    for name, value in trainer.accelerator.unwrap_model(trainer.model_wrapped).state_dict().items():
        weights[name] = (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
    logs = [
        {name: float(value) for name, value in entry.items() if not any(part in name for part in TIMES)}
        for entry in trainer.state.log_history
    ]
    trainer.accelerator.free_memory()
    return weights, logs


def uses_fsdp() -> bool:
    """Whether the launch asked for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false") == "true"


def let_accelerate_shard_on_the_cpu() -> None:
    """accelerate 1.15 runs DDP where there is no GPU, whatever was asked for: here gloo counts as one of GPUs."""
    from accelerate.state import DistributedType, PartialState

    torch.distributed.init_process_group("gloo")
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)


def main(folder: Path, batch: int, cases: list[str]) -> None:
    torch.set_num_threads(1)
    running.trainer("Preference")
    gc.freeze()  # each training collects garbage, and modules are none
    if uses_fsdp():
        let_accelerate_shard_on_the_cpu()
    for case in cases:
        result = run(case, folder / case, batch)
        if torch.distributed.get_rank() == 0:
            torch.save(result, folder / f"{case}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
