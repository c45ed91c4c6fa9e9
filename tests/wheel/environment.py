"""An environment that has a wheel, torch, NumPy and what those two require, and nothing else.

    python -m tests.wheel.environment WHEEL

makes one in a temporary directory and runs `smoke.py` there. What is installed here is linked, not downloaded again.
"""

import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

SMOKE = Path(__file__).with_name("smoke.py")
BASE = ("torch", "numpy")


def make(directory: Path, wheel: Path) -> Path:
    """Make the environment in `directory`; the path of its interpreter."""
    venv.create(directory, with_pip=False, symlinks=True)
    python = next(path for path in (directory / "bin/python", directory / "Scripts/python.exe") if path.exists())
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, str(wheel)], check=True)
    packages = next(path for path in directory.rglob("site-packages"))
    for source in sorted(set(_paths())):
        (packages / source.name).symlink_to(source)
    return python


def run(python: Path) -> None:
    """Run the smoke tests; away from the sources, and without what the environment says about modules."""
    subprocess.run([str(python), "-I", str(SMOKE)], check=True, cwd=python.parent)


def _paths() -> Iterator[Path]:
    """The files and directories in site-packages that belong to `BASE` and what it requires."""
    for found in _closure():
        for file in found.files or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__"):
                yield Path(str(found.locate_file(top)))


def _closure() -> Iterator[Distribution]:
    waiting, seen = list(BASE), set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:  # required under a condition that does not hold here
            continue
        yield found
        waiting += [_name(line) for line in found.requires or () if "extra ==" not in line]


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def main() -> None:
    wheel = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as directory:
        run(make(Path(directory) / "environment", wheel))


if __name__ == "__main__":
    main()
