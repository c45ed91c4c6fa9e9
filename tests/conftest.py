"""The fixture `device`, see `tests.devices`; the marker `needs`, see `tests.needs`."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Generator, Iterator

import pytest
import torch

from tests import needs
from tests.devices import DEVICES
from tests.emulator import emulator

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and PyTorch sees none")

LONG = ("wheel", "notebooks", "docs", "trl")
"""Folders whose files go first: few tests that take minutes, which would keep one process busy after the others."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cpu: concerns the CPU alone (NumPy, threads, SIMD) in a module for all devices")
    config.addinivalue_line("markers", "evidence(kind, detail): what the table of evidence says of it")
    config.addinivalue_line("markers", "needs(what): skipped, or with CI=true failed, where it is missing")
    config.addinivalue_line("markers", "needs_cuda: skipped where PyTorch sees no CUDA device")
    if emulator.SHARED not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="prefuse-compiled-")
        os.environ[emulator.SHARED] = folder.name
        config.add_cleanup(folder.cleanup)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        names = ("cpu",) if metafunc.definition.get_closest_marker("cpu") else DEVICES
        cases = [pytest.param(name, marks=NEEDS_CUDA if name == "cuda" else ()) for name in names]
        metafunc.parametrize("device", cases, indirect=True, scope="module")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("needs_cuda"):
            item.add_marker(NEEDS_CUDA)
    items.sort(key=lambda item: item.path.parent.name not in LONG)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Whoever collects garbage need not look at what is there by now, modules and tests: each training does it anew."""
    gc.disable()
    result = yield
    gc.collect()
    gc.freeze()
    gc.enable()
    return result


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or some libraries say at the end that they were left with something


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        needs.check(*marker.args)


@pytest.fixture(scope="module")
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The device under test, on which tensors are made unless another is named."""
    chosen = torch.device(request.param)
    if chosen.type == "cpu":
        yield chosen
        return
    torch.set_default_device(chosen)
    yield chosen
    torch.set_default_device(None)
