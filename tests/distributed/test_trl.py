"""`prefuse.trl.accelerate` in two processes: TRL's trainers under DDP log the same and end at the same weights."""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

pytest.importorskip("trl")


def trained(kinds: tuple[str, ...], folder: Path) -> None:
    import datasets
    from transformers.utils import logging

    from tests.trl.running import assert_same, make, train

    datasets.disable_progress_bars()
    logging.set_verbosity_error()
    os.environ |= {  # as torchrun sets them; the process group is there
        "RANK": str(dist.get_rank()),
        "LOCAL_RANK": str(dist.get_rank()),
        "WORLD_SIZE": str(dist.get_world_size()),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "0",
        "ACCELERATE_USE_CPU": "true",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in kinds:
            plain, mine = (
                train(lambda k=kind: make(k, folder, "mixtral", ddp_backend="gloo"), how, in_two)
                for how in ("plain", "after")
            )
            assert_same(mine, plain)


def in_two(trainer: Any) -> contextlib.AbstractContextManager[None]:
    assert trainer.accelerator.num_processes == 2
    return contextlib.nullcontext()


@pytest.mark.parametrize("processes", [2], indirect=True)
def test_ddp(processes, tmp_path):
    processes.run(trained, ("DPO", "CPO"), tmp_path)
