"""The device path of scoring with the emulator in the place of a device, on CPU tensors."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch.utils.dlpack import to_dlpack

from prefuse.scoring import device as scoring_device
from prefuse.scoring import execution
from tests.codegen import harness
from tests.emulator import emulator


def device() -> contextlib.AbstractContextManager[list[int]]:
    """Lets CPU tensors be scored as those of a device are; the list holds how many launches each run took."""
    return _pretended(_run)


def planned() -> contextlib.AbstractContextManager[list[int]]:
    """The same, but that launches are counted and not run: results are whatever was in memory."""
    return _pretended(lambda launch: len(_launches(launch, None)))


@contextlib.contextmanager
def _pretended(run: Callable[[scoring_device.Launch], int]) -> Iterator[list[int]]:
    runs: list[int] = []
    with (
        mock.patch.object(scoring_device, "runs_on", lambda device: True),
        mock.patch.object(scoring_device, "run_program", lambda launch: runs.append(run(launch))),
        mock.patch.object(execution, "_run_plain", lambda *arguments: None),
    ):
        yield runs


def _launches(launch: scoring_device.Launch, workspace: torch.Tensor | None) -> list[emulator.Launch]:
    return launch.program.cuda_plan(*launch.arguments(), None if workspace is None else to_dlpack(workspace))


def device_that(
    runs: Callable[[emulator.Launch, list[tuple[int, int, bool]]], None],
) -> contextlib.AbstractContextManager[list[int]]:
    """The same with something else that runs a launch, given what it may touch."""
    return _pretended(lambda launch: _run(launch, runs))


def _emulate(one: emulator.Launch, ranges: list[tuple[int, int, bool]]) -> None:
    harness.emulate(_library(one["sources"][-1][1], one["kernel"]), 0, one, ranges)


def _run(
    launch: scoring_device.Launch, runs: Callable[[emulator.Launch, list[tuple[int, int, bool]]], None] = _emulate
) -> int:
    size = launch.program.cuda_workspace(*launch.arguments()[2:4])
    workspace = torch.full((size // 8 + 1,), torch.nan, dtype=torch.float64)
    begin = workspace.data_ptr()
    launches = _launches(launch, workspace)
    read = [cut for cut in launch.offsets if not isinstance(cut, int)]
    read += [tensor for column in launch.columns for tensor in _tensors(column)]
    read += [tensor for output in launch.outputs for tensor in _tensors(output)[1:]]
    ranges = [(begin, begin + size, True)]
    ranges += [(*harness.reach(_tensors(output)[0]), True) for output in launch.outputs]
    ranges += [(*harness.reach(tensor), False) for tensor in read]
    for one in launches:
        runs(one, ranges)
    return len(launches)


def _tensors(column: scoring_device.Taken) -> list[torch.Tensor]:
    return [column] if isinstance(column, torch.Tensor) else list(column)


_texts: dict[str, str] = {}


def _library(text: str, kernel: str) -> harness.Compiled:
    key = hashlib.sha256(text.encode()).hexdigest()
    _texts[key] = text
    return _built(key, kernel)


@functools.cache
def _built(key: str, kernel: str) -> harness.Compiled:
    return harness.build(_texts[key].replace('extern "C" ', ""), [f"[] {{ invoke({kernel}); }}"])


__all__ = ["device", "device_that", "emulator", "planned"]
