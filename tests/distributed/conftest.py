"""The fixture `processes`: 2 and 4 of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.distributed.processes import Processes, started


@pytest.fixture(scope="session", params=[2, 4], ids="{} processes".format)
def processes(request: pytest.FixtureRequest) -> Iterator[Processes]:
    yield from started(request.param)
