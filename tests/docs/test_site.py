"""The documentation builds as a site, complete, from this checkout alone."""

import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from prefuse import objectives

ROOT = Path(__file__).parents[2]
MODULES = (
    "prefuse",
    "prefuse.catalogue.checking",
    "prefuse.compat.liger",
    "prefuse.compat.trl",
    "prefuse.curate",
    "prefuse.errors",
    "prefuse.functional",
    "prefuse.language",
    "prefuse.linear.functions",
    "prefuse.metrics",
    "prefuse.objectives.advantages",
    "prefuse.outer",
    "prefuse.linear.plans",
    "prefuse.losses.preference",
    "prefuse.viz",
)
OF_EXPRESSIONS = {"prefuse.language"}  # whose arguments are the x of a formula
ON_THE_CATALOGUES_PAGE = {"language", "objectives", "ALIASES", "__version__"}


FUNCTIONS = {
    name
    for module in MODULES
    for name, value in vars(importlib.import_module(module)).items()
    if name in importlib.import_module(module).__all__ and callable(value)
}


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
    pages = [page.read_text(encoding="utf-8") for page in (site / "objectives").glob("*.html")]
    assert sum(page.count("<math") for page in pages) > len(objectives.names())
    assert not any("$$" in page for page in pages)


def test_tables_are_filled_in_and_links_lead_to_families(site):
    for name in ("objectives", "evidence", "choosing", "papers"):
        page = (site / f"{name}.html").read_text(encoding="utf-8")
        assert 'href="objectives/pointwise.html#kto"' in page and "<!-- table" not in page
    assert (site / "objectives" / "dpo.svg").is_file()


@pytest.fixture(scope="module")
def reference(site):
    """The full names that the reference documents."""
    pages = [page.read_text(encoding="utf-8") for page in (site / "api").glob("*.html")]
    return {name for page in pages for name in re.findall(r'id="(prefuse\.[\w.]+)"', page)}


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_in_the_reference(reference, module):
    documented = {name.rsplit(".", 1)[1] for name in reference}
    names = set(importlib.import_module(module).__all__) - ON_THE_CATALOGUES_PAGE
    assert names - documented == set()


@pytest.mark.parametrize("module", MODULES)
def test_nothing_else_is_in_the_reference(reference, module):
    own = {name.rpartition(".")[2] for name in reference if name.rpartition(".")[0] == module}
    documented = {name for name in own if not inspect.ismodule(getattr(importlib.import_module(module), name))}
    assert documented <= set(importlib.import_module(module).__all__)


@pytest.mark.parametrize("module", sorted(set(MODULES) - OF_EXPRESSIONS))
def test_docstrings_say_what_every_argument_is(module):
    """Each argument is named, or the function is named whose arguments they are."""
    unsaid = []
    for name in importlib.import_module(module).__all__:
        value = getattr(importlib.import_module(module), name)
        if not (inspect.isfunction(value) or inspect.isclass(value)):
            continue
        text = inspect.getdoc(value) or ""
        refers = not FUNCTIONS.isdisjoint({other.rsplit(".", 1)[-1] for other in re.findall(r"`([\w.]+)`", text)})
        arguments = inspect.signature(value).parameters if inspect.isfunction(value) else ()
        if not text or not (refers or all(re.search(rf"\b{argument}\b", text) for argument in arguments)):
            unsaid.append(name)
    assert unsaid == []


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"- ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert listed == there
