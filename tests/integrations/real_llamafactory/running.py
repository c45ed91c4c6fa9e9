"""Trainings by `llamafactory.train.tuner.run_exp`, of a tiny model: what was logged, and the weights at the end."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from tests.integrations.folders import pair, save_rows
from tests.integrations.runs import Run, noting, run_of

TIMES = ("runtime", "per_second", "total_flos")
"""Parts of the names of what is logged and differs from run to run."""


def data_folder(folder: Path) -> Path:
    """Pairs and answers with a thumb up or down, and the file that describes them."""
    folder.mkdir()
    pairs = [
        {"instruction": prompt, "input": "", "chosen": chosen, "rejected": rejected}
        for prompt, chosen, rejected in map(pair, range(12))
    ]
    save_rows(folder / "pairs.jsonl", pairs)
    tagged = [
        {"instruction": prompt, "input": "", "output": chosen, "label": row % 3 != 0}
        for row, (prompt, chosen, _) in enumerate(map(pair, range(12)))
    ]
    save_rows(folder / "tagged.jsonl", tagged)
    columns = {"prompt": "instruction", "query": "input"}
    described = {
        "pairs": {
            "file_name": "pairs.jsonl",
            "ranking": True,
            "columns": {**columns, "chosen": "chosen", "rejected": "rejected"},
        },
        "tagged": {"file_name": "tagged.jsonl", "columns": {**columns, "response": "output", "kto_tag": "label"}},
    }
    (folder / "dataset_info.json").write_text(json.dumps(described))
    return folder


def arguments(model: Path, data: Path, output: Path, **others: Any) -> dict[str, Any]:
    """Of `run_exp`, for a few steps."""
    return {
        "model_name_or_path": str(model),
        "dataset_dir": str(data),
        "dataset": "tagged" if others.get("stage") == "kto" else "pairs",
        "template": "default",
        "output_dir": str(output),
        "stage": "dpo",
        "do_train": True,
        "finetuning_type": "full",
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "max_steps": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "cutoff_len": 64,
        "seed": 7,
        "overwrite_cache": True,
        "preprocessing_num_workers": 1,
        "use_cpu": True,
        **others,
    }


def train(model: Path, data: Path, output: Path, **others: Any) -> Run:
    """A few steps from the same seed."""
    from accelerate.state import AcceleratorState
    from llamafactory.train import tuner
    from llamafactory.train.dpo.trainer import CustomDPOTrainer
    from llamafactory.train.kto.trainer import CustomKTOTrainer

    # Both keep an earlier training's precision.
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    AcceleratorState._reset_state(True)
    trainers: list[Any] = []
    losses: list[float] = []
    with contextlib.ExitStack() as stack:
        for kind in (CustomDPOTrainer, CustomKTOTrainer):
            stack.enter_context(noting(kind, kind, "compute_loss", trainers, losses))
        tuner.run_exp(arguments(model, data, output, **others))
    [trainer] = trainers
    return run_of(trainer, losses, TIMES)
