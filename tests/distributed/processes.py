"""Processes that wait for functions to run together: one set per size for the whole folder."""

from __future__ import annotations

import gc
import multiprocessing
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

PATIENCE = 120
"""Seconds until a set that does not answer counts as stuck: never waited for where all is well."""


def started(size: int) -> Iterator[Processes]:
    """What a fixture of `size` processes yields; without gloo it is skipped."""
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("needs torch.distributed with gloo")
    processes = Processes(size)
    yield processes
    processes.stop()


class Processes:
    """`size` processes with a gloo group among them, started at the first run, and anew after a failure."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._ends: list[Any] = []
        self._processes: list[Any] = []

    def run(self, function: Callable[..., None], *arguments: Any, **options: Any) -> None:
        """Call a function of a module in every process; an exception in any of them is an AssertionError here."""
        if not self._processes:
            self._start()
        for end in self._ends:
            end.send((function, arguments, options))
        failures, missing = {}, dict(zip(self._ends, range(self.size), strict=True))
        while missing and (ready := wait(list(missing), 1 if failures else PATIENCE)):
            for end in ready:
                rank = missing.pop(end)
                if (report := _report(end)) is not None:
                    failures[rank] = report
        failures |= dict.fromkeys(missing.values(), "no answer")
        if failures:
            self.stop()
            raise AssertionError("\n".join(f"rank {rank}: {report}" for rank, report in sorted(failures.items())))

    def _start(self) -> None:
        # Forked from a process that has imported everything, once, and has computed nothing.
        context = multiprocessing.get_context("forkserver")
        tests = [name for name in sys.modules if name.startswith(f"{__package__}.test_")]
        context.set_forkserver_preload(["torch._dynamo", "torch.distributed.fsdp", *tests])
        self._folder = tempfile.TemporaryDirectory(prefix="prefuse-distributed-")
        store = str(Path(self._folder.name) / "store")
        for rank in range(self.size):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, store, rank, self.size), daemon=True)
            process.start()
            there.close()
            self._ends.append(here)
            self._processes.append(process)

    def stop(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()
        if self._processes:
            self._folder.cleanup()
        self._processes, self._ends = [], []


def _report(end: Any) -> str | None:
    """What a process says of its run: None where all went well."""
    try:
        return end.recv()
    except EOFError:
        return "the process has ended"


def _serve(end: Any, store: str, rank: int, size: int) -> None:
    gc.freeze()  # what was imported before the fork is nothing to look through
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, size),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=PATIENCE),
    )
    while True:
        try:
            function, arguments, options = end.recv()
        except EOFError:
            return
        try:
            function(*arguments, **options)
            end.send(None)
        except BaseException:
            end.send(traceback.format_exc())
