"""One thread for tiny tensors, and none of TRL's and transformers' talk."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("trl")


@pytest.fixture(scope="package", autouse=True)
def quiet() -> Iterator[None]:
    import datasets
    from transformers.utils import logging

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    logging.set_verbosity_error()
    yield
    torch.set_num_threads(threads)
