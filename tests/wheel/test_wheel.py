"""The wheel is built, and works where there is torch and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.wheel import environment

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from what cargo has built already where nothing changed."""
    target = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "maturin", "build", "--quiet", "--release", "--locked", "--out", str(target)]
    subprocess.run(command, check=True, cwd=ROOT)
    (built,) = target.glob("*.whl")
    return built


def test_one_wheel_for_every_python(wheel):
    assert "-cp310-abi3-" in wheel.name
    assert wheel.stat().st_size < 10 << 20


def test_what_is_in_it(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for name in ("prefuse/py.typed", "prefuse/_prefuse.pyi", "prefuse/_prefuse.abi3.so", "prefuse/functional.py"):
        assert name in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]


def test_it_works_beside_torch_alone(wheel, tmp_path):
    environment.run(environment.make(tmp_path / "environment", wheel))
