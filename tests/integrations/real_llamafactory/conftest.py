"""A tiny model and its data in folders; nothing is collected where LLaMA-Factory is not installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.integrations.folders import save_model
from tests.integrations.real_llamafactory.running import data_folder

if importlib.util.find_spec("llamafactory") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("llamafactory") / "model")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_folder(tmp_path_factory.mktemp("llamafactory") / "data")
