"""The fixture `processes`: 2 and 4 of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed as dist

from tests.distributed.processes import Processes


@pytest.fixture(scope="session", params=[2, 4], ids="{} processes".format)
def processes(request: pytest.FixtureRequest) -> Iterator[Processes]:
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("needs torch.distributed with gloo")
    started = Processes(request.param)
    yield started
    started.stop()
