"""The documentation builds as a site, complete, from this checkout alone."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = (
    "prefuse",
    "prefuse.compat.liger",
    "prefuse.compat.trl",
    "prefuse.curate",
    "prefuse.functional",
    "prefuse.language",
    "prefuse.preference",
    "prefuse.viz",
)
ON_THE_CATALOGUES_PAGE = {"language", "objectives", "ALIASES", "__version__"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built as `make site` builds it; mkdocs.yml makes an error of every warning."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(target)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def test_pages_load_nothing_from_elsewhere(site):
    loaded = re.compile(r"""<(?:script|img|iframe|link)\b[^>]+(?:src|href)=["']?(?:https?:)?//""")
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    assert [page.name for page in pages if loaded.search(page.read_text(encoding="utf-8"))] == []


def test_formulas_are_drawn(site):
    page = (site / "objectives.html").read_text(encoding="utf-8")
    assert page.count("<math") > 100
    assert "$$" not in page


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_in_the_reference(site, module):
    reference = "".join(page.read_text(encoding="utf-8") for page in (site / "api").glob("*.html"))
    documented = {name.rsplit(".", 1)[1] for name in re.findall(r'id="(prefuse\.[\w.]+)"', reference)}
    names = set(importlib.import_module(module).__all__) - ON_THE_CATALOGUES_PAGE
    assert names - documented == set()


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"- ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert listed == there
