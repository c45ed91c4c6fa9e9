"""The device path of scoring with the emulator in the place of a device, on CPU tensors."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np

from prefuse._backends.arrays import View
from prefuse.scoring import device as scoring_device
from prefuse.scoring import plan
from tests.codegen import harness
from tests.emulator import emulator


def device() -> contextlib.AbstractContextManager[list[int]]:
    """Lets CPU tensors be scored as those of a device are; the list holds how many launches each run took."""
    return _pretended(_run)


def planned() -> contextlib.AbstractContextManager[list[int]]:
    """The same, but that launches are counted and not run: results are whatever was in memory."""
    return _pretended(lambda launch: len(_launches(launch, 8)))


@contextlib.contextmanager
def _pretended(run: Callable[[scoring_device.Launch], int]) -> Iterator[list[int]]:
    runs: list[int] = []
    with (
        mock.patch.object(scoring_device, "runs_on", lambda device: True),
        mock.patch.object(scoring_device, "run_program", lambda launch: runs.append(run(launch))),
        mock.patch.object(plan, "bind_plain", lambda *arguments: None),
    ):
        yield runs


def _launches(launch: scoring_device.Launch, workspace: int) -> list[emulator.Launch]:
    inputs = (launch.columns, launch.numbers, launch.offsets, launch.counts, launch.outputs)
    return launch.program.cuda_plan(*inputs, workspace)


def _run(launch: scoring_device.Launch) -> int:
    size = launch.program.cuda_workspace(launch.offsets, launch.counts)
    workspace = np.full(size // 8 + 1, np.nan)
    begin = workspace.ctypes.data
    launches = _launches(launch, begin)
    read = [view for cut in launch.offsets if not isinstance(cut, int) for view in [cut]]
    read += [view for column in launch.columns for view in _views(column)]
    read += [view for column in launch.outputs for view in _views(column)[1:]]
    ranges = [(begin, begin + size, True)]
    ranges += [(*harness.reach(_views(output)[0]), True) for output in launch.outputs]
    ranges += [(*harness.reach(view), False) for view in read]
    for one in launches:
        library = _library("\n".join(text for name, text in one["sources"] if name != "ptx.cuh"), one["kernel"])
        harness.emulate(library, 0, one, ranges)
    return len(launches)


def _views(column: scoring_device.Taken) -> list[View]:
    return [column] if isinstance(column[0], int) else list(column)  # type: ignore[list-item]


_texts: dict[str, str] = {}


def _library(text: str, kernel: str) -> harness.Compiled:
    key = hashlib.sha256(text.encode()).hexdigest()
    _texts[key] = text
    return _built(key, kernel)


@functools.cache
def _built(key: str, kernel: str) -> harness.Compiled:
    return harness.build(_texts[key].replace('extern "C" ', ""), "", [f"[] {{ invoke({kernel}); }}"])


__all__ = ["device", "emulator", "planned"]
