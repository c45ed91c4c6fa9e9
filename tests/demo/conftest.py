import shutil
import sysconfig
from pathlib import Path

import pytest

PACKAGE = '''
"""Not a function."""

class Box:
    """Neither is this."""

    def open_lid(self, force=1, *, slowly=False):
        """Open the lid of the box with some force.

        A second paragraph that is not the summary.
        """

    async def wait_for_content(self):
        """Wait until there is content in the box."""

def undocumented(): pass

def tiny():
    """Too short."""

if True:
    def nested_in_branch(x):
        """Found although it stands in a branch of an if."""
'''


@pytest.fixture
def library(tmp_path):
    """A standard library of three modules, of which only the first is anybody's to read."""
    root = tmp_path / "lib"
    (root / "site-packages").mkdir(parents=True)
    (root / "box").mkdir()
    (root / "box" / "__init__.py").write_text(PACKAGE)
    (root / "broken.py").write_text("def f(:\n")
    (root / "latin.py").write_bytes(
        b"# coding: latin-1\ndef caf(x):\n    '''Serve a caf\xe9 to every single guest.'''\n"
    )
    (root / "site-packages" / "other.py").write_text("def f():\n    '''Not part of the standard library at all.'''\n")
    return root


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """A few modules of the real library: enough for both sides of the split."""
    root = tmp_path_factory.mktemp("sources")
    stdlib = Path(sysconfig.get_path("stdlib"))
    for name in (
        "argparse",
        "calendar",
        "configparser",
        "difflib",
        "enum",
        "ftplib",
        "pickletools",
        "random",
        "shutil",
    ):
        shutil.copy(stdlib / f"{name}.py", root)
    return root
